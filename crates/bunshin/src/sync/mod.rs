//! What processes use to wait for each other; it lives in shared memory and survives the death of
//! those who hold it.
//!
//! - `lock`: [`Lock`](crate::Lock), and what is common to all guards.
//! - `rlock`: [`RLock`](crate::RLock), which its holder may take again.
//! - `semaphore`: [`Semaphore`](crate::Semaphore) and
//!   [`BoundedSemaphore`](crate::BoundedSemaphore).
//! - `condition`: [`Condition`](crate::Condition).
//! - `event`: [`Event`](crate::Event).
//! - `barrier`: [`Barrier`](crate::Barrier).
//! - `plain`: the same without guards, for the front in another language.

mod barrier;
mod condition;
mod event;
mod lock;
pub(crate) mod plain;
mod rlock;
mod semaphore;

pub use barrier::{Barrier, BarrierError};
pub use condition::{Condition, Woken};
pub use event::Event;
pub use lock::{Lock, LockError, LockGuard};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Semaphore, SemaphoreGuard};

pub(crate) use condition::{Holds, holds};
pub(crate) use lock::{Recover, acquire};

use std::os::fd::BorrowedFd;

use crate::codec::attachments::Outgoing;
use crate::error::{Error, Result};
use crate::sys::socket;

/// Adds a handle to the memory of `what` to the message that is being encoded.
fn depart(memory: BorrowedFd<'_>, what: &str) -> Result<u32> {
    let fd = socket::duplicate(memory).map_err(|error| Error::os(format!("send {what}"), error))?;
    Outgoing::attach(fd)
}

/// Implements sending and receiving for a type whose one field is an object in shared memory.
macro_rules! travels {
    ($type:ident, $field:ident, $shared:ident, $what:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::Error as _;
                super::depart(self.$field.fd(), $what)
                    .map_err(|error| {
                        S::Error::custom(crate::codec::attachments::Outgoing::fail(error))
                    })?
                    .serialize(serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                let index = u32::deserialize(deserializer)?;
                let shared = crate::codec::attachments::Incoming::detach(index)
                    .and_then($shared::attach)
                    .map_err(D::Error::custom)?;
                Ok(Self { $field: shared })
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type)).finish_non_exhaustive()
            }
        }
    };
}

use travels;
