//! Connections over sockets.

use std::fmt;

use ::tokio::io::Interest;
use ::tokio::sync::Notify;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::watched::{Watched, either, give_way, take_turns};
use crate::codec::serde::encode_for_others;
use crate::connection::{self as plain, RecvError, SendError, TryRecvError};
use crate::error::Result;
use crate::sys::socket;
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// A [`StreamConnection`](crate::StreamConnection) whose waits are `async`.
///
/// A [`Client`](super::Client) and a [`Listener`](super::Listener) make such connections; `new`
/// takes one that was made otherwise.
///
/// # Examples
/// ```
/// use bunshin::tokio::StreamConnection;
/// use std::os::unix::net::UnixStream;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let (here, there) = UnixStream::pair()?;
/// let here = StreamConnection::<Vec<u8>>::new(here.into())?;
/// let there = StreamConnection::<Vec<u8>>::new(there.into())?;
/// // More than a socket holds: the two take turns.
/// let (sent, received) = tokio::join!(here.send(vec![7; 1 << 20]), there.recv());
/// sent?;
/// assert_eq!(received?.len(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamConnection<S = (), R = S> {
    inner: plain::StreamConnection<S, R>,
    /// Readable while there may be a message.
    messages: Watched,
    /// Writable while the socket is.
    socket: Watched,
    /// Rung by a send that was dropped after a part of its message had gone: who waits for
    /// messages sees to the rest.
    left: Notify,
}

/// Rings when it is dropped.
struct Leaving<'a>(Option<&'a Notify>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(left) = self.0 {
            left.notify_one();
        }
    }
}

impl<S, R> StreamConnection<S, R> {
    /// Has the current runtime watch a connection.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(connection: plain::StreamConnection<S, R>) -> Result<Self> {
        let messages = Watched::new(connection.fileno()?, Interest::READABLE)?;
        let socket = Watched::new(connection.link().wire().socket(), Interest::WRITABLE)?;
        Ok(Self {
            inner: connection,
            messages,
            socket,
            left: Notify::new(),
        })
    }

    /// Gives the connection back.
    #[must_use]
    pub fn into_inner(self) -> plain::StreamConnection<S, R> {
        self.inner
    }

    /// Waits until the socket takes more, if it does not.
    async fn room(&self, looks: &mut u32) -> Result<(), Failure> {
        if self.socket.is_writable()? {
            // Another task is at it, or has been quicker.
            give_way(looks).await?;
        } else {
            *looks = 0;
            self.socket.became_writable().await?;
        }
        Ok(())
    }

    async fn send_message(&self, bytes: &[u8]) -> Result<(), Failure> {
        take_turns().await;
        let link = self.inner.link();
        let mut looks = 0;
        loop {
            match link.send(bytes, Patience::Never) {
                Ok(()) => break,
                Err(Failure::NotYet) => self.room(&mut looks).await?,
                Err(failure) => return Err(failure),
            }
        }
        let mut leaving = Leaving(Some(&self.left));
        while !link.flush(Patience::Never)? {
            self.room(&mut looks).await?;
        }
        leaving.0 = None;
        Ok(())
    }

    async fn until<T>(
        &self,
        attempt: impl Fn(&plain::StreamConnection<S, R>) -> Result<T, TryRecvError>,
    ) -> Result<T, RecvError> {
        take_turns().await;
        let mut looks = 0;
        loop {
            match attempt(&self.inner) {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvError::Disconnected),
                Err(TryRecvError::Failed(error)) => return Err(RecvError::Failed(error)),
                Err(TryRecvError::Empty) => {}
            }
            let waited = self.next_look(&mut looks).await;
            waited.map_err(RecvError::Failed)?;
        }
    }

    /// Waits until another attempt to receive is worth making, which also passes on what a
    /// dropped send has left.
    async fn next_look(&self, looks: &mut u32) -> Result<()> {
        let message = self.messages.next_look(looks);
        if self.inner.link().interest() == socket::Interest::Any {
            return either(message, self.socket.became_writable()).await;
        }
        let rest = async {
            self.left.notified().await;
            Ok(())
        };
        either(message, rest).await
    }

    /// Receives a message as bytes.
    ///
    /// Cancel safe, as [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`StreamConnection::recv_bytes`](crate::StreamConnection::recv_bytes).
    pub async fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.until(plain::StreamConnection::try_recv_bytes).await
    }

    /// Sends bytes as one message; see [`send`](Self::send).
    ///
    /// # Errors
    /// As [`StreamConnection::send_bytes`](crate::StreamConnection::send_bytes).
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.send_message(bytes).await;
        sent.map_err(|failure| SendError::new((), failure).into())
    }
}

impl<S: Serialize, R> StreamConnection<S, R> {
    /// Sends a value, waiting until the system has all of it.
    ///
    /// If the future is dropped, the message was not sent, or, if a part of it was, it is as
    /// good as sent: what is left is kept, and goes with the next call, or with a `recv` that
    /// is waiting.
    ///
    /// # Errors
    /// As [`StreamConnection::send`](crate::StreamConnection::send).
    pub async fn send(&self, value: S) -> Result<(), SendError<S>> {
        let sent = match encode_for_others(&value) {
            Ok(bytes) => self.send_message(&bytes).await,
            Err(error) => Err(Failure::Other(error)),
        };
        sent.map_err(|failure| SendError::new(value, failure))
    }
}

impl<S, R: DeserializeOwned> StreamConnection<S, R> {
    /// Receives a value.
    ///
    /// Cancel safe: if the future is dropped before it has given the message, what has come of
    /// it is kept for the next call.
    ///
    /// # Errors
    /// As [`StreamConnection::recv`](crate::StreamConnection::recv).
    pub async fn recv(&self) -> Result<R, RecvError> {
        self.until(plain::StreamConnection::try_recv).await
    }
}

impl<S, R> fmt::Debug for StreamConnection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
