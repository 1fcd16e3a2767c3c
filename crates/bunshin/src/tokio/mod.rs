//! Waiting in `async` code, on the runtime of [tokio](https://docs.rs/tokio): the feature
//! `tokio`.
//!
//! Each type here takes what it is called after, and waits for it without holding a thread up.
//! A task's handle and an `imap` need nothing from here: [`TaskHandle`](crate::TaskHandle) and
//! [`MapHandle`](crate::MapHandle) can be awaited, and
//! [`Imap::into_stream`](crate::Imap::into_stream) gives a stream.
//!
//! ```
//! use bunshin::tokio::{Process, Queue};
//! use bunshin::StartMethod;
//!
//! fn count(numbers: bunshin::Queue<u32>) -> u32 {
//!     numbers.iter().map(|number| number.expect("a number")).sum()
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
//! # runtime.block_on(async {
//! let numbers = bunshin::Queue::bounded(2)?;
//! let child = bunshin::Process::builder()
//!     .start_method(StartMethod::Spawn)
//!     .start(count, (numbers.clone(),))?;
//! let child = Process::new(child)?;
//! let numbers = Queue::new(numbers)?;
//! for number in 1..=10 {
//!     numbers.send(number).await?;
//! }
//! numbers.get_ref().close()?;
//! assert_eq!(child.result().await?, 55);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is waited for, and how
//!
//! | | By |
//! |---|---|
//! | a process's end and result, a message, an item | a descriptor in the runtime's `epoll` |
//! | room in a pipe | the same, on the pipe's own socket |
//! | a connection, and that its peer shows its key | the same, on all that are being made |
//! | the number of a host whose name is given | a thread of the runtime's for blocking work |
//! | room in a bounded queue | one thread of the runtime's for blocking work, while somebody waits: room has no descriptor |
//! | a task of a pool | the thread `bunshin-pool`, which looks after a pool while nobody waits for it |
//! | a task of a `ThreadPool` | the thread that does it |
//!
//! A call that need not wait does not give way, except when others of its thread have not had a
//! turn for long. One whose future is dropped, as in `select!`, has taken and sent nothing.
//!
//! # Start methods
//!
//! A runtime with several threads cannot be forked: the start method `fork` is refused there,
//! as in every process with threads. `spawn` and `forkserver` work. A runtime of the current
//! thread has none, until it does blocking work: there `fork` works too, though a pool of forked
//! workers cannot be awaited.
//!
//! # Panics
//! What makes one of these outside of a runtime, or in one without `enable_io`, panics, as in
//! tokio itself.
//!
//! - `connection`: ends of pipes; `stream`: connections over sockets.
//! - `listener`, `client`: how those are made.
//! - `process`: the end of a process, and what it returns.
//! - `queue`: queues; `room`: waiting for room in them.
//! - `watched`: descriptors.

mod client;
mod connection;
mod listener;
mod process;
mod queue;
mod room;
mod stream;
mod watched;

pub use client::Client;
pub use connection::{Connection, Receiver, Sender};
pub use listener::Listener;
pub use process::Process;
pub use queue::Queue;
pub use stream::StreamConnection;
