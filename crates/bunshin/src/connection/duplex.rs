//! An end of a pipe that sends and receives.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::outcome::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use super::pipe::Memory;
use super::receiver::{Iter, Receiver, ReceiverForm};
use super::sender::{Sender, SenderForm, attach_copy};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::buffer::Buffer;
use crate::error::Result;

/// An end of a [`pipe`](crate::pipe): a [`Sender`] and a [`Receiver`] in one.
///
/// One thread can send while another receives; each direction can also be used from
/// several threads. All calls behave as those of the two halves, where they are described.
///
/// # Examples
/// ```
/// use bunshin::{Connection, Process, pipe};
///
/// fn double(connection: Connection<i64>) {
///     while let Ok(number) = connection.recv() {
///         connection.send(2 * number).expect("the parent waits for it");
///     }
/// }
///
/// let (here, there) = pipe()?;
/// let child = Process::start(double, (there,))?;
/// here.send(21)?;
/// assert_eq!(here.recv()?, 42);
/// drop(here);
/// assert!(child.join()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Connection<S, R = S> {
    /// Dropped first: who has received the last message finds that nothing can be sent either.
    receiver: Receiver<R>,
    sender: Sender<S>,
}

impl<S, R> Connection<S, R> {
    pub(crate) fn join(sender: Sender<S>, receiver: Receiver<R>) -> Self {
        Self { sender, receiver }
    }

    /// The two halves, which can go to different processes.
    ///
    /// # Examples
    /// ```
    /// let (here, there) = bunshin::pipe()?;
    /// let (sender, receiver) = there.split();
    /// here.send(1)?;
    /// sender.send(receiver.recv()? + 1)?;
    /// assert_eq!(here.recv()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn split(self) -> (Sender<S>, Receiver<R>) {
        (self.sender, self.receiver)
    }

    /// The sending half.
    ///
    /// # Examples
    /// ```
    /// let (here, there) = bunshin::pipe::<u8>()?;
    /// drop(there);
    /// assert!(here.sender().is_disconnected());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn sender(&self) -> &Sender<S> {
        &self.sender
    }

    /// The receiving half.
    ///
    /// # Examples
    /// ```
    /// let (here, there) = bunshin::pipe()?;
    /// there.send(7)?;
    /// assert_eq!(here.receiver().recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receiver(&self) -> &Receiver<R> {
        &self.receiver
    }

    /// See [`Sender::send_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.sender.send_bytes(bytes)
    }

    /// See [`Receiver::recv_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_bytes(&self) -> Result<Buffer<u8>, RecvError> {
        self.receiver.recv_bytes()
    }

    /// See [`Receiver::try_recv_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn try_recv_bytes(&self) -> Result<Buffer<u8>, TryRecvError> {
        self.receiver.try_recv_bytes()
    }

    /// See [`Receiver::recv_bytes_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Buffer<u8>, RecvTimeoutError> {
        self.receiver.recv_bytes_timeout(timeout)
    }

    /// See [`Receiver::recv_bytes_into`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_bytes_into(&self, bytes: &mut Vec<u8>) -> Result<usize, RecvError> {
        self.receiver.recv_bytes_into(bytes)
    }

    /// See [`Receiver::poll`].
    ///
    /// # Errors
    /// As there.
    pub fn poll(&self, timeout: Duration) -> Result<bool> {
        self.receiver.poll(timeout)
    }

    /// See [`Receiver::fileno`].
    ///
    /// # Errors
    /// As there.
    pub fn fileno(&self) -> Result<BorrowedFd<'_>> {
        self.receiver.fileno()
    }

    /// See [`Sender::is_disconnected`].
    pub fn is_disconnected(&self) -> bool {
        self.sender.is_disconnected()
    }
}

impl<S: Serialize, R> Connection<S, R> {
    /// See [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.send(value)
    }

    /// See [`Sender::try_send`].
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, value: S) -> Result<(), TrySendError<S>> {
        self.sender.try_send(value)
    }

    /// See [`Sender::send_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn send_timeout(&self, value: S, timeout: Duration) -> Result<(), TrySendError<S>> {
        self.sender.send_timeout(value, timeout)
    }
}

impl<S, R: DeserializeOwned> Connection<S, R> {
    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub fn recv(&self) -> Result<R, RecvError> {
        self.receiver.recv()
    }

    /// See [`Receiver::try_recv`].
    ///
    /// # Errors
    /// As there.
    pub fn try_recv(&self) -> Result<R, TryRecvError> {
        self.receiver.try_recv()
    }

    /// See [`Receiver::recv_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, RecvTimeoutError> {
        self.receiver.recv_timeout(timeout)
    }

    /// See [`Receiver::iter`].
    pub fn iter(&self) -> Iter<'_, R> {
        self.receiver.iter()
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Connection<{}, {}>",
            std::any::type_name::<S>(),
            std::any::type_name::<R>()
        )
    }
}

/// A connection on its trip: both halves, and their memory once.
#[derive(Serialize, Deserialize)]
struct ConnectionForm {
    memory: u32,
    side: u8,
    sender: SenderForm,
    receiver: ReceiverForm,
}

impl<S, R> Connection<S, R> {
    fn depart(&self) -> Result<ConnectionForm> {
        let memory = attach_copy(&*self.sender.memory().segment)?;
        Ok(ConnectionForm {
            memory,
            side: self.sender.memory().side,
            sender: self.sender.depart(Some(memory))?,
            receiver: self.receiver.depart(Some(memory))?,
        })
    }

    fn arrive(form: &ConnectionForm) -> Result<Self> {
        let memory = Memory::attach(Incoming::detach(form.memory)?, form.side)?;
        let sender = Sender::arrive(&form.sender, Some(memory.clone()))?;
        let receiver = Receiver::arrive(&form.receiver, Some(memory))?;
        Ok(Self { sender, receiver })
    }
}

impl<S, R> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.depart()
            .map_err(|error| Z::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = ConnectionForm::deserialize(deserializer)?;
        Self::arrive(&form).map_err(D::Error::custom)
    }
}
