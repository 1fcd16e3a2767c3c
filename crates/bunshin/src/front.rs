//! What a front in another language needs of the engine beside its public surface.
//!
//! Not for programs: nothing here is promised to stay.

pub mod memory;

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::attachments::{Incoming, Outgoing};
pub use crate::codec::buffer::BufferRef;
use crate::codec::serde::{decode, encode};
use crate::connection::Sender;
pub use crate::connection::{Arrival, Bytes, Hub};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Pool, PoolBuilder, TaskHandle};
use crate::process::{Child, ExitStatus, run_hosted};
pub use crate::queue::{Item, ItemBytes};
use crate::queue::{JoinableQueue, Queue};
use crate::shm::heap;
pub use crate::sync::plain::{
    Permit, PlainBarrier, PlainCondition, PlainEvent, PlainLock, PlainSemaphore, Taken,
};
use crate::sys::memory as memory_of_the_system;
use crate::sys::{grace, interrupt, leases, process, socket, thread, words};
use crate::transport::{Patience, channel};

/// A value as bytes, and the handles that travel beside them in whatever way the front has.
///
/// It counts as sent: [`unpack`] is to be called once on what it gives.
///
/// # Errors
/// As for sending the value.
pub fn pack<T: Serialize>(value: &T) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut outgoing = Outgoing::default();
    encode(value, &mut bytes, &mut outgoing)?;
    Ok((bytes, std::mem::take(&mut outgoing.handles)))
}

/// The value that [`pack`] was given.
///
/// # Errors
/// As for receiving the value.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8], handles: Vec<OwnedFd>) -> Result<T> {
    decode(bytes, &mut Incoming::new(handles, Vec::new()))
}

/// Has memory of this process's own, which is about to be filled, come in large pages where that is
/// worth the while and the system has some.
pub fn about_to_fill(bytes: &mut [MaybeUninit<u8>]) {
    memory_of_the_system::about_to_fill(bytes);
}

/// A handle of the system that travels in a message; the receiver gets a copy.
#[derive(Debug)]
pub struct Handle(pub OwnedFd);

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let attached = socket::duplicate(self.0.as_fd())
            .map_err(|error| Error::os("duplicate a handle", error))
            .and_then(Outgoing::attach);
        attached
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        Incoming::detach(index).map(Self).map_err(D::Error::custom)
    }
}

/// Has children be started by a command, for a program that is an interpreter.
///
/// What it starts loads this crate and calls [`run_child`].
///
/// # Errors
/// `InvalidInput` if a word contains a null byte.
pub fn set_command(words: Vec<OsString>) -> Result<()> {
    process::set_command(words).map_err(|error| {
        Error::because(
            ErrorKind::InvalidInput,
            "take a command for children",
            error,
        )
    })
}

/// Runs what this process was started for, if it was started by [`set_command`]'s command.
///
/// Gives the exit code, and whether this process is a copy of the forkserver, which ends
/// without the handlers that are registered in it; [`on_fork`]'s functions were told of that copy.
pub fn run_child() -> Option<(i32, bool)> {
    run_hosted()
}

/// Has this child end so long after its parent, so that it can see that the parent has ended: one
/// that this engine has started, rather than with it, and one that was made by `fork(2)`, rather
/// than never. To be called in the main thread, with the id that the parent has or had.
///
/// A child that is stopped then ends when it is continued. One that has become the leader of a
/// session, setsid(2), stays.
///
/// # Errors
/// `Os`; then it is left as it was.
pub fn end_after_parent(parent: u32, after: Duration) -> Result<()> {
    grace::end_after_parent(parent, after)
        .map_err(|error| Error::os("put off the end of a child", error))
}

/// Has the engine tell an interpreter of the forks that it makes: before, then in the parent,
/// also if the fork has failed, and in the child. All in the thread that forks.
///
/// The interpreter sees to its own locks; processes with threads are forked from then on.
pub fn on_fork(before: fn(), in_parent: fn(), in_child: fn()) {
    process::set_fork_hooks(process::ForkHooks {
        before,
        in_parent,
        in_child,
    });
}

/// Interrupts (SIGINT) that a thread holds back.
#[must_use]
pub struct Held(process::Blocked);

/// Has interrupts wait in this thread: a copy that it makes of the process, or an interpreter that
/// the engine starts, begins so, and is to unblock them.
pub fn hold_interrupts() -> Held {
    Held(process::block_interrupts())
}

impl Held {
    /// Lets them come as before.
    pub fn release(self) {
        process::restore_blocked(&self.0);
    }
}

pub use crate::sys::mutex::ForkMutex;

/// How many forks lie between the first process and this one: another number in each copy than in
/// the process that it is a copy of.
#[inline]
#[must_use]
pub fn generation() -> u32 {
    thread::generation()
}

/// To be called before the process forks, by whatever means, into a copy that goes on with
/// everything it has.
pub fn before_fork() {
    thread::watch_forks();
    heap::begin_copy();
    channel::count_for_copy();
}

/// To be called after that, in this process, also if there was no fork after all.
pub fn after_fork_in_parent() {
    leases::end();
}

/// To be called in that copy.
pub fn after_fork_in_child() {
    leases::end_in_copy();
    channel::share_inherited();
}

/// To be called when a process ends without running destructors: closes its ends of pipes, so
/// that their peers learn of it.
pub fn before_exit() {
    channel::close_all();
}

/// Has waits that a signal arrives in ask `check` whether to end with an error.
pub fn on_interrupt(check: fn() -> bool) {
    interrupt::set_check(check);
}

