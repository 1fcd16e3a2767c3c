//! How a process ended.

use std::fmt;

use crate::sys::process::{Ended, How, Sig, signal_name};

/// How a process ended: by itself with a code, or by a signal.
///
/// # Source
/// `waitid(2)`; CPython's `Process.exitcode` says `-signal` where this has [`signal`](Self::signal).
///
/// # Examples
/// ```
/// fn fail() {
///     std::process::exit(3)
/// }
///
/// let child = bunshin::Process::start(fail, ())?;
/// let status = child.join()?;
/// assert_eq!((status.code(), status.signal()), (Some(3), None));
/// assert_eq!(status.to_string(), "exit code 3");
/// # Ok::<(), bunshin::Error>(())
/// ```
#[doc(alias = "exitcode")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitStatus {
    code: Option<i32>,
    signal: Option<i32>,
}

impl ExitStatus {
    /// The exit code, if it ended by itself: 0 to 255.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> () { std::process::exit(3) }, ())?;
    /// assert_eq!(child.join()?.code(), Some(3));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The signal that ended it, if one did.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> () { std::process::abort() }, ())?;
    /// assert_eq!(child.join()?.signal(), Some(6));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// What another process was told by [`code`](Self::code) and [`signal`](Self::signal).
    pub(crate) fn from_parts(code: Option<i32>, signal: Option<i32>) -> Option<Self> {
        (code.is_some() || signal.is_some()).then_some(Self { code, signal })
    }

    /// Whether it was killed, as the system does where there is no memory.
    pub(crate) fn is_kill(&self) -> bool {
        self.signal == Some(Sig::KILL.as_raw())
    }

    /// Whether it ended by itself with code 0.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| (), ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl From<Ended> for ExitStatus {
    fn from(ended: Ended) -> Self {
        match ended.how {
            How::Exited(code) => Self {
                code: Some(code),
                signal: None,
            },
            How::Signalled(signal) => Self {
                code: None,
                signal: Some(signal),
            },
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => match signal_name(signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            (None, None) => f.write_str("unknown"),
        }
    }
}
