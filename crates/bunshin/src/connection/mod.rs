//! Typed pipes between processes.
//!
//! - `pipe`: how pipes are made.
//! - `sender`, `receiver`, `duplex`: the ends.
//! - `outcome`: the errors that callers branch on.
//! - `wait`: many connections and processes at once.

mod duplex;
pub(crate) mod outcome;
mod pipe;
mod receiver;
mod sender;
mod wait;

pub use duplex::Connection;
pub use outcome::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
pub use pipe::{channel, duplex, pipe};
pub use receiver::{Iter, Receiver};
pub use sender::Sender;
pub use wait::{Waitable, wait};
