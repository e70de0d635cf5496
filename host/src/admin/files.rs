//! The files of an entry over the agent's socket.
//!
//! In: a request of `weir top`. Out: what the entry's pipeline says of its files, between two chunks.

use std::path::Path;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::AdminError;
use super::socket::ask;
use super::tap::encoded;
use crate::model::EntryName;
use crate::status::Files;

const FILES_PATH: &str = "/api/v1/files";
/// Questions that wait for the agent to pass them on.
const QUEUE: usize = 16;
/// How long a pipeline may take to answer: it does between two chunks.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How long a command waits; longer than the agent does.
const COMMAND_MAX: Duration = Duration::from_secs(5);

/// A question for the pipeline of an entry. Dropping it is an answer.
#[derive(Debug)]
pub struct FilesAsked {
    /// Which entry.
    pub entry: EntryName,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Files>,
}

/// Passes questions to the agent.
#[derive(Clone, Debug)]
pub struct AskFiles(mpsc::Sender<FilesAsked>);

impl AskFiles {
    /// The other end is the agent's.
    pub fn new() -> (Self, mpsc::Receiver<FilesAsked>) {
        let (sender, questions) = mpsc::channel(QUEUE);
        (Self(sender), questions)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    entry: String,
}

pub(super) fn routes(agent: AskFiles) -> Router {
    Router::new().route(FILES_PATH, get(files)).with_state(agent)
}

async fn files(State(agent): State<AskFiles>, Query(asked): Query<Asked>) -> Response {
    let (answer, answered) = oneshot::channel();
    let question = FilesAsked { entry: EntryName(asked.entry.as_str().into()), answer };
    let files = async {
        agent.0.send(question).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER_MAX, files).await {
        Ok(Some(files)) => Json(files).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, format!("no entry {:?} runs\n", asked.entry)).into_response(),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "the entry is too busy to answer\n").into_response(),
    }
}

/// Asks the agent on `socket` for the files of an entry.
pub async fn fetch_files(socket: &Path, entry: &str) -> Result<Files, AdminError> {
    let answer = ask(socket, &format!("{FILES_PATH}?entry={}", encoded(entry)), None, COMMAND_MAX).await?;
    serde_json::from_slice(&answer)
        .map_err(|error| AdminError::Answer { path: socket.into(), cause: error.to_string() })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::Admin;
    use super::super::tests::board;
    use super::*;
    use crate::config::AdminSettings;
    use crate::status::FileStatus;

    #[tokio::test]
    async fn files_are_told_by_the_agent_and_an_entry_that_does_not_run_has_none() {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weir.sock");
        let settings = AdminSettings { listen: "127.0.0.1:0".parse().unwrap(), socket: socket.clone() };
        let (ask, mut questions) = AskFiles::new();
        let admin = Admin::bind(&settings, board(&[])).await.unwrap().with_files(ask);
        let served = tokio::spawn(admin.serve(std::future::pending()));
        let files =
            Files { total: 1, files: vec![FileStatus { path: "/a\n".into(), ..FileStatus::default() }] };
        let told = files.clone();
        let agent = tokio::spawn(async move {
            while let Some(FilesAsked { entry, answer }) = questions.recv().await {
                // Any other question is dropped, as the agent does where no such entry runs.
                if entry.as_str() == "a b&c" {
                    answer.send(told.clone()).unwrap();
                }
            }
        });
        assert_eq!(fetch_files(&socket, "a b&c").await.unwrap(), files);
        let none = fetch_files(&socket, "other").await.unwrap_err();
        assert!(none.to_string().contains("no entry \"other\" runs"), "{none}");
        served.abort();
        agent.abort();
    }
}
