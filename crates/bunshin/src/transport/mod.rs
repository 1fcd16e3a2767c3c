#![doc = include_str!("PROTOCOL.md")]

pub(crate) mod channel;
pub(crate) mod frame;
pub(crate) mod heirs;
pub(crate) mod link;

mod polled;
pub(crate) mod prefixed;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod turn;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// How long a call may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all.
    Never,
    /// Until then.
    Until(Instant),
    /// For ever.
    Forever,
}

impl Patience {
    /// Relative to now; a time too far to be told is for ever.
    pub(crate) fn within(timeout: Duration) -> Self {
        Instant::now()
            .checked_add(timeout)
            .map_or(Self::Forever, Self::Until)
    }

    /// The deadline to give to the system.
    #[inline]
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Never => Some(Instant::now()),
            Self::Until(deadline) => Some(deadline),
            Self::Forever => None,
        }
    }

    /// Whether the time is over.
    pub(crate) fn is_over(self) -> bool {
        match self {
            Self::Never => true,
            Self::Until(deadline) => Instant::now() >= deadline,
            Self::Forever => false,
        }
    }
}
