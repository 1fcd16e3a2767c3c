//! The receiving end of a typed pipe.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::outcome::{RecvError, RecvTimeoutError, TryRecvError};
use super::pipe::Memory;
use super::sender::{attach_copy, detach_socket};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::buffer::Buffer;
use crate::codec::serde::{decode, tag};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::ring::End;
use crate::transport::Patience;
use crate::transport::channel::{Failure, Side};
use crate::transport::frame::RAW;
use crate::transport::receiver as untyped;

/// The receiving end of a pipe.
///
/// It can be used from several threads, each message going to one of them, and it can be
/// sent to another process, inside any message. When the sending end is closed or its
/// process dies, what was sent before is still received, then follows `Disconnected`.
///
/// # Examples
/// ```
/// let (sender, receiver) = bunshin::channel()?;
/// for number in 0..3 {
///     sender.send(number)?;
/// }
/// drop(sender);
/// let numbers: Result<Vec<i32>, _> = receiver.iter().collect();
/// assert_eq!(numbers?, [0, 1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver<T> {
    inner: untyped::Receiver,
    memory: Memory,
    tag: u32,
    values: PhantomData<fn() -> T>,
}

impl<T> Receiver<T> {
    pub(crate) fn new(side: Side, memory: Memory, handles: VecDeque<(u64, OwnedFd)>) -> Self {
        Self {
            inner: untyped::Receiver::new(side, handles),
            memory,
            tag: tag::<T>(),
            values: PhantomData,
        }
    }

