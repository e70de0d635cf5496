//! The quarantine over the agent's socket: listed, shown, sent again, removed.
//!
//! In: requests of `weir quarantine`. Out: what is there, what became of it. On the socket alone: this is
//! the only place where the content of lines is shown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path as InPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::AdminError;
use super::socket::ask;
use crate::quarantine::{Item, Quarantine, QuarantineError, Replay, Replayed};

/// Where the items are listed; behind it `/ID` is one line's content.
const ITEMS_PATH: &str = "/api/v1/quarantine";
const REMOVE_PATH: &str = "/api/v1/quarantine/remove";
const REPLAY_PATH: &str = "/api/v1/quarantine/replay";

/// Items in one answer.
const PAGE_ITEMS: usize = 1000;
/// Lines that one request may ask to be sent again: some MiB, and an answer within `REPLAY_MAX`.
pub const REPLAY_LINES: usize = 32;
/// Lines that wait for the agent to pass them on.
const QUEUE: usize = 64;
/// How long an answer waits for Kafka.
const REPLAY_MAX: Duration = Duration::from_secs(20);
/// How long a command waits for an answer; longer than the agent needs for one.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What commands may do with the quarantine.
#[derive(Clone, Debug)]
pub struct Access {
    quarantine: Arc<Quarantine>,
    replays: mpsc::Sender<Replay>,
}

/// Some of the items, and how full the quarantine is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page {
    /// What is taken of the limit. Bytes.
    pub used: u64,
    /// `limits.quarantine`. Bytes.
    pub limit: u64,
    /// In order; fewer than asked for only at the end.
    pub items: Vec<Item>,
}

#[derive(Serialize, Deserialize)]
struct After {
    after: u64,
}

#[derive(Serialize, Deserialize)]
struct Ids {
    ids: Vec<u64>,
}

/// What became of one line that was to be sent again.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Which one.
    pub id: u64,
    /// In one word.
    pub result: ReplayResult,
    /// Why it is still there; empty where it is not.
    pub cause: String,
}

impl Outcome {
    /// `told` is none where there was no answer in time, and an error where none will come.
    fn new(id: u64, told: Option<Result<Replayed, oneshot::error::RecvError>>) -> Self {
        const UNDER_WAY: &str =
            "under way: Kafka has not acknowledged it yet; it leaves the quarantine when it has";
        let (result, cause) = match told {
            Some(Ok(Replayed::Delivered)) => (ReplayResult::Delivered, String::new()),
            Some(Ok(Replayed::Dropped)) => (ReplayResult::Dropped, String::new()),
            Some(Ok(Replayed::Kept(cause))) => (ReplayResult::Kept, cause),
            Some(Err(_)) => (ReplayResult::Kept, "its entry or the agent was stopped meanwhile".into()),
            None => (ReplayResult::Kept, UNDER_WAY.into()),
        };
        Self { id, result, cause }
    }
}

/// What became of a line that was to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayResult {
    /// Kafka has acknowledged it; it is no longer in quarantine.
    Delivered,
    /// The filter drops it now; it is no longer in quarantine.
    Dropped,
    /// It is still in quarantine.
    Kept,
}

impl Access {
    /// Access to `quarantine`; lines that are to be sent again come out of the receiver.
    pub fn new(quarantine: Arc<Quarantine>) -> (Self, mpsc::Receiver<Replay>) {
        let (replays, asked) = mpsc::channel(QUEUE);
        (Self { quarantine, replays }, asked)
    }

    /// The disk is asked on a thread that may wait.
    async fn with<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Quarantine) -> Result<T, QuarantineError> + Send + 'static,
    ) -> Result<T, Failure> {
        let quarantine = self.quarantine.clone();
        let done = tokio::task::spawn_blocking(move || what(&quarantine)).await;
        done.map_err(|error| Failure(error.to_string()))?.map_err(|error| Failure(error.to_string()))
    }

    /// Passes a line on; what became of it comes out of the receiver. Where nobody answers there, the
    /// agent or the entry ended.
    async fn replay(&self, id: u64) -> Result<oneshot::Receiver<Replayed>, Failure> {
        let (tell, told) = oneshot::channel();
        // Whoever asked may be gone by then.
        let answer: Box<dyn FnOnce(Replayed) + Send> = Box::new(move |replayed| drop(tell.send(replayed)));
        match self.with(move |quarantine| quarantine.item(id)).await? {
            Some(item) => drop(self.replays.send(Replay { item, answer }).await),
            None => answer(Replayed::Kept("there is no such line in quarantine".into())),
        }
        Ok(told)
    }
}

