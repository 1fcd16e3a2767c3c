//! The errors of sending and receiving.

use std::error::Error as StdError;
use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::transport::channel::Failure;

/// A value could not be sent; it comes back.
///
/// # Examples
/// ```
/// use bunshin::SendError;
///
/// let (sender, receiver) = bunshin::channel()?;
/// drop(receiver);
/// assert!(matches!(sender.send(7), Err(SendError::Disconnected(7))));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[non_exhaustive]
pub enum SendError<T> {
    /// The other end is closed, or its process is dead. For a queue: it is closed.
    Disconnected(T),
    /// Something else, such as a value that cannot be encoded, or no memory for it.
    Failed(T, Error),
}

/// A value could not be sent at once, or in time; it comes back.
///
/// # Examples
/// ```
/// use bunshin::TrySendError;
///
/// let (sender, _receiver) = bunshin::channel()?;
/// let refused = (0..).find_map(|number: u64| sender.try_send(number).err());
/// assert!(matches!(refused, Some(TrySendError::Full(_))));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[non_exhaustive]
pub enum TrySendError<T> {
    /// The pipe or queue is full.
    Full(T),
    /// The other end is closed, or its process is dead. For a queue: it is closed.
    Disconnected(T),
    /// Something else, such as a value that cannot be encoded, or no memory for it.
    Failed(T, Error),
}

/// No message will come any more, or it was not one.
///
/// # Examples
/// ```
/// use bunshin::RecvError;
///
/// let (sender, receiver) = bunshin::channel::<u8>()?;
/// drop(sender);
/// assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum RecvError {
    /// The other end is closed, or its process is dead, and all it sent has been received. For
    /// a queue: it is closed and empty.
    Disconnected,
    /// Something else, such as a message of another type. It is taken from the pipe.
    Failed(Error),
}

/// There is no message now.
///
/// # Examples
/// ```
/// use bunshin::TryRecvError;
///
/// let (_sender, receiver) = bunshin::channel::<u8>()?;
/// assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum TryRecvError {
    /// There is no message yet.
    Empty,
    /// The other end is closed, or its process is dead, and all it sent has been received. For
    /// a queue: it is closed and empty.
    Disconnected,
    /// Something else, such as a message of another type. It is taken from the pipe.
    Failed(Error),
}

/// There was no message in time.
///
/// # Examples
/// ```
/// use bunshin::RecvTimeoutError;
/// use std::time::Duration;
///
/// let (_sender, receiver) = bunshin::channel::<u8>()?;
/// let late = receiver.recv_timeout(Duration::from_millis(1));
/// assert!(matches!(late, Err(RecvTimeoutError::Timeout)));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// The time has passed. Nothing was taken from the pipe.
    Timeout,
    /// The other end is closed, or its process is dead, and all it sent has been received. For
    /// a queue: it is closed and empty.
    Disconnected,
    /// Something else, such as a message of another type. It is taken from the pipe.
    Failed(Error),
}

const GONE: &str = "it is closed, or the process at the other end is gone";

fn gone() -> Error {
    Error::new(ErrorKind::Disconnected, GONE)
}

impl<T> SendError<T> {
    pub(crate) fn new(value: T, failure: Failure) -> Self {
        match failure {
            Failure::Disconnected => Self::Disconnected(value),
            Failure::NotYet => Self::Failed(value, Error::new(ErrorKind::TimedOut, "send")),
            Failure::Other(error) => Self::Failed(value, error),
        }
    }

    /// The value that was not sent.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel()?;
    /// drop(receiver);
    /// assert_eq!(sender.send("back").map_err(|error| error.into_inner()), Err("back"));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn into_inner(self) -> T {
        match self {
            Self::Disconnected(value) | Self::Failed(value, _) => value,
        }
    }
}

impl<T> TrySendError<T> {
    pub(crate) fn new(value: T, failure: Failure) -> Self {
        match failure {
            Failure::Disconnected => Self::Disconnected(value),
            Failure::NotYet => Self::Full(value),
            Failure::Other(error) => Self::Failed(value, error),
        }
    }

    /// The value that was not sent.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel()?;
    /// drop(receiver);
    /// assert_eq!(sender.try_send("back").map_err(|error| error.into_inner()), Err("back"));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Disconnected(value) | Self::Failed(value, _) => value,
        }
    }
}

impl From<Failure> for RecvError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Disconnected => Self::Disconnected,
            Failure::NotYet => Self::Failed(Error::new(ErrorKind::TimedOut, "receive")),
            Failure::Other(error) => Self::Failed(error),
        }
    }
}

impl From<Failure> for TryRecvError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Disconnected => Self::Disconnected,
            Failure::NotYet => Self::Empty,
            Failure::Other(error) => Self::Failed(error),
        }
    }
}

impl From<Failure> for RecvTimeoutError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Disconnected => Self::Disconnected,
            Failure::NotYet => Self::Timeout,
            Failure::Other(error) => Self::Failed(error),
        }
    }
}

/// The words of a send error, whatever the value is.
fn say<T>(f: &mut fmt::Formatter<'_>, error: &SendError<T>) -> fmt::Result {
    match error {
        SendError::Disconnected(_) => write!(f, "cannot send: {GONE}"),
        SendError::Failed(_, error) => write!(f, "cannot send: {error}"),
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        say(f, self)
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendError({self})")
    }
}

impl<T> StdError for SendError<T> {}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("cannot send now: it is full"),
            Self::Disconnected(_) => write!(f, "cannot send: {GONE}"),
            Self::Failed(_, error) => write!(f, "cannot send: {error}"),
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrySendError({self})")
    }
}

impl<T> StdError for TrySendError<T> {}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => write!(f, "nothing to receive: {GONE}"),
            Self::Failed(error) => write!(f, "cannot receive: {error}"),
        }
    }
}

impl StdError for RecvError {}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing to receive yet"),
            Self::Disconnected => write!(f, "nothing to receive: {GONE}"),
            Self::Failed(error) => write!(f, "cannot receive: {error}"),
        }
    }
}

impl StdError for TryRecvError {}

impl fmt::Display for RecvTimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("nothing to receive in the time given"),
            Self::Disconnected => write!(f, "nothing to receive: {GONE}"),
            Self::Failed(error) => write!(f, "cannot receive: {error}"),
        }
    }
}

impl StdError for RecvTimeoutError {}

impl<T> From<SendError<T>> for Error {
    fn from(error: SendError<T>) -> Self {
        match error {
            SendError::Disconnected(_) => gone(),
            SendError::Failed(_, error) => error,
        }
    }
}

impl<T> From<TrySendError<T>> for Error {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Self::new(ErrorKind::TimedOut, "cannot send now: it is full"),
            TrySendError::Disconnected(_) => gone(),
            TrySendError::Failed(_, error) => error,
        }
    }
}

impl From<RecvError> for Error {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Disconnected => gone(),
            RecvError::Failed(error) => error,
        }
    }
}

impl From<TryRecvError> for Error {
    fn from(error: TryRecvError) -> Self {
        match error {
            TryRecvError::Empty => Self::new(ErrorKind::TimedOut, "nothing to receive yet"),
            TryRecvError::Disconnected => gone(),
            TryRecvError::Failed(error) => error,
        }
    }
}

impl From<RecvTimeoutError> for Error {
    fn from(error: RecvTimeoutError) -> Self {
        match error {
            RecvTimeoutError::Timeout => {
                Self::new(ErrorKind::TimedOut, "nothing to receive in the time given")
            }
            RecvTimeoutError::Disconnected => gone(),
            RecvTimeoutError::Failed(error) => error,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        RecvError::from(failure).into()
    }
}
