//! A connection to etcd. The only place that knows the client library's options.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, OpenSslClientConfig, WatchClient};

use super::error::ControlError;
use crate::config::EtcdSettings;

/// Pings on a connection in use. etcd hangs up on pings more often than every 5 s.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// A ping without an answer for so long ends the connection.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);
/// For TCP and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// For one request and its answer.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Bytes. The library's default of 4 MiB fails where several large lists are read at once.
const MESSAGE_BYTES_MOST: usize = 64 * 1024 * 1024;

/// Connects. Unless there is a user to log in, this succeeds without any server: the first call fails.
pub(super) async fn connect(settings: &EtcdSettings) -> Result<Client, ControlError> {
    // Without streams etcd takes pings for an attack.
    let mut options = ConnectOptions::new()
        .with_keep_alive(KEEP_ALIVE_EVERY, KEEP_ALIVE_ANSWER)
        .with_keep_alive_while_idle(false)
        .with_connect_timeout(CONNECT_LIMIT)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let (Some(user), Some(password)) = (&settings.username, &settings.password) {
        options = options.with_user(user, &password.0);
    }
    if let Some(tls) = tls(settings).await? {
        options = options.with_openssl_tls(tls);
    }
    let operation = format!("connect to {}", settings.endpoints.join(", "));
    call(&operation, Client::connect(&settings.endpoints, Some(options))).await
}

async fn tls(settings: &EtcdSettings) -> Result<Option<OpenSslClientConfig>, ControlError> {
    let EtcdSettings { ca_file, cert_file, key_file, .. } = settings;
    if ca_file.is_none() && cert_file.is_none() && key_file.is_none() {
        return Ok(None);
    }
    let (ca, cert, key) = (pem(ca_file).await?, pem(cert_file).await?, pem(key_file).await?);
    Ok(Some(OpenSslClientConfig::default().ca_cert_pem(&ca).client_cert_pem_and_key(&cert, &key)))
}

/// The bytes of a PEM file; none where none is named, which the library takes as "without".
async fn pem(path: &Option<PathBuf>) -> Result<Vec<u8>, ControlError> {
    let read = |path: PathBuf| async move {
        let bytes = tokio::fs::read(&path).await;
        bytes.map_err(|source| ControlError::File { operation: "read", path, source })
    };
    match path.as_deref().map(Path::to_path_buf) {
        Some(path) => read(path).await,
        None => Ok(Vec::new()),
    }
}

/// Reads and writes.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MOST)
}

/// Watches.
pub(super) fn watcher(client: &Client) -> WatchClient {
    client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MOST)
}

/// Waits for an answer, but not for long: the library itself would wait for ever.
pub(super) async fn call<T>(
    operation: &str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, ControlError> {
    match tokio::time::timeout(CALL_LIMIT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ControlError::etcd(operation, error)),
        Err(_) => Err(ControlError::Silent { operation: operation.into(), limit: CALL_LIMIT }),
    }
}
