//! The Unix socket: who may ask, how its name is taken, and how a command asks.
//!
//! The socket's mode is 0600, and whoever connects must be root or the agent's own user.

use std::error::Error;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};

use super::AdminError;
use super::http::STATUS_PATH;
use crate::status::Status;

/// How long a command waits for the agent's answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The longest answer a command reads: some 100,000 entries. Bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A bound socket under its name.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    name: Name,
}

/// The name of a socket of ours. Dropping it removes it, unless somebody else has it by now.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Takes `path`: it is bound under another name, closed to others, then moved there, so that
    /// nobody ever finds it open or missing. What an agent that is gone left there is replaced.
    pub(super) async fn bind(path: &Path) -> Result<Self, AdminError> {
        let fail = |source| AdminError::Socket { path: path.to_path_buf(), source };
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        }
        check_free(path).await?;
        let new = path.with_added_extension("new");
        check_free(&new).await?;
        remove(&new).map_err(fail)?;
        let listener = UnixListener::bind(&new).map_err(fail)?;
        std::fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(fail)?;
        std::fs::rename(&new, path).map_err(fail)?;
        let inode = inode(path).map_err(fail)?;
        Ok(Self { listener, name: Name { path: path.to_path_buf(), inode } })
    }

    /// What accepts connections, and what keeps its name.
    pub(super) fn split(self) -> (UnixListener, Name) {
        (self.listener, self.name)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, socket = %self.path.display(), "the socket could not be removed");
        }
    }
}

/// Whether whoever connected is root or the agent's own user.
pub(super) fn is_own(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| may_connect(peer.uid(), own))
}

fn may_connect(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

/// Fails unless nothing has the name, or a socket that nobody listens on.
async fn check_free(path: &Path) -> Result<(), AdminError> {
    let fail = |source| AdminError::Socket { path: path.to_path_buf(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // A full queue has a listener, too.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(fail(error)),
        _ => Err(AdminError::InUse { path: path.to_path_buf() }),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Asks the agent that listens on `socket` for its status.
pub async fn fetch_status(socket: &Path) -> Result<Status, AdminError> {
    let body = ask(socket, STATUS_PATH, None, ANSWER_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| AdminError::Answer { path: socket.to_path_buf(), cause: error.to_string() })
}

/// Asks the agent that listens on `socket`: GETs `path`, or posts JSON to it.
pub(super) async fn ask(
    socket: &Path,
    path: &str,
    json: Option<Vec<u8>>,
    limit: Duration,
) -> Result<Bytes, AdminError> {
    let silent = |source| AdminError::Silent { path: socket.to_path_buf(), source };
    let stream = UnixStream::connect(socket).await.map_err(silent)?;
    tokio::time::timeout(limit, exchange(stream, path, json))
        .await
        .map_err(|_| silent(io::ErrorKind::TimedOut.into()))?
        .map_err(|error| AdminError::Answer { path: socket.to_path_buf(), cause: error.to_string() })
}

/// Asks the agent that listens on `socket` for a stream of lines, and hands each to `take` until that says
/// `false` or the agent ends it.
pub(super) async fn follow(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), AdminError> {
    let silent = |source| AdminError::Silent { path: socket.to_path_buf(), source };
    let stream = UnixStream::connect(socket).await.map_err(silent)?;
    let told = tell_lines(stream, path, &mut take).await;
    told.map_err(|error| AdminError::Answer { path: socket.to_path_buf(), cause: error.to_string() })
}

async fn tell_lines(
    stream: UnixStream,
    path: &str,
    take: &mut impl FnMut(&[u8]) -> bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, "localhost").body(Full::<Bytes>::default())?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let said = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            return Err(String::from_utf8_lossy(&said).trim_end().into());
        }
        let mut waiting = Vec::new();
        while let Some(frame) = body.frame().await {
            waiting.extend_from_slice(&frame?.into_data().unwrap_or_default());
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                if !take(&line[..end]) {
                    return Ok(());
                }
            }
        }
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    };
    tokio::select! {
        answer = answer => answer,
        // It serves the answer, and ends first only where there is none.
        ended = connection => Err(ended.err().map_or_else(|| "it hung up".into(), Into::into)),
    }
}

/// One request on a connection of its own.
async fn exchange(
    stream: UnixStream,
    path: &str,
    json: Option<Vec<u8>>,
) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = if json.is_some() { Request::post(path) } else { Request::get(path) };
    let request = request
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(json.unwrap_or_default())))?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        let said = || format!("{status}: {}", String::from_utf8_lossy(&body).trim_end());
        if status == StatusCode::OK { Ok(body) } else { Err(said().into()) }
    };
    // The connection ends when its sender is dropped; if it fails, so does the answer.
    tokio::join!(answer, connection).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_root_and_the_agents_user() {
        assert!(may_connect(0, 500) && may_connect(500, 500) && may_connect(0, 0));
        assert!(!may_connect(1000, 500) && !may_connect(1000, 0) && !may_connect(65534, 500));
    }

    #[tokio::test]
    async fn a_connection_says_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let _client = UnixStream::connect(dir.path().join("socket")).await.unwrap();
        assert!(is_own(&listener.accept().await.unwrap().0));
    }
}
