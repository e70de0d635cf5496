//! The lines of an entry over the agent's socket, as they pass.
//!
//! In: a request of `weir tap`. Out: a stream of JSON, a line each, until whoever asked hangs up or the entry
//! is gone. On the socket alone: the content of lines goes nowhere else.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::body::{Bytes, Frame};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::AdminError;
use super::socket::follow;
use crate::status::Board;
use crate::tap::{Look, Seen, Wants};

const TAP_PATH: &str = "/api/v1/tap";
/// How often it is said what was passed over, and that there is somebody: a silent connection is cut.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Lines that wait to be sent.
const WAITING: usize = 64;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    entry: String,
    #[serde(default)]
    dropped: bool,
    #[serde(default)]
    rewritten: bool,
}

/// A line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// A line passed.
    Line(Seen),
    /// So many passed unseen since this was last said.
    PassedOver(u64),
}

pub(super) fn routes(board: Board) -> Router {
    Router::new().route(TAP_PATH, get(tap)).with_state(board)
}

async fn tap(State(board): State<Board>, Query(asked): Query<Asked>) -> Response {
    let wants = Wants { dropped: asked.dropped, rewritten: asked.rewritten };
    let Some(look) = board.look(&asked.entry, wants) else {
        let names: Vec<_> = board.status().entries.into_iter().map(|entry| entry.name).collect();
        let said = format!("no entry {:?} runs; there are: {}\n", asked.entry, names.join(", "));
        return (StatusCode::NOT_FOUND, said).into_response();
    };
    let (sender, lines) = mpsc::channel(WAITING);
    tokio::spawn(tell(look, sender));
    Body::new(Stream(lines)).into_response()
}

/// Ends with the look, or when nobody takes the lines any more.
async fn tell(mut look: Look, sender: mpsc::Sender<Bytes>) {
    let mut beat = tokio::time::interval(SAY_EVERY);
    loop {
        let told = tokio::select! {
            seen = look.lines.recv() => match seen {
                Some(seen) => Told::Line(seen),
                None => return,
            },
            _ = beat.tick() => Told::PassedOver(look.take_passed_over()),
        };
        let mut line = serde_json::to_vec(&told).expect("text and numbers are JSON");
        line.push(b'\n');
        if sender.send(line.into()).await.is_err() {
            return;
        }
    }
}

/// A body that is sent as it comes.
struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Has the agent on `socket` show the lines of `entry`, and hands what it tells to `take` until that says
/// `false` or the entry is gone.
pub async fn follow_tap(
    socket: &Path,
    entry: &str,
    wants: Wants,
    mut take: impl FnMut(Told) -> bool,
) -> Result<(), AdminError> {
    let Wants { dropped, rewritten } = wants;
    let path = format!("{TAP_PATH}?entry={}&dropped={dropped}&rewritten={rewritten}", encoded(entry));
    // What a later agent says besides is passed over.
    follow(socket, &path, |line| serde_json::from_slice(line).map_or(true, &mut take)).await
}

/// As it stands in a query.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::tests::{Running, board, report};
    use super::*;
    use crate::model::EntryName;
    use crate::tap::{After, Line, Verdict};

    #[tokio::test]
    async fn lines_are_told_on_the_socket_and_nowhere_else() {
        let (dir, name) = (TempDir::new().unwrap(), "a/b &c=\u{1b}é");
        let board = board(&[report(name)]);
        let tap = board.tap(&EntryName(name.into()));
        let admin = Running::start(&dir, board.clone()).await;
        let (head, _) = admin.get(&format!("{TAP_PATH}?entry={}", encoded(name))).await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        let other = follow_tap(&admin.socket, "other", Wants::default(), |_| true).await.unwrap_err();
        assert!(other.to_string().contains("no entry \"other\" runs"), "{other}");

        let (begun, mut lines) = (std::time::Instant::now(), Vec::new());
        let follow = follow_tap(&admin.socket, name, Wants::default(), |told| {
            if let Told::Line(seen) = told {
                lines.push(seen);
            }
            lines.len() < 2
        });
        let offer = async {
            while !tap.is_open() {
                assert!(begun.elapsed() < Duration::from_secs(20));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let line = |offset| Line {
                offset,
                verdict: Verdict::Kept,
                before: b"\xff\n",
                after: After::default(),
                cause: ("", ""),
            };
            tap.offer("/a", 2, std::time::Instant::now(), || [line(1), line(2)].into_iter());
        };
        tokio::join!(async { follow.await.unwrap() }, offer);
        assert_eq!(lines.iter().map(|seen| seen.offset).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(lines[0].before, b"\xff\n");
        // Who hung up is noticed, though nothing passes.
        while tap.is_open() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tap.offer("/a", 0, std::time::Instant::now(), std::iter::empty);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // An entry that is gone ends the look.
        let gone = follow_tap(&admin.socket, name, Wants::default(), |_| {
            board.set_list(Default::default(), vec![], vec![]);
            true
        });
        drop(tap);
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap();
        admin.stop().await;
    }
}
