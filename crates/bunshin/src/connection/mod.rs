//! Typed pipes between processes, and connections to other programs.
//!
//! - `pipe`: how pipes are made.
//! - `sender`, `receiver`, `duplex`: the ends.
//! - `outcome`: the errors that callers branch on.
//! - `arrival`, `hub`: what fronts need beside them: any message, and any connection.
//! - `address`, `listener`, `client`: connections to programs that are no children.
//! - `greeting`, `auth`: what both ends do before they believe each other.
//! - `fuzzing`: the greeting for those who feed it with anything.
//! - `stream`: such a connection.
//! - `tls`: TLS for it, from files.
//! - `wait`: many connections, queues and processes at once.

mod address;
mod arrival;
mod auth;
mod client;
mod duplex;
#[cfg(any(fuzzing, all(test, not(loom))))]
pub(crate) mod fuzzing;
mod greeting;
mod hub;
mod listener;
pub(crate) mod outcome;
mod pipe;
mod receiver;
mod sender;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;
mod wait;

pub use address::Address;
pub use arrival::{Arrival, Bytes};
pub use client::{Client, ClientBuilder};
pub use duplex::Connection;
pub use hub::Hub;
pub use listener::{Listener, ListenerBuilder};
pub use outcome::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
pub use pipe::{channel, duplex, pipe};
pub use receiver::{Iter, Receiver};
pub use sender::Sender;
pub use stream::StreamConnection;
pub(crate) use wait::sealed::Watch;
pub use wait::{Waitable, wait};
