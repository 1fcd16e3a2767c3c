//! Process parallelism done right: Python's `multiprocessing`, as a Rust programmer
//! would want it.
//!
//! ```
//! use bunshin::Pool;
//!
//! fn count_primes(below: u32) -> usize {
//!     (2..below).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count()
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = Pool::new(4)?;
//!     assert_eq!(pool.map(count_primes, [10, 100, 1000])?, [4, 25, 168]);
//!     Ok(())
//! }
//! ```
//!
//! Four processes ran that. Nothing had to be prepared in `main`: a child is this program
//! again, and becomes a child before `main` begins. A process can do what a thread cannot: be
//! killed in the middle of a task, crash in a C library, or end by itself, and take nothing
//! along. Here that costs one task, never the pool.
//!
//! # What there is
//!
//! | To | Use | In Python |
//! |---|---|---|
//! | run one function in a process | [`Process`] | `Process` |
//! | run one function on many items | [`Pool`] | `Pool` |
//! | begin tasks now, and have their results later | [`TaskHandle`], [`MapHandle`] | `AsyncResult` |
//! | have results one by one | [`Imap`] | `imap` |
//! | keep something in each worker | [`StatefulPool`] | `initializer` |
//! | do the same with threads | [`ThreadPool`] | `dummy`, `ThreadPool` |
//! | map a closure that borrows | [`Scope::par_map`] | – |
//! | run a closure that borrows | [`scope`] | – |
//! | copy this process | [`fork()`] | `os.fork` |
//! | talk | [`pipe`], [`channel`], [`duplex`] | `Pipe` |
//! | hand items to whoever is free | [`Queue`], [`SimpleQueue`] | `Queue`, `SimpleQueue` |
//! | the same, and wait until they are done | [`JoinableQueue`] | `JoinableQueue` |
//! | talk to other programs | [`Listener`], [`Client`] | `connection.Listener`, `connection.Client` |
//! | wait for many at once | [`wait`] | `connection.wait` |
//! | share a number or an array | [`Value`], [`Array`] | `Value`, `Array` |
//! | the same without a lock | [`RawValue`], [`RawArray`] | `RawValue`, `RawArray` |
//! | exclude each other | [`Lock`], [`RLock`] | `Lock`, `RLock` |
//! | let only so many in | [`Semaphore`], [`BoundedSemaphore`] | the same |
//! | wait for a change | [`Condition`], [`Event`] | `Condition`, `Event` |
//! | go on together | [`Barrier`] | `Barrier` |
//! | share a list of mixed items | [`ShareableList`], [`ListItem`] | `ShareableList` |
//! | share a hash map | [`SharedMap`] | `Manager().dict` |
//! | share bytes, with a name or without | [`SharedMemory`] | `SharedMemory` |
//! | keep objects for all processes | [`Manager`], [`managed`] | `Manager` |
//! | send a large array | [`Buffer`] | out-of-band buffers |
//! | choose how processes are made | [`StartMethod`], [`Context`] | contexts |
//! | see events and panics of children | `log::forward`, with the feature `tracing` | `log_to_stderr` |
//! | wait for all these in `async` code | `bunshin::tokio`, with the feature `tokio`; [`TaskFuture`], [`MapFuture`] | – |
//! | have all children begin with something | [`set_forkserver_preload`] | the same |
//! | look around | [`current_process`], [`parent_process`], [`active_children`], [`cpu_count`] | the same |
//!
//! # Functions and arguments
//!
//! What a child runs is a plain function, or a closure that captures nothing; that is checked
//! when the program is compiled. Its arguments and its result are anything that `serde`
//! serialises, and pipe ends, shared values and locks, also deep inside of the program's own
//! types:
//!
//! ```
//! use bunshin::{Process, Sender, channel};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Job {
//!     words: Vec<String>,
//!     answers: Sender<usize>,
//! }
//!
//! fn work(job: Job) {
//!     for word in &job.words {
//!         job.answers.send(word.len()).expect("somebody listens");
//!     }
//! }
//!
//! let (answers, receiver) = channel()?;
//! let child = Process::start(work, (Job { words: vec!["a".into(), "word".into()], answers },))?;
//! assert_eq!(receiver.iter().collect::<bunshin::Result<Vec<_>>>()?, [1, 4]);
//! assert!(child.join()?.success());
//! # Ok::<(), bunshin::Error>(())
//! ```
//!
//! # When things go wrong
//!
//! - A task that panics gives [`TaskError::Panicked`], with message and place.
//! - A task whose process is killed, crashes or exits gives [`TaskError::Lost`], with the
//!   process and its exit status. A pool puts another worker in its place.
//! - A task that runs for longer than it may gives [`TaskError::TimedOut`], and is over.
//! - A peer that is gone is `Disconnected` at once, after what it had sent has been received.
//! - A lock whose holder died goes to the next one, who is told: [`LockError::Abandoned`].
//! - Memory that is not there is an error when it is asked for.
//! - If this process is killed, so are its children, and theirs.
//! - Forking a process that has other threads is refused.
//!
//! # Speed
//!
//! Pipes and pools are rings and tables in shared memory, and the system is called only to put
//! an idle process to sleep or to wake it. Large payloads are copied once; a [`Buffer`] that
//! is handed back is not copied at all. `benchmarks/` measures this beside other crates.
//!
//! # Platform
//!
//! Linux 5.10 or later with glibc, on x86-64 and aarch64.