    /// Receives raw bytes, as [`Sender::send_bytes`](crate::Sender::send_bytes) sent them.
    ///
    /// From 8 KiB on they are not copied: the buffer is memory that the sender filled.
    ///
    /// # Errors
    /// `Disconnected` if the sender is gone and nothing is left; `Failed` if the next message
    /// is a value rather than raw bytes, or corrupt.
    ///
    /// # Source
    /// CPython's `Connection.recv_bytes`.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// sender.send_bytes(b"raw")?;
    /// assert_eq!(receiver.recv_bytes()?, b"raw");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn recv_bytes(&self) -> Result<Buffer<u8>, RecvError> {
        self.bytes(Patience::Forever).map_err(RecvError::from)
    }

    /// Receives raw bytes if there are any.
    ///
    /// # Errors
    /// `Empty` if there is no message; otherwise as [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// assert!(receiver.try_recv_bytes().is_err());
    /// sender.send_bytes(b"raw")?;
    /// assert_eq!(receiver.try_recv_bytes()?, b"raw");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_recv_bytes(&self) -> Result<Buffer<u8>, TryRecvError> {
        self.bytes(Patience::Never).map_err(TryRecvError::from)
    }

    /// Receives raw bytes, waiting for so long at most.
    ///
    /// # Errors
    /// `Timeout` if there was no message in that time; otherwise as
    /// [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// sender.send_bytes(b"raw")?;
    /// assert_eq!(receiver.recv_bytes_timeout(Duration::from_secs(1))?, b"raw");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Buffer<u8>, RecvTimeoutError> {
        self.bytes(Patience::within(timeout))
            .map_err(RecvTimeoutError::from)
    }

    /// Receives raw bytes into memory of the caller's, which is cleared first and grows as
    /// needed. Returns how many came.
    ///
    /// # Errors
    /// As [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Source
    /// CPython's `Connection.recv_bytes_into`; here nothing is ever too short.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// sender.send_bytes(b"raw")?;
    /// let mut bytes = Vec::new();
    /// assert_eq!(receiver.recv_bytes_into(&mut bytes)?, 3);
    /// assert_eq!(bytes, b"raw");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn recv_bytes_into(&self, bytes: &mut Vec<u8>) -> Result<usize, RecvError> {
        let message = self.raw(Patience::Forever)?;
        bytes.clear();
        bytes.extend_from_slice(message.bytes());
        Ok(bytes.len())
    }

    fn raw(&self, patience: Patience) -> Result<untyped::Message, Failure> {
        let message = self.inner.receive(patience)?;
        if message.tag == RAW {
            Ok(message)
        } else {
            Err(Failure::Other(Error::new(
                ErrorKind::TypeMismatch,
                "receive raw bytes from a pipe: the message is a value; use recv for it",
            )))
        }
    }

    fn bytes(&self, patience: Patience) -> Result<Buffer<u8>, Failure> {
        match self.raw(patience)?.into_body() {
            Ok(block) => Buffer::shared(block)
                .map_err(|why| Failure::Other(Error::new(ErrorKind::Corrupt, why))),
            Err(bytes) => Ok(Buffer::from(bytes)),
        }
    }

    /// Waits until there is a message, or the sender is gone; at most so long.
    ///
    /// Takes nothing. False if the time has passed.
    ///
    /// # Errors
    /// `Os` if the system refuses to wait. That the sender is gone is no error here: the
    /// next `recv` tells.
    ///
    /// # Source
    /// CPython's `Connection.poll`.
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// let (sender, receiver) = bunshin::channel::<u8>()?;
    /// assert!(!receiver.poll(Duration::ZERO)?);
    /// sender.send(1)?;
    /// assert!(receiver.poll(Duration::ZERO)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll(&self, timeout: Duration) -> Result<bool> {
        let patience = if timeout.is_zero() {
            Patience::Never
        } else {
            Patience::within(timeout)
        };
        match self.inner.poll(patience) {
            Ok(found) => Ok(found),
            Err(Failure::Disconnected) => Ok(true),
            Err(failure) => Err(failure.into()),
        }
    }

    /// A descriptor for `select`, `poll`, `epoll` or an event loop: readable exactly while
    /// there is a message, or the sender is gone.
    ///
    /// Only to be watched: it must not be read. Asking for it costs two descriptors, and a
    /// little time at each message.
    ///
    /// # Errors
    /// `Os` where the process has too many files open.
    ///
    /// # Source
    /// CPython's `Connection.fileno`.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{channel, wait};
    /// use std::os::fd::AsRawFd;
    ///
    /// let (sender, receiver) = channel()?;
    /// assert!(receiver.fileno()?.as_raw_fd() > 2);
    /// sender.send(7)?;
    /// assert_eq!(wait(&[&receiver], None)?, [0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fileno(&self) -> Result<BorrowedFd<'_>> {
        self.inner.fileno().map_err(Error::from)
    }

    pub(crate) fn untyped(&self) -> &untyped::Receiver {
        &self.inner
    }

    /// What values of the right type are marked with.
    pub(crate) fn tag(&self) -> u32 {
        self.tag
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a value.
    ///
    /// Waits until there is one.
    ///
    /// # Errors
    /// `Disconnected` if the sender is gone and nothing is left; `Failed` if the message is
    /// of another type, or corrupt.
    ///
    /// # Source
    /// CPython's `Connection.recv`.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel()?;
    /// sender.send("a word".to_owned())?;
    /// assert_eq!(receiver.recv()?, "a word");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv(&self) -> Result<T, RecvError> {
        self.value(Patience::Forever).map_err(RecvError::from)
    }

    /// Receives a value if there is one.
    ///
    /// # Errors
    /// `Empty` if there is none; otherwise as [`recv`](Self::recv).
    ///
    /// # Examples
    /// ```
    /// use bunshin::TryRecvError;
    ///
    /// let (sender, receiver) = bunshin::channel::<u8>()?;
    /// assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    /// drop(sender);
    /// assert!(matches!(receiver.try_recv(), Err(TryRecvError::Disconnected)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.value(Patience::Never).map_err(TryRecvError::from)
    }

    /// Receives a value, waiting for so long at most.
    ///
    /// A call that times out has taken nothing.
    ///
    /// # Errors
    /// `Timeout` if there was none in that time; otherwise as [`recv`](Self::recv).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let (sender, receiver) = bunshin::channel()?;
    /// assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
    /// sender.send(7)?;
    /// assert_eq!(receiver.recv_timeout(Duration::from_secs(1))?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.value(Patience::within(timeout))
            .map_err(RecvTimeoutError::from)
    }

    fn value(&self, patience: Patience) -> Result<T, Failure> {
        let mut message = self.inner.receive(patience)?;
        if message.tag != self.tag {
            return Err(Failure::Other(Error::new(
                ErrorKind::TypeMismatch,
                format!(
                    "receive a value of type {}: the message is {}",
                    std::any::type_name::<T>(),
                    if message.tag == RAW {
                        "raw bytes; use recv_bytes for them"
                    } else {
                        "of another type"
                    }
                ),
            )));
        }
        let mut incoming = std::mem::take(&mut message.incoming);
        decode(message.bytes(), &mut incoming).map_err(Failure::Other)
    }

    /// Receives values until the sender is gone.
    ///
    /// An item is an error where a message could not be decoded; the next ones still come.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel()?;
    /// sender.send(1)?;
    /// sender.send(2)?;
    /// drop(sender);
    /// assert_eq!(receiver.iter().sum::<Result<i32, _>>()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T> {
        Iter {
            receiver: self,
            is_over: false,
        }
    }
}

