//! The error of everything that callers do not branch on.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// A result with this crate's [`Error`].
///
/// # Examples
/// ```
/// fn half(of: u32) -> bunshin::Result<u32> {
///     let value = bunshin::Value::new(of)?;
///     Ok(value.get()? / 2)
/// }
///
/// assert_eq!(half(4)?, 2);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one word.
///
/// # Examples
/// ```
/// use bunshin::{Array, ErrorKind};
///
/// let error = Array::<u64>::new(usize::MAX).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::OutOfMemory);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer has closed its end, or has died.
    Disconnected,
    /// The time that was given has passed.
    TimedOut,
    /// A value could not be turned into bytes.
    Encode,
    /// Bytes could not be turned into the value that was asked for.
    Decode,
    /// A message or handle holds another type than the one that was asked for.
    TypeMismatch,
    /// Bytes from a peer break the protocol.
    Corrupt,
    /// A peer could not show that it has the same key, or that it is who it has to be.
    Authentication,
    /// There is no memory for it.
    OutOfMemory,
    /// The process has other threads, and a fork would copy the locks they hold.
    Threads,
    /// The holder of a lock died with it: what it protects may be half changed.
    Abandoned,
    /// A barrier is broken: a party of it died, ran out of time, or gave up.
    Broken,
    /// The argument makes no sense.
    InvalidInput,
    /// It cannot be done on this system, or in this program.
    Unsupported,
    /// The object was closed by this process.
    Closed,
    /// Another process, or another thread, is using it.
    Busy,
    /// A worker's initializer failed, or its workers end before they are ready; or what the
    /// forkserver was to preload failed.
    Initializer,
    /// The system refused a call; the source says which error it gave.
    Os,
}

/// An error that names the operation, the object and the peer.
///
/// # Examples
/// ```
/// let error = bunshin::Pool::new(0).unwrap_err();
/// assert_eq!(error.kind(), bunshin::ErrorKind::InvalidInput);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            source: None,
        }))
    }

    pub(crate) fn because(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }))
    }

    /// An error of the system, during `operation`.
    pub(crate) fn os(operation: impl Into<String>, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => ErrorKind::OutOfMemory,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotConnected => ErrorKind::Disconnected,
            io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            io::ErrorKind::InvalidData => ErrorKind::Corrupt,
            _ => ErrorKind::Os,
        };
        Self::because(kind, operation, error)
    }

    /// What went wrong, in one word.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{ErrorKind, StartMethod};
    ///
    /// let error = "thread".parse::<StartMethod>().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidInput);
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the peer is gone.
    ///
    /// # Examples
    /// ```
    /// let (sender, receiver) = bunshin::channel::<()>()?;
    /// drop(receiver);
    /// assert!(sender.send_bytes(b"to nobody").unwrap_err().is_disconnected());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        self.kind() == ErrorKind::Disconnected
    }

    /// Whether the time that was given has passed.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let (_sender, receiver) = bunshin::channel::<()>()?;
    /// let late = receiver.recv_timeout(Duration::from_millis(1)).unwrap_err();
    /// assert!(bunshin::Error::from(late).is_timeout());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::TimedOut
    }

    /// The system's error number, where the system was the cause (`errno(3)`).
    ///
    /// # Examples
    /// ```
    /// let error = bunshin::Pool::new(0).unwrap_err();
    /// assert_eq!(error.raw_os_error(), None, "the system was not asked");
    /// ```
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        let mut source = self.source();
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            source = error.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Disconnected => io::ErrorKind::BrokenPipe,
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Corrupt | ErrorKind::Decode | ErrorKind::TypeMismatch => {
                io::ErrorKind::InvalidData
            }
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
