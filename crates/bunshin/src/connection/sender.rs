//! The sending end of a typed pipe.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::outcome::{SendError, TrySendError};
use super::pipe::Memory;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::{encode, tag};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::ring::End;
use crate::sys::socket;
use crate::transport::Patience;
use crate::transport::channel::{Failure, Side};
use crate::transport::frame::{INSIDE_MAX, RAW};
use crate::transport::sender as untyped;

thread_local! {
    /// The last message's bytes, for the next one.
    static SPARE: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

/// Encoded messages up to this size leave their memory for the next one.
const SPARE_MAX: usize = 1 << 20;

/// The sending end of a pipe.
///
/// It can be used from several threads, and it can be sent to another process, inside
/// any message. When the receiving end is closed or its process dies, sending fails
/// with `Disconnected`.
///
/// In a child that [`scope`](crate::scope) or [`fork`](crate::fork) makes, the first use of
/// an inherited end makes it the child's; the child's copy of the other end is then closed.
///
/// # Examples
/// ```
/// let (sender, receiver) = bunshin::channel()?;
/// sender.send(vec![1, 2, 3])?;
/// assert_eq!(receiver.recv()?, [1, 2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender<T> {
    inner: untyped::Sender,
    memory: Memory,
    tag: u32,
    values: PhantomData<fn(T)>,
}

impl<T> Sender<T> {
    pub(crate) fn new(side: Side, memory: Memory) -> Self {
        Self {
            inner: untyped::Sender::new(side),
            memory,
            tag: tag::<T>(),
            values: PhantomData,
        }
    }

    /// Sends raw bytes, which [`Receiver::recv_bytes`](crate::Receiver::recv_bytes) receives.
    ///
    /// Waits while the pipe is full.
    ///
    /// # Errors
    /// `Disconnected` if the receiver is gone, `OutOfMemory`.
    ///
    /// # Source
    /// CPython's `Connection.send_bytes`.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// sender.send_bytes(b"raw")?;
    /// assert_eq!(receiver.recv_bytes()?, b"raw");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.bytes(bytes, Patience::Forever)
            .map_err(|failure| Error::from(SendError::new((), failure)))
    }

    pub(super) fn bytes(&self, bytes: &[u8], patience: Patience) -> Result<(), Failure> {
        // Short ones lie in the ring itself.
        let heap = (bytes.len() > INSIDE_MAX).then(|| self.memory.heap.clone());
        let mut outgoing = Outgoing::new(heap);
        self.inner.send(RAW, bytes, &mut outgoing, patience)
    }

    /// Whether the receiving end is closed, or its process is dead.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<u8>()?;
    /// assert!(!sender.is_disconnected());
    /// drop(receiver);
    /// assert!(sender.is_disconnected());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn is_disconnected(&self) -> bool {
        self.inner.is_disconnected()
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a value.
    ///
    /// Waits while the pipe is full. If the receiver dies later, what was sent and not
    /// received is lost with it.
    ///
    /// # Errors
    /// `Disconnected` if the receiver is gone; `Failed` if the value cannot be encoded, or
    /// there is no memory for it. The value comes back, and nothing of it was sent.
    ///
    /// # Source
    /// CPython's `Connection.send`.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<u8>()?;
    /// drop(receiver);
    /// assert_eq!(sender.send(7).unwrap_err().into_inner(), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_value(&value, Patience::Forever)
            .map_err(|failure| SendError::new(value, failure))
    }

    /// Sends a value if that takes no waiting.
    ///
    /// # Errors
    /// `Full` if the pipe has no room; otherwise as [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// use bunshin::TrySendError;
    ///
    /// let (sender, receiver) = bunshin::channel()?;
    /// let sent = (0..).take_while(|number: &u64| sender.try_send(*number).is_ok()).count();
    /// assert!(sent > 0);
    /// assert!(matches!(sender.try_send(0), Err(TrySendError::Full(0))));
    /// assert_eq!(receiver.recv()?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.send_value(&value, Patience::Never)
            .map_err(|failure| TrySendError::new(value, failure))
    }

    /// Sends a value, waiting for room for so long at most.
    ///
    /// # Errors
    /// `Full` if the pipe had no room in that time; otherwise as [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let (sender, receiver) = bunshin::channel()?;
    /// sender.send_timeout(7, Duration::from_secs(1))?;
    /// assert_eq!(receiver.recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), TrySendError<T>> {
        self.send_value(&value, Patience::within(timeout))
            .map_err(|failure| TrySendError::new(value, failure))
    }

    fn send_value(&self, value: &T, patience: Patience) -> Result<(), Failure> {
        self.send_value_spanning(value, patience, &mut 0)
    }

    /// Sends a value if that takes no waiting; says how many bytes of the pipe it takes.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_send_spanning(&self, value: &T, span: &mut usize) -> Result<(), Failure> {
        self.send_value_spanning(value, Patience::Never, span)
    }

    fn send_value_spanning(
        &self,
        value: &T,
        patience: Patience,
        span: &mut usize,
    ) -> Result<(), Failure> {
        let mut bytes = SPARE.take();
        bytes.clear();
        let mut outgoing = Outgoing::new(Some(self.memory.heap.clone()));
        let result = match encode(value, &mut bytes, &mut outgoing) {
            Ok(()) => self
                .inner
                .send_spanning(self.tag, &bytes, &mut outgoing, patience, span),
            Err(error) => {
                outgoing.discard();
                Err(Failure::Other(error))
            }
        };
        if bytes.capacity() <= SPARE_MAX {
            SPARE.set(bytes);
        }
        result
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender<{}>", std::any::type_name::<T>())
    }
}

