//! Queues between many producers and many consumers, in any process.
//!
//! - `typed`: the public `Queue`.
//! - `simple`, `joinable`: its plainer and its richer relative.
//! - `untyped`: what they share: encoded items, how long to wait and how, the trip of a handle.
//! - `ahead`: when a consumer stays behind a busy producer.
//! - `raw`: items of fronts, which are bytes or values.
//! - `outside`: what belongs to a queue beside its memory: handles inside items, the bell.

mod ahead;
mod joinable;
mod outside;
mod raw;
mod simple;
mod typed;
mod untyped;

pub use joinable::{JoinError, JoinableQueue};
pub use raw::{Item, ItemBytes};
pub use simple::SimpleQueue;
pub use typed::{Queue, QueueIter};
#[cfg(feature = "tokio")]
pub(crate) use untyped::Untyped;
