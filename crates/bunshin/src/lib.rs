//! placeholder
mod codec;
mod connection;
mod error;
mod process;
mod shm;
mod sys;
mod transport;
pub use codec::buffer::Buffer;
pub use connection::{
    Connection, Iter, Receiver, RecvError, RecvTimeoutError, SendError, Sender, TryRecvError, TrySendError, Waitable,
    channel, duplex, pipe, wait,
};
pub use error::{Error, ErrorKind, Result};
pub use process::{
    ExitStatus, Fork, Panic, Process, ProcessBuilder, Scope, ScopedProcess, StartMethod, Target, TaskError, WorkerLost,
    fork, fork_unchecked, init, scope, set_start_method, start_method,
};
mod shared;
mod sync;
pub use shared::{Array, ArrayGuard, Atomic, RawArray, RawValue, Value, ValueGuard};
pub use sync::{Lock, LockError, LockGuard};
mod pool;
pub use pool::{Batch, Pool, PoolBuilder};
