//! Locks that live in shared memory and survive the death of their holder.

mod lock;

pub use lock::{Lock, LockError, LockGuard};

pub(crate) use lock::{Recover, acquire};
