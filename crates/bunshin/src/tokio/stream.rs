//! Connections over sockets.

use std::fmt;

use ::tokio::io::Interest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::watched::{Watched, give_way, take_turns};
use crate::codec::serde::encode_for_others;
use crate::connection::{self as plain, RecvError, SendError, TryRecvError};
use crate::error::Result;
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// A [`StreamConnection`](crate::StreamConnection) whose waits are `async`.
///
/// Making connections takes a few messages each way, in [`Client::connect`](crate::Client::connect)
/// and [`Listener::accept`](crate::Listener::accept): leave those to `spawn_blocking`, or to a
/// thread.
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
        while !link.flush(Patience::Never)? {
            self.room(&mut looks).await?;
        }
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
            let waited = self.messages.next_look(&mut looks).await;
            waited.map_err(RecvError::Failed)?;
        }
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
    /// good as sent: what is left is kept, and goes with the next calls.
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
