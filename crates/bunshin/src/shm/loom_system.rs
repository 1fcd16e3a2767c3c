//! Under loom: threads, their lists of robust locks, and futexes, as the kernel has them.
//!
//! A thread can be killed at its n-th call into this module (`enter`): the call unwinds,
//! as far as `run`, which then does to each lock what the kernel does when a thread ends
//! (`handle_futex_death` in its `kernel/futex`).

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};

pub(crate) use crate::sys::thread::{OWNER, OWNER_DIED, WAITERS};

#[derive(Default)]
struct Thread {
    tid: u32,
    /// Calls until it is killed.
    calls_left: Option<u32>,
    pending: Option<usize>,
    list: Vec<usize>,
    /// When it has looked again.
    looked_at: u32,
}

loom::thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

/// Who sleeps on which word, in the order in which they began.
struct Futexes {
    sleepers: Mutex<Vec<(usize, u32)>>,
    woken: Condvar,
    now: Mutex<u32>,
    /// Identities of those who have ended.
    gone: Mutex<Vec<u64>>,
}

loom::lazy_static! {
    static ref STEPS: AtomicU32 = AtomicU32::new(0);
    static ref FUTEXES: Futexes = Futexes {
        sleepers: Mutex::new(Vec::new()),
        woken: Condvar::new(),
        now: Mutex::new(0),
        gone: Mutex::new(Vec::new()),
    };
}

impl Futexes {
    fn sleepers(&self) -> MutexGuard<'_, Vec<(usize, u32)>> {
        self.sleepers.lock().expect("no panic while it is held")
    }
}

/// What a killed thread unwinds with.
struct Killed;

/// Runs `work` as thread `tid`, killed at its call number `kill_at` if it makes so many.
/// `None` if it was killed; the caller then has each lock told by [`thread_ended`].
pub(super) fn run<R>(tid: u32, kill_at: Option<u32>, work: impl FnOnce() -> R) -> Option<R> {
    THREAD.with(|thread| {
        *thread.borrow_mut() = Thread {
            tid,
            calls_left: kill_at,
            ..Thread::default()
        }
    });
    let result = catch_unwind(AssertUnwindSafe(work));
    THREAD.with(|thread| thread.borrow_mut().calls_left = None);
    match result {
        Ok(result) => Some(result),
        Err(reason) if reason.is::<Killed>() => None,
        Err(reason) => resume_unwind(reason),
    }
}

/// A place to be killed at, as each call of the lock into the system is.
pub(super) fn call() {
    let killed = THREAD.with(|thread| match &mut thread.borrow_mut().calls_left {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    });
    if killed {
        resume_unwind(Box::new(Killed));
    }
}

/// Whether this thread is being killed: then its destructors do nothing, as they do not run.
pub(super) fn is_killed() -> bool {
    THREAD.with(|thread| thread.borrow().calls_left == Some(0)) && std::thread::panicking()
}

