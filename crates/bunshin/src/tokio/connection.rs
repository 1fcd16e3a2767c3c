//! Ends of pipes.

use std::fmt;

use ::tokio::io::Interest;
use ::tokio::sync::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::watched::{Watched, give_way, take_turns};
use crate::codec::buffer::Buffer;
use crate::connection::{self as plain, RecvError, SendError, TryRecvError, TrySendError};
use crate::error::Result;
use crate::transport::channel::Failure;
use crate::transport::sender::Room;

/// A [`Receiver`](crate::Receiver) whose waits are `async`.
///
/// Several tasks can receive at a time, and each message goes to one of them.
///
/// # Errors
/// As those of [`Receiver`](crate::Receiver): when the sending end is closed or its process
/// dies, what was sent before is still received, then follows `Disconnected`. An end is to be
/// awaited in one process at a time: where another process has a copy of it and receives too,
/// each may take the other's wake-ups. Share a [`Queue`](crate::Queue) instead.
///
/// # Examples
/// ```
/// use bunshin::tokio::Receiver;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let (sender, receiver) = bunshin::channel()?;
/// let receiver = Receiver::new(receiver)?;
/// std::thread::spawn(move || sender.send("from another thread".to_owned()));
/// assert_eq!(receiver.recv().await?, "from another thread");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver<T> {
    inner: plain::Receiver<T>,
    watched: Watched,
}

impl<T> Receiver<T> {
    /// Has the current runtime watch an end.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(receiver: plain::Receiver<T>) -> Result<Self> {
        let watched = Watched::new(receiver.fileno()?, Interest::READABLE)?;
        Ok(Self {
            inner: receiver,
            watched,
        })
    }

    /// Gives the end back, for another runtime or for a message.
    #[must_use]
    pub fn into_inner(self) -> plain::Receiver<T> {
        self.inner
    }

    /// Waits for a message until `attempt` finds one, or fails otherwise.
    async fn until<R>(
        &self,
        attempt: impl Fn(&plain::Receiver<T>) -> Result<R, TryRecvError>,
    ) -> Result<R, RecvError> {
        take_turns().await;
        let mut looks = 0;
        loop {
            match attempt(&self.inner) {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvError::Disconnected),
                Err(TryRecvError::Failed(error)) => return Err(RecvError::Failed(error)),
                Err(TryRecvError::Empty) => {}
            }
            let waited = if self.inner.untyped().side.is_in_use() {
                give_way(&mut looks).await
            } else {
                self.watched.next_look(&mut looks).await
            };
            waited.map_err(RecvError::Failed)?;
        }
    }

    /// Receives raw bytes; see [`Receiver::recv_bytes`](crate::Receiver::recv_bytes).
    ///
    /// Cancel safe, as [`recv`](Self::recv).
    ///
    /// # Errors
    /// As there.
    pub async fn recv_bytes(&self) -> Result<Buffer<u8>, RecvError> {
        self.until(plain::Receiver::try_recv_bytes).await
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a value.
    ///
    /// Cancel safe: if the future is dropped before it has given the message, the message is
    /// still there, and the next call receives it.
    ///
    /// # Errors
    /// As [`Receiver::recv`](crate::Receiver::recv).
    pub async fn recv(&self) -> Result<T, RecvError> {
        self.until(plain::Receiver::try_recv).await
    }

    /// Receives a value if there is one.
    ///
    /// # Errors
    /// As [`Receiver::try_recv`](crate::Receiver::try_recv).
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.inner.try_recv()
    }
}

/// A [`Sender`](crate::Sender) whose waits are `async`.
///
/// Several tasks can send at a time; of those that wait for room, the first goes first.
///
/// # Examples
/// ```
/// use bunshin::tokio::{Receiver, Sender};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let (sender, receiver) = bunshin::channel()?;
/// let (sender, receiver) = (Sender::new(sender)?, Receiver::new(receiver)?);
/// // More than a pipe holds: the two take turns.
/// let send = async {
///     for number in 0..100_000 {
///         sender.send(number).await.expect("it is received");
///     }
/// };
/// let receive = async {
///     for number in 0..100_000 {
///         assert_eq!(receiver.recv().await.expect("it is sent"), number);
///     }
/// };
/// tokio::join!(send, receive);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender<T> {
    inner: plain::Sender<T>,
    watched: Watched,
    /// Whose turn it is to wait for room. The receiver rings once, and who looks answers it: of
    /// several that wait, the others would not be woken.
    turn: Mutex<()>,
}