/// What went wrong, for whoever asked.
struct Failure(String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0 + "\n").into_response()
    }
}

/// What is answered on the socket.
pub(super) fn routes(access: Access) -> Router {
    Router::new()
        .route(ITEMS_PATH, get(list))
        .route(&format!("{ITEMS_PATH}/{{id}}"), get(line))
        .route(REMOVE_PATH, post(remove))
        .route(REPLAY_PATH, post(replay))
        .with_state(access)
}

async fn list(State(access): State<Access>, Query(after): Query<After>) -> Result<Json<Page>, Failure> {
    let read = move |quarantine: &Quarantine| {
        let items = quarantine.list(after.after, PAGE_ITEMS)?;
        Ok(Page { used: quarantine.used()?, limit: quarantine.limit(), items })
    };
    access.with(read).await.map(Json)
}

async fn line(State(access): State<Access>, InPath(id): InPath<u64>) -> Result<Response, Failure> {
    let line = access.with(move |quarantine| quarantine.read(id)).await?;
    Ok(match line {
        Some(line) => line.into_response(),
        None => (StatusCode::NOT_FOUND, format!("there is no line {id} in quarantine\n")).into_response(),
    })
}

async fn remove(State(access): State<Access>, Json(Ids { ids }): Json<Ids>) -> Result<Json<usize>, Failure> {
    access.with(move |quarantine| quarantine.remove(&ids)).await.map(Json)
}

async fn replay(
    State(access): State<Access>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Json<Vec<Outcome>>, Failure> {
    if ids.len() > REPLAY_LINES {
        return Err(Failure(format!("at most {REPLAY_LINES} lines a request")));
    }
    // All are under way before the first is waited for.
    let mut asked = Vec::new();
    for id in ids {
        asked.push((id, access.replay(id).await?));
    }
    let deadline = Instant::now() + REPLAY_MAX;
    let mut outcomes = Vec::new();
    for (id, told) in asked {
        outcomes.push(Outcome::new(id, timeout_at(deadline, told).await.ok()));
    }
    Ok(Json(outcomes))
}

/// Asks the agent for the items behind `after`.
pub async fn fetch_page(socket: &Path, after: u64) -> Result<Page, AdminError> {
    json(socket, &ask(socket, &format!("{ITEMS_PATH}?after={after}"), None, ANSWER_MAX).await?)
}

/// Asks the agent for the content of a line.
pub async fn fetch_line(socket: &Path, id: u64) -> Result<Vec<u8>, AdminError> {
    Ok(ask(socket, &format!("{ITEMS_PATH}/{id}"), None, ANSWER_MAX).await?.to_vec())
}

/// Has the agent remove lines; says how many were there.
pub async fn remove_lines(socket: &Path, ids: &[u64]) -> Result<usize, AdminError> {
    json(socket, &ask(socket, REMOVE_PATH, Some(body(ids)), ANSWER_MAX).await?)
}

/// Has the agent send lines again; at most [`REPLAY_LINES`].
pub async fn replay_lines(socket: &Path, ids: &[u64]) -> Result<Vec<Outcome>, AdminError> {
    json(socket, &ask(socket, REPLAY_PATH, Some(body(ids)), ANSWER_MAX).await?)
}

fn body(ids: &[u64]) -> Vec<u8> {
    serde_json::to_vec(&Ids { ids: ids.into() }).expect("numbers are JSON")
}

fn json<T: for<'de> Deserialize<'de>>(socket: &Path, answer: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(answer)
        .map_err(|error| AdminError::Answer { path: socket.into(), cause: error.to_string() })
}