// Loom's models stand in for some of the system.
#![cfg_attr(loom, allow(dead_code))]

mod codec;
mod connection;
mod context;
mod error;
#[doc(hidden)]
pub mod front;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(all(test, not(fuzzing), not(loom)))]
mod fuzzing;
#[cfg(doctest)]
mod guide;
#[cfg(feature = "tracing")]
pub mod log;
pub mod manager;
mod pool;
mod process;
mod queue;
mod shared;
mod shm;
mod sync;
mod sys;
#[cfg(feature = "tokio")]
pub mod tokio;
mod transport;

#[cfg(feature = "macros")]
pub use bunshin_macros::managed;
pub use codec::buffer::Buffer;
#[cfg(feature = "tls")]
pub use connection::tls;
pub use connection::{
    Address, Client, ClientBuilder, Connection, Iter, Listener, ListenerBuilder, Receiver,
    RecvError, RecvTimeoutError, SendError, Sender, StreamConnection, TryRecvError, TrySendError,
    Waitable, channel, duplex, pipe, wait,
};
pub use context::{Context, cpu_count};
pub use error::{Error, ErrorKind, Result};
pub use manager::{CallError, Managed, Manager, ManagerBuilder};
#[cfg(feature = "tokio")]
pub use pool::ImapStream;
pub use pool::{
    Batch, Imap, MapFuture, MapHandle, ParMap, Pool, PoolBuilder, StatefulPool,
    StatefulPoolBuilder, TaskFuture, TaskHandle, ThreadImap, ThreadPool, ThreadPoolBuilder,
};
pub use process::{
    CurrentProcess, ExitStatus, Fork, Panic, ParentProcess, PreloadOutcome, Process,
    ProcessBuilder, Scope, ScopedProcess, StartMethod, Target, TaskError, WorkerLost,
    active_children, current_process, fork, fork_unchecked, init, parent_process, scope,
    set_forkserver_preload, set_start_method, start_method,
};
pub use queue::{JoinError, JoinableQueue, Queue, QueueIter, SimpleQueue};
pub use shared::{
    Array, ArrayGuard, Atomic, ListItem, RawArray, RawValue, ShareableList, SharedAtomic,
    SharedMap, SharedMemory, Value, ValueGuard,
};
pub use sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockError, LockGuard, RLock,
    RLockGuard, Semaphore, SemaphoreGuard, Woken,
};
