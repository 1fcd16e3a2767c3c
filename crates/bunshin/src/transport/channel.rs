//! A one-way channel: what its two ends have in common.
//!
//! A channel is a ring and a heap in a segment, and a pair of connected sockets that
//! wakes, carries handles, and tells when the other side is gone. `sender` and
//! `receiver` are its ends.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard};

use super::Patience;
use super::heirs::{self, Look, Watched};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::Heap;
use crate::shm::holders::Holder;
use crate::shm::lock::{Refused, Taken};
use crate::shm::ring::{End, Ring};
use crate::sys::awake::{self, Awake};
use crate::sys::mutex::ForkMutex;
use crate::sys::socket::Interest;
use crate::sys::{process, socket, thread};

/// Bytes on the socket: the bell.
pub(crate) const BELL: u8 = b'b';
/// Handles of a frame come with this byte; eight more say of which.
pub(crate) const HANDLES: u8 = b'h';
/// Ticks that an end spins at most before it sleeps; about as long as a wake-up takes.
const SPIN_MAX: u64 = 120_000;

/// Waits for a peer on this processor after which one is a sleep.
const TOGETHER: u32 = 1024;

/// The sockets of both ends in the process that made them, or -1: what a forked child
/// must close to learn that the other end is gone.
#[derive(Debug)]
pub(crate) struct Pair {
    sender: AtomicI32,
    receiver: AtomicI32,
    /// The generation in which this process's copy of that end counts for nothing, as the
    /// process has only used the other one.
    idle_sender: AtomicU32,
    idle_receiver: AtomicU32,
}

/// No process's generation.
pub(super) const NEVER: u32 = u32::MAX;

impl Pair {
    pub(crate) fn new(sender: &OwnedFd, receiver: &OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            sender: AtomicI32::new(sender.as_raw_fd()),
            receiver: AtomicI32::new(receiver.as_raw_fd()),
            idle_sender: AtomicU32::new(NEVER),
            idle_receiver: AtomicU32::new(NEVER),
        })
    }

    fn idle(&self, end: End) -> &AtomicU32 {
        match end {
            End::Sender => &self.idle_sender,
            End::Receiver => &self.idle_receiver,
        }
    }

    /// Whether this process's copy of that end counts for nothing.
    fn is_idle(&self, end: End) -> bool {
        self.idle(end).load(Ordering::Relaxed) == thread::generation()
    }

    fn of(&self, end: End) -> &AtomicI32 {
        match end {
            End::Sender => &self.sender,
            End::Receiver => &self.receiver,
        }
    }
}

/// All ends in this process, by their sockets.
static OPEN: ForkMutex<BTreeMap<RawFd, Entry>> = ForkMutex::new(BTreeMap::new());

/// What is known of an end beside the value that has it.
pub(super) struct Entry {
    pub(super) ring: Ring,
    pub(super) end: End,
    pair: Option<Arc<Pair>>,
    /// The generation of the process that has used it.
    pub(super) used: u32,
    /// The generation of the process that has listed itself as one who may use it.
    pub(super) listed: u32,
    /// The raw copy of this process that it was counted for last.
    counted: u32,
    /// This process has forked children that may use it.
    pub(super) was_forked: bool,
    /// While a fork is under way, and afterwards in the child: its place in the list of holders.
    pub(super) fork: Option<Holder>,
}

impl Entry {
    /// Whether this process's copy counts for nothing.
    fn is_idle(&self) -> bool {
        self.pair
            .as_ref()
            .is_some_and(|pair| pair.is_idle(self.end))
    }

    /// Whether this process, and who is forked from it, may use it.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_idle()
            && self
                .pair
                .as_ref()
                .is_none_or(|pair| pair.of(self.end).load(Ordering::Relaxed) != i32::MIN)
    }

    /// Counts it once more, for that raw copy of this process.
    fn count(&mut self, copy: u32) {
        self.ring.open(self.end);
        self.ring.copy(self.end);
        self.counted = copy;
    }

    /// Lists this forked child in its own name, if its parent has not done so yet.
    pub(super) fn settle(&mut self, pid: u32) {
        if let Some(fork) = self.fork.take() {
            self.ring.holders(self.end).end_fork(fork, pid);
        }
    }
}

pub(super) fn open_ends() -> MutexGuard<'static, BTreeMap<RawFd, Entry>> {
    OPEN.lock()
}

/// The generation whose ends were counted for it before it was made.
static COUNTED: AtomicU32 = AtomicU32::new(0);
/// The generation that goes on with all that it has inherited, as its parent does.
static SHARED: AtomicU32 = AtomicU32::new(NEVER);
/// Ends of processes before this generation are not this process's.
static ABANDONED_BEFORE: AtomicU32 = AtomicU32::new(0);

