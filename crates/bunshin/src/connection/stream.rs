//! A typed connection over a socket, to a program that need not be this one.

use std::fmt;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::Address;
use super::greeting::MESSAGE_LIMIT;
use super::outcome::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use super::sender::{attach_copy, detach_socket};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::{decode_of_others, encode_for_others};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::network;
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::link::Link;
use crate::transport::prefixed::Reader;
use crate::transport::wire::Wire;

/// A connection that a [`Listener`](crate::Listener) accepted or a [`Client`](crate::Client)
/// made.
///
/// Each message is the bytes of one `send`, behind their length, which is what CPython's
/// `multiprocessing.connection.Connection` sends with `send_bytes`. Values are in
/// MessagePack with named fields; a message does not say whether it is a value, and of which
/// type. What travels as a handle (ends of pipes, locks, shared values) cannot be sent over
/// it; a [`Buffer`](crate::Buffer) goes as plain bytes.
///
/// It can be used from several threads, one sending while another receives, and it can be
/// sent to another process of this program, inside of any message of a pipe, unless it is
/// under TLS. Where two processes have it, as after a fork, only one may use it, as their
/// messages would mix.
///
/// Once the peer has [closed](Self::close) it, or no process has the peer's end any more, and
/// all that was sent has been received, it is `Disconnected`. A peer on a machine that vanished is noticed after about two minutes.
///
/// # Examples
/// ```
/// use std::os::unix::net::UnixStream;
/// use bunshin::StreamConnection;
///
/// let (here, there) = UnixStream::pair()?;
/// let here = StreamConnection::<Vec<f64>, String>::from(here);
/// let there = StreamConnection::<String, Vec<f64>>::from(there);
/// here.send(vec![1.0, 2.0])?;
/// there.send(format!("sum: {}", there.recv()?.iter().sum::<f64>()))?;
/// assert_eq!(here.recv()?, "sum: 3");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamConnection<S = (), R = S> {
    link: Link,
    peer: Address,
    values: PhantomData<fn(S) -> R>,
}

impl<S, R> StreamConnection<S, R> {
    pub(crate) fn new(link: Link, peer: Address) -> Self {
        Self {
            link,
            peer,
            values: PhantomData,
        }
    }

    fn over(socket: OwnedFd) -> Self {
        let peer = network::peer(socket.as_fd()).map_or(Address::Unnamed, Address::from);
        Self::new(Link::new(Wire::plain(socket), MESSAGE_LIMIT), peer)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// What carries the messages, and where its other end is.
    pub(crate) fn into_link(self) -> (Link, Address) {
        (self.link, self.peer)
    }

    /// The same connection for values of other types.
    #[must_use]
    pub fn with_types<S2, R2>(self) -> StreamConnection<S2, R2> {
        StreamConnection::new(self.link, self.peer)
    }

    /// Where the other end is.
    pub fn peer_addr(&self) -> &Address {
        &self.peer
    }

    /// Sends bytes as one message.
    ///
    /// Waits until the system has taken all of them.
    ///
    /// # Errors
    /// `Disconnected` if the peer is gone, `InvalidInput` if they are more than the longest
    /// message may have.
    ///
    /// # Source
    /// CPython's `Connection.send_bytes`.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.link
            .send(bytes, Patience::Forever)
            .map_err(|failure| SendError::new((), failure).into())
    }

    /// Sends bytes as one message if that can begin without waiting.
    ///
    /// A message of which a part has gone is as good as sent: what is left is kept, and the
    /// next calls that send or receive pass it on, or [`flush`](Self::flush) does.
    ///
    /// # Errors
    /// `Full` if nothing of it was sent, as there is no room; otherwise as
    /// [`send_bytes`](Self::send_bytes).
    pub fn try_send_bytes(&self, bytes: &[u8]) -> Result<(), TrySendError<()>> {
        self.link
            .send(bytes, Patience::Never)
            .map_err(|failure| TrySendError::new((), failure))
    }

