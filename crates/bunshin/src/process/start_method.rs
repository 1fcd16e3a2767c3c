//! The three ways to start a process.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// How a child is made.
///
/// # Source
/// CPython's "contexts and start methods".
///
/// # Examples
/// ```
/// use bunshin::StartMethod;
///
/// assert_eq!("spawn".parse::<StartMethod>()?, StartMethod::Spawn);
/// assert_eq!(StartMethod::default(), StartMethod::Forkserver);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMethod {
    /// The child is a copy of the parent (`fork(2)`).
    ///
    /// Refused while the parent has other threads, as their locks would stay locked in the
    /// child for ever. Slower the more memory the parent has: 68 ms at 1 GiB.
    Fork,
    /// The child is this program started again; it becomes the child before `main`.
    ///
    /// The cleanest start, and the slowest: about a millisecond.
    Spawn,
    /// The child is a copy of a small process that was started for that purpose, without
    /// threads or memory of the parent's.
    ///
    /// As clean as `Spawn`, and nearly as quick as `Fork` from a small parent. Its
    /// environment variables are those of the time when the first such child was started.
    /// From then on this process has two children more: the small process, and one that it
    /// keeps ready for the next start.
    #[default]
    Forkserver,
}

impl StartMethod {
    /// All start methods.
    pub const ALL: [Self; 3] = [Self::Fork, Self::Spawn, Self::Forkserver];

    fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Spawn => "spawn",
            Self::Forkserver => "forkserver",
        }
    }
}

impl fmt::Display for StartMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for StartMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "there is no start method {name:?}; there are fork, spawn and forkserver"
                    ),
                )
            })
    }
}

/// The default for this process: 0 if it was never set.
static DEFAULT: AtomicU8 = AtomicU8::new(0);

/// The start method of processes that are started without naming one.
///
/// # Source
/// CPython's `multiprocessing.get_start_method`.
///
/// # Examples
/// ```
/// use bunshin::{StartMethod, start_method};
///
/// assert_eq!(start_method(), StartMethod::Forkserver);
/// ```
#[doc(alias = "get_start_method")]
#[must_use]
pub fn start_method() -> StartMethod {
    let set = DEFAULT.load(Ordering::Relaxed);
    StartMethod::ALL
        .get(usize::from(set).wrapping_sub(1))
        .copied()
        .unwrap_or_default()
}

/// Sets the start method of processes that are started without naming one.
///
/// Children begin with the default again.
///
/// # Source
/// CPython's `multiprocessing.set_start_method`.
///
/// # Examples
/// ```
/// use bunshin::{StartMethod, set_start_method, start_method};
///
/// set_start_method(StartMethod::Spawn);
/// assert_eq!(start_method(), StartMethod::Spawn);
/// ```
pub fn set_start_method(method: StartMethod) {
    let position = StartMethod::ALL
        .iter()
        .position(|other| *other == method)
        .unwrap_or(2);
    DEFAULT.store(position as u8 + 1, Ordering::Relaxed);
}

/// Children begin with the default.
pub(super) fn reset_start_method() {
    DEFAULT.store(0, Ordering::Relaxed);
}