/// Has waits of this thread last again, after one that [`on_interrupt`]'s `check` has ended.
pub fn clear_interrupt() {
    interrupt::clear();
}

/// Has each worker of a pool call a function before it sleeps: for what its tasks have printed.
pub fn on_idle(call: fn()) {
    crate::pool::on_idle(call);
}

/// The rest of a pool's worker's life, to be called with whether it can begin, and if not, why not.
/// It gives the exit code.
pub type Rest = Box<dyn FnOnce(std::result::Result<(), String>) -> i32 + Send>;

/// Has a function run the rest of each worker's life, from after its initializer on to its end: for
/// those who measure what a process does.
pub fn around_worker(call: fn(Rest) -> i32) {
    crate::pool::around(call);
}

/// Names a pool's workers: what the names begin with, followed by `first` and so on.
pub fn name_workers(builder: PoolBuilder, prefix: String, first: usize) -> PoolBuilder {
    builder.names(prefix, first)
}

/// Has workers that are not ready when the pool is terminated be asked to end at once (SIGTERM),
/// without what they are to run last.
pub fn end_starting(builder: PoolBuilder) -> PoolBuilder {
    builder.ends_starting()
}

/// Has the tasks of a pool's handles be done though nobody waits, whatever becomes of its workers:
/// with a thread, from the first such task on.
pub fn tend(pool: &Pool) {
    pool.have_tended();
}

/// Ends the workers of a pool that its program has no more, at once or when their `work` is done,
/// without waiting for those who are at it.
///
/// Objects of a front may go anywhere, also within the start of one of the pool's own workers: who
/// starts it would wait for this.
pub fn let_go(pool: Arc<Pool>, work: bool) {
    let has_gone = if work {
        pool.try_close()
    } else {
        pool.try_terminate()
    };
    if !has_gone {
        let end = move || if work { pool.close() } else { pool.terminate() };
        // Where there is no thread to be had, dropping it has to do.
        drop(
            std::thread::Builder::new()
                .name("bunshin-end".into())
                .spawn(end),
        );
    }
}

/// Cancels the tasks of a pool's handles that have not begun, but for the oldest `kept` that are not
/// done.
pub fn cancel_pending(pool: &Pool, kept: usize) {
    pool.cancel_pending(kept);
}

/// A worker of a pool, which the pool goes on to watch and to replace.
#[derive(Clone, Debug)]
pub struct PoolWorker(pub(crate) Arc<Child>);

impl PoolWorker {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// A handle that is ready once it has ended.
    #[must_use]
    pub fn sentinel(&self) -> BorrowedFd<'_> {
        self.0.pidfd()
    }

    /// How it ended, if it has in that time; without one, waits until it has.
    ///
    /// # Errors
    /// `Os` if the system does not tell.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
        let until = |timeout| Instant::now().checked_add(timeout);
        self.0.wait(match timeout {
            Some(Duration::ZERO) => Patience::Never,
            Some(timeout) => until(timeout).map_or(Patience::Forever, Patience::Until),
            None => Patience::Forever,
        })
    }
}

/// The workers of a pool that there are now. Dead ones are replaced first.
#[must_use]
pub fn workers(pool: &Pool) -> Vec<PoolWorker> {
    pool.members().into_iter().map(PoolWorker).collect()
}

/// Whether tasks of a pool's handles are not done.
#[must_use]
pub fn has_pending(pool: &Pool) -> bool {
    pool.has_pending()
}

/// Why a pool cannot have workers, if that is so.
#[must_use]
pub fn broken(pool: &Pool) -> Option<String> {
    pool.broken()
}

/// Has a waker woken once a task is done, though nobody waits. True if it is done now, and nobody
/// will be woken.
///
/// # Errors
/// As awaiting the handle.
pub fn watch<R>(task: &TaskHandle<R>, waker: &Waker) -> Result<bool> {
    task.watch(waker)
}

/// Whether a task is known to be done, without looking.
#[must_use]
pub fn is_known<R>(task: &TaskHandle<R>) -> bool {
    task.is_known()
}

/// Whether a worker is at a task.
#[must_use]
pub fn has_begun<R>(task: &TaskHandle<R>) -> bool {
    task.has_begun()
}

/// Has a text be among the last words of this process, which are the error's to tell if it dies with
/// a task, if it is a worker of a pool.
pub fn leave_words(text: &[u8]) {
    let _ = words::append(text);
}

/// A descriptor that others may append last words of this process to, at any moment, such as what
/// reports crashes: none if it is no worker of a pool. It is not to be closed.
#[must_use]
pub fn words_descriptor() -> Option<RawFd> {
    words::descriptor()
}

/// As `task_done`, for a program that does not keep track of which process has taken what: an
/// item that any process has taken counts as finished, or else one that is still to be taken.
///
/// # Errors
/// `InvalidInput` if nothing is unfinished.
pub fn task_done_for_anyone<T>(queue: &JoinableQueue<T>) -> Result<()> {
    queue.task_done_for_anyone()
}

/// Whether there is an item. Its descriptor is silenced if it has said so and there is none.
pub fn queue_has_item<T>(queue: &Queue<T>) -> bool {
    queue.has_item()
}

/// A descriptor of a sending end, for those who ask for one. Nothing is to be read from it, and
/// it does not tell whether there is room.
pub fn sender_fileno<T>(sender: &Sender<T>) -> BorrowedFd<'_> {
    sender.socket()
}