    /// Sends bytes as one message, waiting for room for so long at most.
    ///
    /// A message of which a part has gone in that time is as good as sent; see
    /// [`try_send_bytes`](Self::try_send_bytes).
    ///
    /// # Errors
    /// As [`try_send_bytes`](Self::try_send_bytes).
    pub fn send_bytes_timeout(
        &self,
        bytes: &[u8],
        timeout: Duration,
    ) -> Result<(), TrySendError<()>> {
        self.link
            .send(bytes, Patience::within(timeout))
            .map_err(|failure| TrySendError::new((), failure))
    }

    /// Passes on what calls with a time limit have left over, waiting for so long at most.
    ///
    /// True if the system has everything now.
    ///
    /// # Errors
    /// `Disconnected` if the peer is gone.
    pub fn flush(&self, timeout: Duration) -> Result<bool> {
        Ok(self.link.flush(Patience::within(timeout))?)
    }

    /// Ends the connection, for all processes that have it.
    ///
    /// Dropping it gives up this process's copy; the peer sees the end once there is no copy
    /// left, and a child that was forked while the connection was open has one.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{RecvError, StreamConnection};
    ///
    /// let (here, there) = std::os::unix::net::UnixStream::pair()?;
    /// let (here, there): (StreamConnection, StreamConnection) = (here.into(), there.into());
    /// here.close();
    /// assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(self) {
        self.link.close();
    }

    /// Receives a message as bytes.
    ///
    /// # Errors
    /// `Disconnected` if the peer is gone and nothing is left. `Failed`, with kind
    /// `Disconnected`, if it went in the middle of a message; with kind `Corrupt`, from then
    /// on, if what it sends is no message or longer than allowed; with kind `OutOfMemory`, and
    /// the message is still there.
    ///
    /// # Source
    /// CPython's `Connection.recv_bytes`.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        Ok(self.link.receive(Patience::Forever)?)
    }

    /// Receives a message as bytes if one is there, wholly.
    ///
    /// # Errors
    /// `Empty` if not; otherwise as [`recv_bytes`](Self::recv_bytes).
    pub fn try_recv_bytes(&self) -> Result<Vec<u8>, TryRecvError> {
        Ok(self.link.receive(Patience::Never)?)
    }

    /// Receives a message as bytes, waiting for so long at most.
    ///
    /// A call that times out has taken nothing: the part of a message that had come is kept
    /// for the next.
    ///
    /// # Errors
    /// `Timeout`; otherwise as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        Ok(self.link.receive(Patience::within(timeout))?)
    }

    /// Waits until a message is there, wholly, or the peer is gone; at most so long.
    ///
    /// Takes nothing. False if the time has passed.
    ///
    /// # Errors
    /// `Os` if the system refuses to wait, `OutOfMemory` if the message has no room. That
    /// the peer is gone is no error here: the next `recv` tells.
    ///
    /// # Source
    /// CPython's `Connection.poll`.
    pub fn poll(&self, timeout: Duration) -> Result<bool> {
        self.link.poll(if timeout.is_zero() {
            Patience::Never
        } else {
            Patience::within(timeout)
        })
    }

    /// A descriptor for `select`, `poll`, `epoll` or an event loop: readable while there is a
    /// message or a part of one, or the peer is gone. `try_recv` then says which.
    ///
    /// Only to be watched: it must not be read. Asking for it costs two descriptors.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Source
    /// CPython's `Connection.fileno`.
    pub fn fileno(&self) -> Result<BorrowedFd<'_>> {
        self.link.fileno()
    }
}

impl<S: Serialize, R> StreamConnection<S, R> {
    /// Sends a value.
    ///
    /// Waits until the system has taken all of it.
    ///
    /// # Errors
    /// `Disconnected` if the peer is gone; `Failed` if the value cannot be encoded, holds a
    /// handle, or is longer than a message may be. The value comes back.
    pub fn send(&self, value: S) -> Result<(), SendError<S>> {
        self.send_value(&value, Patience::Forever)
            .map_err(|failure| SendError::new(value, failure))
    }

    /// Sends a value if that can begin without waiting; see
    /// [`try_send_bytes`](Self::try_send_bytes) for what becomes of the rest.
    ///
    /// # Errors
    /// `Full` if there is no room, and nothing was sent; otherwise as [`send`](Self::send).
    pub fn try_send(&self, value: S) -> Result<(), TrySendError<S>> {
        self.send_value(&value, Patience::Never)
            .map_err(|failure| TrySendError::new(value, failure))
    }

