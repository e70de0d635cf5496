//! What is answered at which address.
//!
//! Over the network a request must be a GET or HEAD and must name a host that is this agent: a
//! page elsewhere that makes its own name point here (DNS rebinding) gets nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::files::{self, AskFiles};
use super::metrics::{MEDIA_TYPE, Metrics};
use super::quarantine::{self, Access};
use super::tap;
use crate::status::{Board, Status};

/// Where the status stands, over the network and on the socket.
pub(super) const STATUS_PATH: &str = "/api/v1/status";

/// The page: one file that loads nothing but the status.
const PAGE: &str = include_str!("page.html");

/// What a browser may do with our answers: nothing but show the page and fetch the status.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// What may be seen, for whoever reaches `address` and asks for this agent.
pub(super) fn network(board: &Board, address: SocketAddr) -> Router {
    let hosts = Arc::new(Hosts::new(&board.status().agent.name, address));
    shown(board).layer(middleware::from_fn_with_state(hosts, guard))
}

/// Everything, for whoever may open the socket.
pub(super) fn local(board: &Board, quarantine: Option<Access>, files: Option<AskFiles>) -> Router {
    let further = [quarantine.map(quarantine::routes), files.map(files::routes)].into_iter().flatten();
    further.fold(shown(board).merge(tap::routes(board.clone())), Router::merge)
}

/// What anybody may see.
fn shown(board: &Board) -> Router {
    let views = Views { board: board.clone(), metrics: Arc::new(Metrics::new(board.clone())) };
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(STATUS_PATH, get(status))
        .with_state(views)
}

#[derive(Clone)]
struct Views {
    board: Board,
    metrics: Arc<Metrics>,
}

async fn ready(State(views): State<Views>) -> (StatusCode, &'static str) {
    if views.board.ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no list is applied yet\n")
    }
}

async fn metrics(State(views): State<Views>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], views.metrics.text())
}

async fn status(State(views): State<Views>) -> Json<Status> {
    Json(views.board.status())
}

async fn guard(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut response = if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        (StatusCode::METHOD_NOT_ALLOWED, allow, "nothing can be changed here\n").into_response()
    } else if !hosts.admit(&request) {
        (StatusCode::FORBIDDEN, hosts.refusal()).into_response()
    } else {
        next.run(request).await
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

/// The names under which the agent may be asked for.
#[derive(Debug)]
struct Hosts {
    /// The agent's name, in lower case.
    name: String,
    /// Whether it may have any domain behind it: yes where others are meant to ask. What listens
    /// on the loopback alone is asked by this host, which needs none.
    domains: bool,
}

impl Hosts {
    fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.to_ascii_lowercase(), domains: !address.ip().is_loopback() }
    }

    /// Whether every host that the request names is this agent. A request that names none comes
    /// from no browser.
    fn admit(&self, request: &Request) -> bool {
        let target = request.uri().authority().map(Authority::as_str);
        let headers = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or(""));
        target.into_iter().chain(headers).all(|host| self.is_ours(host))
    }

    /// Addresses are ours: a foreign page's origin is a name.
    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        if address.parse::<IpAddr>().is_ok() || host == "localhost" || host == self.name {
            return true;
        }
        let domain = host.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('.'));
        self.domains && domain.is_some()
    }

    fn refusal(&self) -> String {
        let domains = if self.domains { " (a domain may follow)" } else { "" };
        format!(
            "this agent does not answer to that host; ask by an IP address, localhost or {}{domains}\n",
            self.name
        )
    }
}
