//! A listener that bounds what its clients can cost: how many there are, and how long one may
//! leave its connection idle. Without it, whoever can connect could use up the agent's file
//! descriptors.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections served at once; more wait in the kernel's queue. A scraper, a few pages and
/// commands need a handful.
const CONNECTIONS_MAX: usize = 32;

/// How long a client may neither ask nor take its answer. Scrapers ask every minute or more often.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(75);

/// A listener with at most [`CONNECTIONS_MAX`] connections, all of which `admits` said yes to.
pub(super) struct Bounded<L: Listener> {
    listener: L,
    free: Arc<Semaphore>,
    admits: fn(&L::Io) -> bool,
}

impl<L: Listener> Bounded<L> {
    pub(super) fn new(listener: L, admits: fn(&L::Io) -> bool) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(CONNECTIONS_MAX)), admits }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            let (io, address) = self.listener.accept().await;
            if (self.admits)(&io) {
                return (Connection::new(io, IDLE_MAX, permit), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when it was idle for `idle_max`. What a client sends does not make
/// it less idle, or a byte a minute would keep it; answers that it takes do.
pub(super) struct Connection<Io> {
    io: Io,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    _permit: OwnedSemaphorePermit,
}

impl<Io> Connection<Io> {
    fn new(io: Io, idle_max: Duration, permit: OwnedSemaphorePermit) -> Self {
        Self { io, idle: Box::pin(sleep(idle_max)), idle_max, _permit: permit }
    }

    /// What `poll` came to, or an error if nothing happened for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            return poll;
        }
        ready!(self.idle.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Connection<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_read(context, buffer);
        self.in_time(context, poll)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(context, bytes);
        if poll.is_ready() {
            let end = Instant::now() + self.idle_max;
            self.idle.as_mut().reset(end);
        }
        self.in_time(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_flush(context);
        self.in_time(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_shutdown(context);
        self.in_time(context, poll)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn listener() -> (Bounded<TcpListener>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded::new(listener, |_| true), address)
    }

    #[tokio::test]
    async fn one_more_connection_waits_until_another_ends() {
        let (mut bounded, address) = listener().await;
        let (mut clients, mut served) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS_MAX {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(bounded.accept().await.0);
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, bounded.accept()).await.is_err());
        served.pop();
        tokio::time::timeout(Duration::from_secs(10), bounded.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_is_not_admitted_is_closed() {
        let (mut bounded, address) = listener().await;
        bounded.admits = |stream| stream.peer_addr().unwrap().ip() == std::net::Ipv4Addr::new(127, 0, 0, 2);
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let friend = tokio::net::TcpSocket::new_v4().unwrap();
        friend.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let _friend = friend.connect(address).await.unwrap();
        let (_, accepted) = bounded.accept().await;
        assert_eq!(accepted.ip(), std::net::Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0);
    }

    const IDLE: Duration = Duration::from_millis(200);

    fn connection() -> (Connection<DuplexStream>, DuplexStream) {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (io, client) = duplex(64);
        (Connection::new(io, IDLE, permit), client)
    }

    #[tokio::test]
    async fn a_client_that_sends_a_byte_now_and_then_is_idle_all_the_same() {
        let (mut server, mut client) = connection();
        let drip = async {
            while client.write_all(b"x").await.is_ok() {
                sleep(IDLE / 4).await;
            }
        };
        let read = async {
            let error = loop {
                if let Err(error) = server.read_exact(&mut [0]).await {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(server);
        };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(drip, read) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_its_answers_may_stay() {
        let (mut server, mut client) = connection();
        for _ in 0..8 {
            sleep(IDLE / 4).await;
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        let answer = async {
            tokio::task::yield_now().await;
            client.write_all(b"y").await.unwrap();
        };
        let (read, ()) = tokio::join!(biased; async { server.read_exact(&mut [0]).await }, answer);
        read.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_is_cut_off() {
        let (mut server, _client) = connection();
        let error = server.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