/// Closes all ends that this forked child has inherited.
///
/// What it is to use came with its arguments. Copies of other ends would keep their
/// peers from learning that the real ones are gone.
pub(crate) fn abandon_inherited() {
    let inherited = std::mem::take(&mut *open_ends());
    for fd in inherited.keys() {
        process::close_inherited(*fd);
    }
    // Freeing the list would only touch memory that is still the parent's.
    std::mem::forget(inherited);
    ABANDONED_BEFORE.store(thread::generation(), Ordering::Relaxed);
}

/// Counts all ends once more for a raw copy of this process that is about to be made: either
/// copy may close its own before the other has used any.
pub(crate) fn count_for_copy() {
    let copy = thread::copies();
    for entry in open_ends().values_mut().filter(|entry| !entry.is_idle()) {
        entry.count(copy);
    }
}

/// Takes [`count_for_copy`] back: there is no copy.
pub(crate) fn uncount_for_copy() {
    for entry in open_ends().values().filter(|entry| !entry.is_idle()) {
        entry.ring.close(entry.end);
    }
}

/// Closes all ends of this process, which is about to end without running destructors.
pub(crate) fn close_all() {
    let open = std::mem::take(&mut *open_ends());
    for (fd, entry) in &open {
        if !entry.is_idle() && entry.ring.close(entry.end) {
            process::ring_inherited(*fd, BELL);
        }
    }
}

/// Says in a raw copy of a process that its ends have been counted.
pub(crate) fn were_counted() {
    COUNTED.store(thread::generation(), Ordering::Relaxed);
}

/// Says in a raw copy of a process that it and its parent both go on with all ends.
///
/// No end is then known to be one process's alone: only the sockets, which close with the last
/// copy, tell that a side is gone.
pub(crate) fn share_inherited() {
    were_counted();
    let (generation, copy) = (thread::generation(), thread::copies());
    for entry in open_ends().values_mut() {
        // What counted for nothing in the parent was not counted for this copy either.
        if let Some(idle) = entry.pair.as_ref().map(|pair| pair.idle(entry.end)) {
            if idle.load(Ordering::Relaxed) != NEVER {
                idle.store(generation, Ordering::Relaxed);
                continue;
            }
        }
        // Another thread has made it, or has begun to use it, after all were counted. Else the end of
        // this copy would be the end of the parent's.
        if entry.counted != copy {
            entry.count(copy);
        }
    }
    SHARED.store(generation, Ordering::Relaxed);
}

/// Whether this process shares the ends it has inherited with its parent.
fn is_shared() -> bool {
    SHARED.load(Ordering::Relaxed) == thread::generation()
}

/// Why a call on a channel did not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There was nothing, or no room, in the time given.
    NotYet,
    /// The other side is gone.
    Disconnected,
    /// Something else.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_disconnected() {
            Self::Disconnected
        } else {
            Self::Other(error)
        }
    }
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// There is something on the socket.
    Rung,
    /// Nobody is left who may use the other side.
    PeerEnded,
    /// The time has passed.
    TooLate,
}

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) ring: Ring,
    pub(crate) heap: Arc<Heap>,
    pub(crate) socket: OwnedFd,
    end: End,
    pair: Option<Arc<Pair>>,
    /// The process that it came to, by forks.
    born: u32,
    /// The process that has used it last, by forks.
    generation: AtomicU32,
    /// A forked child uses the other end: this one stayed with the parent.
    lost: AtomicBool,
    /// Whether giving way pays.
    awake: Awake,
    /// Waits for a peer on this processor.
    together: AtomicU32,
}

impl Side {
    pub(crate) fn new(
        ring: Ring,
        heap: Arc<Heap>,
        socket: OwnedFd,
        end: End,
        pair: Option<Arc<Pair>>,
    ) -> Self {
        thread::watch_forks();
        let entry = Entry {
            ring: ring.clone(),
            end,
            pair: pair.clone(),
            used: NEVER,
            listed: NEVER,
            counted: 0,
            was_forked: false,
            fork: None,
        };
        open_ends().insert(socket.as_raw_fd(), entry);
        Self {
            ring,
            heap,
            socket,
            end,
            pair,
            born: thread::generation(),
            generation: AtomicU32::new(NEVER),
            lost: AtomicBool::new(false),
            awake: Awake::in_turn(),
            together: AtomicU32::new(0),
        }
    }