    /// Sends a value, waiting for room for so long at most; see
    /// [`try_send_bytes`](Self::try_send_bytes) for what becomes of the rest.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub fn send_timeout(&self, value: S, timeout: Duration) -> Result<(), TrySendError<S>> {
        self.send_value(&value, Patience::within(timeout))
            .map_err(|failure| TrySendError::new(value, failure))
    }

    fn send_value(&self, value: &S, patience: Patience) -> Result<(), Failure> {
        let bytes = encode_for_others(value).map_err(Failure::Other)?;
        self.link.send(&bytes, patience)
    }
}

impl<S, R: DeserializeOwned> StreamConnection<S, R> {
    /// Receives a value.
    ///
    /// # Errors
    /// `Failed` with kind `Decode` if the message is no such value; it is taken. Otherwise as
    /// [`recv_bytes`](Self::recv_bytes).
    pub fn recv(&self) -> Result<R, RecvError> {
        Ok(self.value(Patience::Forever)?)
    }

    /// Receives a value if one is there, wholly.
    ///
    /// # Errors
    /// `Empty` if not; otherwise as [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<R, TryRecvError> {
        Ok(self.value(Patience::Never)?)
    }

    /// Receives a value, waiting for so long at most.
    ///
    /// A call that times out has taken nothing.
    ///
    /// # Errors
    /// `Timeout`; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, RecvTimeoutError> {
        Ok(self.value(Patience::within(timeout))?)
    }

    fn value(&self, patience: Patience) -> Result<R, Failure> {
        let bytes = self.link.receive(patience)?;
        decode_of_others(&bytes).map_err(Failure::Other)
    }
}

impl<S, R> From<UnixStream> for StreamConnection<S, R> {
    fn from(socket: UnixStream) -> Self {
        Self::over(socket.into())
    }
}

impl<S, R> From<TcpStream> for StreamConnection<S, R> {
    fn from(socket: TcpStream) -> Self {
        Self::over(socket.into())
    }
}

impl<S, R> fmt::Debug for StreamConnection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sends, receives) = (std::any::type_name::<S>(), std::any::type_name::<R>());
        write!(f, "StreamConnection<{sends}, {receives}>({})", self.peer)
    }
}

/// A connection on its trip: its socket as an index of a handle, and what this process knows
/// and the socket does not.
#[derive(Serialize, Deserialize)]
struct StreamForm {
    socket: u32,
    limit: u64,
    #[serde(with = "whole")]
    begun: Vec<u8>,
    #[serde(with = "whole")]
    unsent: Vec<u8>,
}

/// Bytes as one run, not one by one.
mod whole {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::codec::buffer::Buffer;

    pub(super) fn serialize<Z: Serializer>(bytes: &[u8], to: Z) -> Result<Z::Ok, Z::Error> {
        Buffer::from(bytes).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Buffer::deserialize(from).map(Buffer::into_vec)
    }
}

impl<S, R> StreamConnection<S, R> {
    fn depart(&self) -> Result<StreamForm> {
        if self.link.wire().is_secured() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a connection under TLS cannot be sent: its keys belong to this process",
            ));
        }
        let (begun, unsent) = self.link.state()?;
        Ok(StreamForm {
            socket: attach_copy(&self.link.wire().socket())?,
            limit: self.link.limit() as u64,
            begun,
            unsent,
        })
    }

    fn arrive(form: StreamForm) -> Result<Self> {
        let socket = detach_socket(form.socket)?;
        let limit = usize::try_from(form.limit).unwrap_or(usize::MAX);
        let reader = Reader::resume(limit, &form.begun)?;
        let peer = network::peer(socket.as_fd()).map_or(Address::Unnamed, Address::from);
        let link = Link::resume(Wire::plain(socket), limit, reader, form.unsent);
        Ok(Self::new(link, peer))
    }
}

impl<S, R> Serialize for StreamConnection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.depart()
            .map_err(|error| Z::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for StreamConnection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !Incoming::is_providing() {
            return Err(D::Error::custom(
                "a connection comes only in messages of pipes",
            ));
        }
        let form = StreamForm::deserialize(deserializer)?;
        Self::arrive(form).map_err(D::Error::custom)
    }
}