impl<T> Sender<T> {
    /// Has the current runtime watch an end.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(sender: plain::Sender<T>) -> Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let watched = Watched::new(sender.socket(), both)?;
        Ok(Self {
            inner: sender,
            watched,
            turn: Mutex::new(()),
        })
    }

    /// Gives the end back, for another runtime or for a message.
    #[must_use]
    pub fn into_inner(self) -> plain::Sender<T> {
        self.inner
    }

    /// Whether the receiving end is closed, or its process is dead.
    pub fn is_disconnected(&self) -> bool {
        self.inner.is_disconnected()
    }

    /// Waits until a message of so many bytes is worth another attempt. `had_room` is whether
    /// there was room for it before, and it could not be sent all the same.
    async fn room(&self, span: usize, had_room: &mut bool, looks: &mut u32) -> Result<(), Failure> {
        loop {
            match self.inner.untyped().ask_for_room(span)? {
                Room::There if !std::mem::replace(had_room, true) => return Ok(()),
                Room::There if self.watched.is_writable()? => {
                    // Another task has been quicker.
                    return Ok(give_way(looks).await?);
                }
                // It has handles, and they wait for room in the socket.
                Room::There => return Ok(self.watched.became_writable().await?),
                Room::InUse => give_way(looks).await?,
                Room::Asked => {
                    *had_room = false;
                    self.watched.became_readable().await?;
                }
            }
        }
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a value, waiting while the pipe is full.
    ///
    /// Cancel safe in so far as it is sent wholly or not at all; if the future is dropped
    /// before it is done, it was not sent, and the value is dropped.
    ///
    /// # Errors
    /// As [`Sender::send`](crate::Sender::send).
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        take_turns().await;
        let (mut had_room, mut looks) = (false, 0);
        let mut turn = None;
        loop {
            let mut span = 0;
            match self.inner.try_send_spanning(&value, &mut span) {
                Ok(()) => return Ok(()),
                Err(Failure::NotYet) => {}
                Err(failure) => return Err(SendError::new(value, failure)),
            }
            if turn.is_none() {
                turn = Some(self.turn.lock().await);
                continue;
            }
            if let Err(failure) = self.room(span, &mut had_room, &mut looks).await {
                return Err(SendError::new(value, failure));
            }
        }
    }

    /// Sends a value if that takes no waiting.
    ///
    /// # Errors
    /// As [`Sender::try_send`](crate::Sender::try_send).
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.inner.try_send(value)
    }
}

/// A [`Connection`](crate::Connection) whose waits are `async`: a [`Sender`] and a [`Receiver`]
/// in one.
///
/// # Examples
/// ```
/// use bunshin::tokio::Connection;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let (here, there) = bunshin::pipe()?;
/// let (here, there) = (Connection::new(here)?, Connection::new(there)?);
/// here.send(20).await?;
/// there.send(there.recv().await? + 1).await?;
/// assert_eq!(here.recv().await?, 21);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Connection<S, R = S> {
    sender: Sender<S>,
    receiver: Receiver<R>,
}

impl<S, R> Connection<S, R> {
    /// Has the current runtime watch a connection.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(connection: plain::Connection<S, R>) -> Result<Self> {
        let (sender, receiver) = connection.split();
        Ok(Self {
            sender: Sender::new(sender)?,
            receiver: Receiver::new(receiver)?,
        })
    }

    /// Gives the connection back, for another runtime or for a message.
    #[must_use]
    pub fn into_inner(self) -> plain::Connection<S, R> {
        plain::Connection::join(self.sender.into_inner(), self.receiver.into_inner())
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (Sender<S>, Receiver<R>) {
        (self.sender, self.receiver)
    }

    /// Receives raw bytes; see [`Receiver::recv_bytes`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv_bytes(&self) -> Result<Buffer<u8>, RecvError> {
        self.receiver.recv_bytes().await
    }
}

impl<S: Serialize, R> Connection<S, R> {
    /// Sends a value; see [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.send(value).await
    }
}

impl<S, R: DeserializeOwned> Connection<S, R> {
    /// Receives a value; see [`Receiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&self) -> Result<R, RecvError> {
        self.receiver.recv().await
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sender, receiver) = (&self.sender, &self.receiver);
        write!(f, "Connection({sender:?}, {receiver:?})")
    }
}