    /// The other side of the ring.
    pub(crate) fn peer(&self) -> End {
        match self.end {
            End::Sender => End::Receiver,
            End::Receiver => End::Sender,
        }
    }

    /// Runs `work` as the only user of this end, in any process.
    ///
    /// `work` is told whether the user before died at it.
    #[inline]
    pub(crate) fn exclusively<R>(
        &self,
        patience: Patience,
        work: impl FnOnce(Taken) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        if self.generation.load(Ordering::Relaxed) != thread::generation() {
            self.adopt()?;
        }
        let lock = self.ring.lock(self.end);
        let taken = match patience {
            Patience::Never => lock.try_lock(),
            patience => lock.try_lock().or_else(|refused| match refused {
                Refused::Held => lock.lock(patience.deadline()),
                other => Err(other),
            }),
        };
        struct Unlock<'a>(&'a Side);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.ring.lock(self.0.end).unlock();
            }
        }
        match taken {
            Ok(taken) => {
                let _unlock = Unlock(self);
                work(taken)
            }
            Err(Refused::Held) => Err(Failure::NotYet),
            Err(Refused::Own) => Err(Failure::Other(Error::new(
                ErrorKind::Busy,
                "this thread is already using this end of the pipe",
            ))),
            Err(Refused::Unsupported(error)) => {
                Err(Failure::Other(Error::os("lock an end of a pipe", error)))
            }
        }
    }

    /// Whether somebody uses this end at this moment.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_in_use(&self) -> bool {
        !self.ring.lock(self.end).is_free()
    }

    /// Begins to use this end in a process that shares all ends with its parent.
    ///
    /// If this process has not used the other end so far, its copy of that counts for nothing
    /// from now on (until it is used after all): this end is to learn that the real one is closed.
    #[cold]
    fn adopt_shared(&self) -> Result<(), Failure> {
        let generation = thread::generation();
        if let Some(pair) = &self.pair {
            let was_idle = pair
                .idle(self.end)
                .compare_exchange(generation, NEVER, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
            if was_idle {
                self.ring.open(self.end);
            } else if pair.of(self.peer()).load(Ordering::Relaxed) >= 0
                && pair.idle(self.peer()).load(Ordering::Relaxed) == NEVER
            {
                pair.idle(self.peer()).store(generation, Ordering::Relaxed);
                self.ring.close(self.peer());
            }
        }
        self.generation.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Makes this end the forked child's. The child's copy of the other end goes, as it
    /// would hide that the real one is gone.
    #[cold]
    fn adopt(&self) -> Result<(), Failure> {
        let generation = thread::generation();
        if self.born == generation {
            self.generation.store(generation, Ordering::Relaxed);
            heirs::first_use(self.socket.as_raw_fd());
            return Ok(());
        }
        if is_shared() {
            return self.adopt_shared();
        }
        let before = match self.generation.load(Ordering::Relaxed) {
            NEVER => self.born,
            generation => generation,
        };
        let is_abandoned = before < ABANDONED_BEFORE.load(Ordering::Relaxed);
        if is_abandoned || self.lost.load(Ordering::Relaxed) {
            return Err(Failure::Other(Error::new(
                ErrorKind::Closed,
                "this end of the pipe stayed with the parent; give it to the child as an argument, \
                 or let a closure of a scope use one end of the pipe only",
            )));
        }
        let mut other = -1;
        if let Some(pair) = &self.pair {
            let own = pair.of(self.end).load(Ordering::Relaxed);
            if own == i32::MIN {
                self.lost.store(true, Ordering::Relaxed);
                return self.adopt();
            }
            other = pair.of(self.peer()).swap(i32::MIN, Ordering::Relaxed);
        }
        if COUNTED.load(Ordering::Relaxed) != generation {
            self.ring.open(self.end);
        }
        // Siblings may have copies of the socket, which then does not tell that this process
        // is gone.
        heirs::adopt(self.socket.as_raw_fd(), other);
        if other >= 0 {
            process::neutralize(other);
        }
        self.generation.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Spins, or gives way, for as long as that is likely to be quicker than sleeping.
    /// True once `done` says so.
    pub(crate) fn linger(&self, spin: &mut u64, done: impl Fn() -> bool) -> bool {
        let here = thread::cpu();
        self.ring.set_cpu(self.end, here);
        match self.ring.cpu(self.peer()) {
            // The peer has never run: it is still to be started.
            None => false,
            Some(there) if there == here => {
                // Two that give way to each other look too busy to be moved apart. Who is woken
                // goes to a processor that is free, if there is one.
                let times = self.together.fetch_add(1, Ordering::Relaxed);
                times % TOGETHER != TOGETHER - 1 && self.awake.until(done)
            }
            Some(_) => awake::spin(spin, SPIN_MAX, done),
        }
    }

    /// As [`linger`](Self::linger), for a message, and gives way for a moment where spinning was in
    /// vain, if that has been worth the while.
    ///
    /// Two ends that sleep find each other asleep: each wait is as long as a wake-up then,
    /// longer than spinning has ever helped, until one of them stays awake for so long. And the
    /// peer may have come to this processor, where it waits for this thread.
    pub(crate) fn stay(&self, spin: &mut u64, done: impl Fn() -> bool) -> bool {
        if self.linger(spin, &done) {
            return true;
        }
        let there = self.ring.cpu(self.peer());
        there.is_some_and(|there| there != thread::cpu()) && self.awake.until(done)
    }

    /// Waits until there is something on the socket, or nobody is left who may use the other
    /// side. `watched` keeps the handle of a process that may between calls.
    pub(crate) fn sleep(
        &self,
        watched: &mut Watched,
        patience: Patience,
    ) -> Result<Woken, Failure> {
        let look = if patience == Patience::Forever && self.has_left_both() {
            Look::ForEver
        } else {
            Look::Asleep
        };
        loop {
            if watched.nobody_is_left(&self.ring, self.peer(), look) {
                return Ok(Woken::PeerEnded);
            }
            let mut fds = vec![(self.socket(), Interest::Readable)];
            if let Some(handle) = watched.handle() {
                fds.push((handle.as_fd(), Interest::Readable));
            }
            let mut ready = Vec::new();
            let count = socket::poll(&fds, patience.deadline(), &mut ready).map_err(|error| {
                Failure::Other(Error::os("wait for the other end of a pipe", error))
            })?;
            match (count, ready.first()) {
                (0, _) => return Ok(Woken::TooLate),
                (_, Some(true)) => return Ok(Woken::Rung),
                // It has ended; somebody else may use the other side still.
                _ => watched.forget(),
            }
        }
    }

    /// Whether nobody is left who may use the other side, where the socket does not tell.
    pub(crate) fn is_forsaken(&self, watched: &mut Watched) -> bool {
        watched.nobody_is_left(&self.ring, self.peer(), Look::Anew)
    }

    /// Whether this process has forked children with copies of both ends, and still has both: the
    /// other end may be meant for the children only.
    fn has_left_both(&self) -> bool {
        let Some(pair) = &self.pair else {
            return false;
        };
        let other = pair.of(self.peer()).load(Ordering::Relaxed);
        other >= 0 && !process::is_hosted() && heirs::was_forked(other)
    }

    /// Whether the socket alone tells that the other side is gone.
    pub(crate) fn is_told_by_socket(&self) -> bool {
        !self.ring.is_told_by_holders(self.peer()) && !self.has_left_both()
    }

    /// Rings the other side, which has asked for it.
    pub(crate) fn ring_peer(&self) -> Result<(), Failure> {
        // Whoever wakes looks next at where this end runs.
        self.ring.set_cpu(self.end, thread::cpu());
        match socket::send(self.socket.as_fd(), &[BELL], &[], false) {
            Ok(_) => Ok(()),
            // So many bytes wait already that one more would change nothing.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Error::os("wake the other end of a pipe", error).into()),
        }
    }

    /// Prepares this end for its trip in a message: one more has it from now on.
    pub(crate) fn depart(&self) {
        self.ring.disclaim(self.end);
        self.ring.open(self.end);
        self.ring.arm_for_copies(self.end);
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The spin time to begin with.
pub(crate) const SPIN_START: u64 = SPIN_MAX / 2;

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(pair) = &self.pair {
            let own = pair.of(self.end);
            if own.load(Ordering::Relaxed) >= 0 {
                own.store(-1, Ordering::Relaxed);
            }
        }
        let fd = self.socket.as_raw_fd();
        let Some(mut entry) = open_ends().remove(&fd) else {
            // It was closed already, when the process was about to end.
            return;
        };
        if let Some(child) = thread::heir(std::ptr::from_ref(self)) {
            heirs::bequeath(&mut entry, fd, child);
        } else {
            heirs::give_up(&mut entry, fd);
        }
        let generation = thread::generation();
        let is_ours = self.born == generation
            || self.generation.load(Ordering::Relaxed) == generation
            || (is_shared() && !entry.is_idle());
        if is_ours && !thread::is_left_to_child() && self.ring.close(self.end) {
            let _ = self.ring_peer();
        }
    }
}