/// The values that a [`Receiver`] receives until its sender is gone.
///
/// # Examples
/// ```
/// let (sender, receiver) = bunshin::channel()?;
/// sender.send(1)?;
/// let mut values = receiver.iter();
/// assert_eq!(values.next().transpose()?, Some(1));
/// drop(sender);
/// assert!(values.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T> {
    receiver: &'a Receiver<T>,
    is_over: bool,
}

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        match self.receiver.recv() {
            Ok(value) => Some(Ok(value)),
            Err(RecvError::Disconnected) => {
                self.is_over = true;
                None
            }
            Err(RecvError::Failed(error)) => {
                // After a corrupt frame nothing can be found any more.
                self.is_over = error.kind() == ErrorKind::Corrupt;
                Some(Err(error))
            }
        }
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Receiver<T> {
    type Item = Result<T>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver<{}>", std::any::type_name::<T>())
    }
}

/// A receiver on its trip; the numbers are indices of handles.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReceiverForm {
    tag: u32,
    side: u8,
    memory: u32,
    socket: u32,
    /// Handles of messages that have not been received yet.
    pending: Vec<(u64, u32)>,
}

impl<T> Receiver<T> {
    pub(crate) fn depart(&self, memory: Option<u32>) -> Result<ReceiverForm> {
        let memory = match memory {
            Some(memory) => memory,
            None => attach_copy(&*self.memory.segment)?,
        };
        let socket = attach_copy(&self.inner.side.socket)?;
        // First: from here on, handles stay in the socket until their frame is taken.
        self.inner.side.depart();
        let pending = self
            .inner
            .copy_pending()?
            .into_iter()
            .map(|(lot, handle)| Ok((lot, Outgoing::attach(handle)?)))
            .collect::<Result<_>>()?;
        Ok(ReceiverForm {
            tag: self.tag,
            side: self.memory.side,
            memory,
            socket,
            pending,
        })
    }

    pub(crate) fn arrive(form: &ReceiverForm, memory: Option<Memory>) -> Result<Self> {
        if form.tag != tag::<T>() {
            return Err(Error::new(
                ErrorKind::TypeMismatch,
                format!(
                    "a receiver of another type arrived as Receiver<{}>",
                    std::any::type_name::<T>()
                ),
            ));
        }
        let memory = match memory {
            Some(memory) => memory,
            None => Memory::attach(Incoming::detach(form.memory)?, form.side)?,
        };
        let pending = form
            .pending
            .iter()
            .map(|(lot, index)| Ok((*lot, Incoming::detach(*index)?)))
            .collect::<Result<_>>()?;
        let side = memory.end(End::Receiver, detach_socket(form.socket)?, None);
        Ok(Self::new(side, memory, pending))
    }
}

impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.depart(None)
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = ReceiverForm::deserialize(deserializer)?;
        Self::arrive(&form, None).map_err(D::Error::custom)
    }
}
