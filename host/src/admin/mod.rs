//! Shows what the agent says about itself: `/metrics`, health, status and a page over HTTP, the
//! status over a Unix socket.
//!
//! In: a [`Board`]. Out: answers to GET, and on the socket what `weir quarantine` and `tap` ask for. Absent by
//! design: over the network, changes of anything and line content; error texts of modules in `/metrics`;
//! other hosts' agents.
//!
//! Neither listener can cost the agent more than a bounded number of connections: see `bounded`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::AdminSettings;
use crate::state::is_disk_failure;
use crate::status::Board;
use bounded::Bounded;
use files::AskFiles;
use quarantine::Access;
use socket::Socket;

mod bounded;
pub mod files;
mod http;
mod metrics;
pub mod quarantine;
mod socket;
pub mod tap;

pub use socket::fetch_status;

/// What a stop waits for answers that are under way.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the agent cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// `[admin] listen` cannot be used.
    #[error("listening on {address}, `[admin] listen`")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// `[admin] socket` cannot be used.
    #[error("listening on the socket {}, `[admin] socket`", path.display())]
    Socket {
        /// What was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else has the socket's name; it is left alone.
    #[error("{} is there and is not a socket; set `[admin] socket` to another path", path.display())]
    NotASocket {
        /// What was asked for.
        path: PathBuf,
    },
    /// An agent that runs has the socket.
    #[error("an agent answers on {} already; set `[admin] socket` to another path", path.display())]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// Nobody answers.
    #[error("no agent answers on {}", path.display())]
    Silent {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What came back is of no use.
    #[error("the agent on {} does not answer as it should: {cause}", path.display())]
    Answer {
        /// Who answered.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// Both listeners, bound and not yet served.
#[derive(Debug)]
pub struct Admin {
    tcp: TcpListener,
    address: SocketAddr,
    /// `None` where its directory is on a disk that fails.
    socket: Option<Socket>,
    board: Board,
    quarantine: Option<Access>,
    files: Option<AskFiles>,
}

impl Admin {
    /// Binds both listeners, so that what is wrong with them is known before anything runs.
    pub async fn bind(settings: &AdminSettings, board: Board) -> Result<Self, AdminError> {
        let listen = |source| AdminError::Listen { address: settings.listen, source };
        let tcp = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = tcp.local_addr().map_err(listen)?;
        let socket = match Socket::bind(&settings.socket).await {
            Err(AdminError::Socket { path, source }) if is_disk_failure(&source) => {
                tracing::error!(socket = %path.display(), error = %source, "no socket for local commands");
                None
            }
            bound => Some(bound?),
        };
        Ok(Self { tcp, address, socket, board, quarantine: None, files: None })
    }

    /// Lets commands at the quarantine, over the socket alone.
    pub fn with_quarantine(mut self, access: Access) -> Self {
        self.quarantine = Some(access);
        self
    }

    /// Lets commands ask for the files of an entry, over the socket alone.
    pub fn with_files(mut self, agent: AskFiles) -> Self {
        self.files = Some(agent);
        self
    }

    /// Where it listens; the real port where `[admin] listen` asks for any.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is done, then closes both listeners and removes the socket. Whoever
    /// still waits for an answer then has a second.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let Self { tcp, address, socket, board, quarantine, files } = self;
        let (stopping, stopped) = watch::channel(());
        let until_stopped = |mut stopped: watch::Receiver<()>| async move {
            // The sender says nothing: it is dropped.
            let _ = stopped.changed().await;
        };
        let network = axum::serve(Bounded::new(tcp, |_| true), http::network(&board, address))
            .with_graceful_shutdown(until_stopped(stopped.clone()));
        let local = async {
            let Some(socket) = socket else { return Ok(()) };
            let (unix, _name) = socket.split();
            axum::serve(Bounded::new(unix, socket::is_own), http::local(&board, quarantine, files))
                .with_graceful_shutdown(until_stopped(stopped))
                .await
        };
        let end = async {
            stop.await;
            drop(stopping);
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            _ = async { tokio::join!(network, local) } => {}
            () = end => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::Path;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::model::{EntryName, Lines};
    use crate::status::{EntryReport, EntryState, EntryStatus, Figures, ListStatus};

    /// What a pipeline would say of an entry.
    pub(super) fn report(name: &str) -> EntryReport {
        let lines =
            Lines { read: 21, delivered: 1, filtered: 2, skipped: 3, quarantined: 4, ..Lines::default() };
        EntryReport {
            status: EntryStatus {
                name: name.into(),
                path: format!("/var/log/{name}.log"),
                topic: "logs".into(),
                state: EntryState::Following,
                files: 2,
                lag_bytes: 60,
                lag_seconds: 0.5,
                lines: Lines { discarded: 5, in_flight: 6, ..lines },
                ..EntryStatus::default()
            },
            figures: Figures::default(),
        }
    }

    /// A board on which they stand.
    pub(super) fn board(reports: &[EntryReport]) -> Board {
        let board = Board::new("web1");
        let names: Vec<_> =
            reports.iter().map(|report| EntryName(report.status.name.as_str().into())).collect();
        for (name, report) in names.iter().zip(reports) {
            board.entry(name, || report.clone());
        }
        board.set_list(ListStatus { revision: 7, ..ListStatus::default() }, names, vec![]);
        board
    }

    /// An admin that runs until it is stopped.
    pub(super) struct Running {
        address: SocketAddr,
        pub(super) socket: PathBuf,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    impl Running {
        pub(super) async fn start(dir: &TempDir, board: Board) -> Self {
            Self::listen(dir, "127.0.0.1:0", board).await
        }

        async fn listen(dir: &TempDir, listen: &str, board: Board) -> Self {
            let socket = dir.path().join("weir.sock");
            let settings = AdminSettings { listen: listen.parse().unwrap(), socket: socket.clone() };
            let admin = Admin::bind(&settings, board).await.unwrap();
            let address = admin.address();
            let (stop, stopped) = oneshot::channel::<()>();
            let task = tokio::spawn(admin.serve(async { stopped.await.unwrap_or(()) }));
            Self { address, socket, stop, task }
        }

        pub(super) async fn stop(self) {
            self.stop.send(()).unwrap();
            self.task.await.unwrap();
        }

        /// Sends `request` as it is and returns the head and the body of the answer.
        async fn send(&self, request: &str) -> (String, String) {
            let mut stream = TcpStream::connect(("127.0.0.1", self.address.port())).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_string(), body.to_string())
        }

        pub(super) async fn get(&self, path: &str) -> (String, String) {
            self.send(&request("GET", path, "localhost")).await
        }
    }

    fn request(method: &str, path: &str, host: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    }

    fn code(head: &str) -> u16 {
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn metrics_are_served_and_their_sums_hold() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[report("nginx"), report("app")])).await;
        let (head, body) = admin.get("/metrics").await;
        assert_eq!(code(&head), 200);
        assert!(head.contains(metrics::MEDIA_TYPE), "{head}");
        let samples = metrics::tests::parse(&body);
        assert_eq!(metrics::tests::sums(&samples, "nginx"), (true, 21.0));
        assert_eq!(metrics::tests::sums(&samples, "app"), (true, 21.0));
        admin.stop().await;
    }

    #[tokio::test]
    async fn the_status_is_the_same_over_http_and_on_the_socket() {
        let dir = TempDir::new().unwrap();
        let board = board(&[report("nginx")]);
        let admin = Running::start(&dir, board.clone()).await;
        let (head, body) = admin.get("/api/v1/status").await;
        assert_eq!(code(&head), 200);
        let by_http: serde_json::Value = serde_json::from_str(&body).unwrap();
        let by_socket = serde_json::to_value(fetch_status(&admin.socket).await.unwrap()).unwrap();
        assert_eq!(by_http, serde_json::to_value(board.status()).unwrap());
        assert_eq!(by_http, by_socket);
        assert_eq!(by_http["entries"][0]["state"], "following");
        admin.stop().await;
    }

    #[tokio::test]
    async fn it_is_ready_when_a_list_was_applied_and_healthy_before() {
        let dir = TempDir::new().unwrap();
        let board = Board::new("web1");
        let admin = Running::start(&dir, board.clone()).await;
        assert_eq!(code(&admin.get("/healthz").await.0), 200);
        assert_eq!(code(&admin.get("/readyz").await.0), 503);
        board.set_list(ListStatus::default(), vec![], vec![]);
        assert_eq!(code(&admin.get("/readyz").await.0), 200);
        admin.stop().await;
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_elsewhere() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let (head, body) = admin.get("/").await;
        assert_eq!(code(&head), 200);
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert!(!body.contains("http://") && !body.contains("https://") && !body.contains("innerHTML"));
        admin.stop().await;
    }

    #[tokio::test]
    async fn only_hosts_that_are_this_agent_are_answered() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let port = admin.address.port();
        for host in ["localhost", "LocalHost.", "127.0.0.1", "[::1]", "10.1.2.3", "web1", "WEB1"] {
            let with_port = format!("{host}:{port}");
            for host in [host, &with_port] {
                let (head, _) = admin.send(&request("GET", "/api/v1/status", host)).await;
                assert_eq!(code(&head), 200, "{host}");
            }
        }
        for host in [
            "evil.example",
            "evil.example:9477",
            "localhost.evil.example",
            "web1.evil.example",
            "127.0.0.1.evil.example",
            "",
            "@",
            "ä",
        ] {
            let (head, body) = admin.send(&request("GET", "/api/v1/status", host)).await;
            assert!([400, 403].contains(&code(&head)), "{host}: {head}");
            assert!(!body.contains("entries"), "{host}: {body}");
        }
        let target = request("GET", "http://evil.example/api/v1/status", "localhost");
        assert_eq!(code(&admin.send(&target).await.0), 403);
        assert_eq!(code(&admin.send("GET /healthz HTTP/1.0\r\n\r\n").await.0), 200);
        admin.stop().await;
    }

    #[tokio::test]
    async fn where_others_may_ask_the_agents_name_may_have_a_domain() {
        let dir = TempDir::new().unwrap();
        let admin = Running::listen(&dir, "0.0.0.0:0", board(&[])).await;
        for (host, expected) in
            [("web1.example.com:9477", 200), ("web10.example.com", 403), ("evil.example", 403)]
        {
            let (head, _) = admin.send(&request("GET", "/metrics", host)).await;
            assert_eq!(code(&head), expected, "{host}");
        }
        admin.stop().await;
    }

    #[tokio::test]
    async fn nothing_but_get_and_head_is_taken() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            for path in ["/", "/metrics", "/api/v1/status", "/nothing"] {
                let (head, _) = admin.send(&request(method, path, "localhost")).await;
                assert_eq!(code(&head), 405, "{method} {path}");
                assert!(head.contains("allow: GET, HEAD"), "{head}");
            }
        }
        let (head, body) = admin.send(&request("HEAD", "/metrics", "localhost")).await;
        assert_eq!((code(&head), body.as_str()), (200, ""));
        assert_eq!(code(&admin.get("/nothing").await.0), 404);
        admin.stop().await;
    }

    #[tokio::test]
    async fn clients_that_ask_nothing_do_not_keep_it_from_stopping() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let mut slow = TcpStream::connect(admin.address).await.unwrap();
        slow.write_all(b"GET / HTT").await.unwrap();
        let idle = TcpStream::connect(admin.address).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), admin.stop()).await.unwrap();
        drop((slow, idle));
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_that_names_it() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let settings = AdminSettings { listen: admin.address, socket: dir.path().join("other.sock") };
        let error = Admin::bind(&settings, board(&[])).await.unwrap_err();
        assert_eq!(error.to_string(), format!("listening on {}, `[admin] listen`", admin.address));
        admin.stop().await;
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn the_socket_is_closed_to_others_and_gone_after_a_stop() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let socket = admin.socket.clone();
        assert_eq!(mode(&socket), 0o600);
        admin.stop().await;
        assert!(!socket.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced() {
        let dir = TempDir::new().unwrap();
        for name in ["weir.sock", "weir.sock.new"] {
            drop(std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap());
        }
        let admin = Running::start(&dir, board(&[])).await;
        fetch_status(&admin.socket).await.unwrap();
        assert_eq!(mode(&admin.socket), 0o600);
        admin.stop().await;
    }

    #[tokio::test]
    async fn a_running_agents_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let first = Running::start(&dir, board(&[])).await;
        let settings = AdminSettings { listen: "127.0.0.1:0".parse().unwrap(), socket: first.socket.clone() };
        let error = Admin::bind(&settings, board(&[])).await.unwrap_err();
        assert!(matches!(error, AdminError::InUse { .. }), "{error:?}");
        fetch_status(&first.socket).await.unwrap();
        first.stop().await;
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("weir.sock");
        std::fs::write(&path, "precious").unwrap();
        let settings = AdminSettings { listen: "127.0.0.1:0".parse().unwrap(), socket: path.clone() };
        let error = Admin::bind(&settings, board(&[])).await.unwrap_err();
        assert!(matches!(error, AdminError::NotASocket { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_socket_that_somebody_else_took_over_is_not_removed() {
        let dir = TempDir::new().unwrap();
        let admin = Running::start(&dir, board(&[])).await;
        let socket = admin.socket.clone();
        std::fs::remove_file(&socket).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        admin.stop().await;
        assert!(std::fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }

    #[tokio::test]
    async fn a_command_says_where_no_agent_answers() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("weir.sock");
        let missing = fetch_status(&path).await.unwrap_err();
        assert_eq!(missing.to_string(), format!("no agent answers on {}", path.display()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stale = fetch_status(&path).await.unwrap_err();
        assert!(matches!(stale, AdminError::Silent { .. }), "{stale:?}");
    }

    #[tokio::test]
    async fn an_answer_that_is_no_status_is_an_error() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("weir.sock");
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0\r\n",
            "",
        ] {
            let _ = std::fs::remove_file(&path);
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let other = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (error, ()) = tokio::join!(fetch_status(&path), other);
            assert!(matches!(error, Err(AdminError::Answer { .. })), "{answer:?}: {error:?}");
        }
    }
}