/// A place to be killed at, and to be interrupted at.
///
/// Loom interrupts a thread before an access that depends on another thread's last one to the
/// same word, and knows the last access only: a writer that looks before it writes hides a
/// reader that has looked before. Here all depend on each other. Relaxed, it orders nothing.
pub(super) fn step() {
    call();
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// What the kernel does to a lock when the thread that calls this has been killed.
pub(super) fn thread_ended(word: &AtomicU32, node: &Node) {
    let (tid, is_linked, is_pending) = THREAD.with(|thread| {
        let thread = thread.borrow();
        (
            thread.tid,
            thread.list.contains(&node.address()),
            thread.pending == Some(node.address()),
        )
    });
    if !is_linked && !is_pending {
        return;
    }
    let mut seen = word.load(Ordering::SeqCst);
    loop {
        if is_pending && seen & OWNER == 0 {
            wake(word, 1);
            return;
        }
        if seen & OWNER != tid {
            return;
        }
        let died = seen & WAITERS | OWNER_DIED;
        match word.compare_exchange(seen, died, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) if seen & WAITERS != 0 => {
                wake(word, 1);
                return;
            }
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

pub(crate) fn tid() -> u32 {
    THREAD.with(|thread| thread.borrow().tid)
}

/// Each thread is a process here.
pub(crate) fn identity() -> io::Result<u64> {
    Ok(u64::from(tid()))
}

pub(crate) fn is_same_process(one: u64, other: u64) -> bool {
    one == other
}

/// Whether [`process_ended`] was called there.
pub(crate) fn is_gone(identity: u64, _thoroughly: bool) -> bool {
    let gone = FUTEXES.gone.lock().expect("no panic while it is held");
    gone.contains(&identity)
}

/// The process that is the thread that calls this has been killed.
pub(super) fn process_ended() {
    let mut gone = FUTEXES.gone.lock().expect("no panic while it is held");
    gone.push(u64::from(tid()));
}

pub(crate) fn is_own_thread(tid: u32) -> bool {
    tid != 0
}

/// With a deadline, the time runs out at once; otherwise as [`doze`].
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
    if deadline.is_some() {
        call();
        return true;
    }
    doze(word, expected, None);
    false
}

/// Sleeps while the word holds `expected`, unless `is_late`.
fn sleep(word: &AtomicU32, expected: u32, is_late: impl Fn() -> bool) {
    let me = (address(word), tid());
    let mut sleepers = FUTEXES.sleepers();
    if word.load(Ordering::Relaxed) == expected && !is_late() {
        sleepers.push(me);
        while sleepers.contains(&me) {
            sleepers = FUTEXES.woken.wait(sleepers).expect("as in `sleepers`");
        }
    }
}

pub(crate) fn futex_wake(word: &AtomicU32, count: u32) -> u32 {
    call();
    wake(word, count)
}

fn wake(word: &AtomicU32, count: u32) -> u32 {
    let mut left = count;
    FUTEXES.sleepers().retain(|(on, _)| {
        let stays = *on != address(word) || left == 0;
        left -= u32::from(!stays);
        stays
    });
    FUTEXES.woken.notify_all();
    count - left
}

/// After each call of [`seconds_pass`], a thread that dozes looks again once.
pub(crate) fn doze(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
    call();
    if deadline.is_some() {
        return true;
    }
    sleep(word, expected, is_late);
    call();
    let is_late = is_late();
    THREAD.with(|thread| thread.borrow_mut().looked_at = now());
    is_late
}

fn is_late() -> bool {
    THREAD.with(|thread| thread.borrow().looked_at) < now()
}

fn now() -> u32 {
    *FUTEXES.now.lock().expect("no panic while it is held")
}

/// Models have no signals.
pub(crate) fn is_interrupted() -> bool {
    false
}

/// Whoever dozes looks again, as it does each second.
pub(super) fn seconds_pass() {
    let mut sleepers = FUTEXES.sleepers();
    *FUTEXES.now.lock().expect("no panic while it is held") += 1;
    sleepers.clear();
    FUTEXES.woken.notify_all();
}

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word) as usize
}

/// A node is known by its address alone.
#[derive(Debug, Default)]
pub(crate) struct Node(u8);

impl Node {
    fn address(&self) -> usize {
        &raw const self.0 as usize
    }
}

pub(crate) struct Pending;

impl Pending {
    pub(crate) fn begin(node: &Node) -> io::Result<Self> {
        call();
        THREAD.with(|thread| thread.borrow_mut().pending = Some(node.address()));
        Ok(Self)
    }

    pub(crate) fn link(&self, node: &Node) {
        call();
        THREAD.with(|thread| {
            let list = &mut thread.borrow_mut().list;
            assert!(!list.contains(&node.address()), "a list with a loop");
            list.push(node.address());
        });
    }

    pub(crate) fn unlink(&self, node: &Node) {
        call();
        THREAD.with(|thread| {
            thread
                .borrow_mut()
                .list
                .retain(|linked| *linked != node.address());
        });
    }

    pub(crate) fn end(self) {
        call();
        THREAD.with(|thread| thread.borrow_mut().pending = None);
    }
}

/// Another thread's turn.
pub(crate) fn pause() {
    loom::thread::yield_now();
}

pub(crate) fn give_way() {
    pause();
}

pub(crate) fn cpu() -> u32 {
    0
}

pub(crate) fn ticks() -> u64 {
    0
}