/// A sender on its trip; the numbers are indices of handles.
#[derive(Serialize, Deserialize)]
pub(crate) struct SenderForm {
    tag: u32,
    side: u8,
    memory: u32,
    socket: u32,
}

/// Duplicates a handle for a message.
pub(crate) fn attach_copy(fd: &impl AsFd) -> Result<u32> {
    Outgoing::attach(
        socket::duplicate(fd.as_fd()).map_err(|error| Error::os("duplicate a handle", error))?,
    )
}

/// Takes a stream socket out of the message that is being decoded.
pub(crate) fn detach_socket(index: u32) -> Result<OwnedFd> {
    let fd = Incoming::detach(index)?;
    if !socket::is_stream(&fd) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "a pipe's handle is not a socket",
        ));
    }
    Ok(fd)
}

impl<T> Sender<T> {
    /// The form in a message whose handles include `memory`, if that is known already.
    pub(crate) fn depart(&self, memory: Option<u32>) -> Result<SenderForm> {
        let memory = match memory {
            Some(memory) => memory,
            None => attach_copy(&*self.memory.segment)?,
        };
        let socket = attach_copy(&self.inner.side.socket)?;
        self.inner.side.depart();
        Ok(SenderForm {
            tag: self.tag,
            side: self.memory.side,
            memory,
            socket,
        })
    }

    pub(crate) fn arrive(form: &SenderForm, memory: Option<Memory>) -> Result<Self> {
        if form.tag != tag::<T>() {
            return Err(Error::new(
                ErrorKind::TypeMismatch,
                format!(
                    "a sender of another type arrived as Sender<{}>",
                    std::any::type_name::<T>()
                ),
            ));
        }
        let memory = match memory {
            Some(memory) => memory,
            None => Memory::attach(Incoming::detach(form.memory)?, form.side)?,
        };
        let side = memory.end(End::Sender, detach_socket(form.socket)?, None);
        Ok(Self::new(side, memory))
    }

    pub(crate) fn untyped(&self) -> &untyped::Sender {
        &self.inner
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.inner.side.socket()
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.depart(None)
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = SenderForm::deserialize(deserializer)?;
        Self::arrive(&form, None).map_err(D::Error::custom)
    }
}
