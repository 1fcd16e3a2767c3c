//! Threads: identity, processor, the kernel's list of robust locks, futexes.
//!
//! The list of robust locks is the one that the C library registered for each
//! thread (`set_robust_list(2)`). Our locks are linked into it beside the C
//! library's own robust mutexes, in the same shape: a node is two pointers, to
//! the previous and the next node's `next` field, and the lock word lies at a
//! fixed distance before it. When a thread ends in any way, the kernel walks the
//! list, marks each word that still holds the thread's id with `OWNER_DIED`, and
//! wakes a waiter.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::interrupt;

/// Bits of a lock word that hold the owner's thread id.
pub(crate) const OWNER: u32 = 0x3fff_ffff;
/// Set by the kernel when the owner has died with the lock.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// Set by whoever sleeps on the word.
pub(crate) const WAITERS: u32 = 0x8000_0000;

/// Counts the forks between this process and the one that `main` ran in.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static AT_FORK: Once = Once::new();

thread_local! {
    static TID: Cell<u32> = const { Cell::new(0) };
    static HEAD: Cell<*mut Head> = const { Cell::new(std::ptr::null_mut()) };
}

/// Counts the raw forks that this process has made: children that go on with all of its
/// memory, for as long as they like.
static COPIES: AtomicU32 = AtomicU32::new(0);

/// How many raw copies of this process were made so far.
#[inline]
pub(crate) fn copies() -> u32 {
    COPIES.load(Ordering::Relaxed)
}

/// A raw copy of this process is about to be made.
pub(crate) fn count_copy() {
    COPIES.fetch_add(1, Ordering::Relaxed);
}

/// How many forks lie between the first process and this one; differs between
/// a forked child and its parent.
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Has the C library call [`after_fork`] in every child that `fork` makes.
pub(crate) fn watch_forks() {
    AT_FORK.call_once(|| {
        extern "C" fn in_child() {
            after_fork();
        }
        // SAFETY: the handler only stores to an atomic and to thread-locals without destructors.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// Drops what a forked child must not believe of itself any more.
pub(crate) fn after_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    TID.set(0);
    HEAD.set(std::ptr::null_mut());
    IDENTITY.set(0);
    PROCESS.store(0, Ordering::Relaxed);
}

/// What a forked child goes on with, while this process drops its copy.
#[derive(Clone, Copy)]
struct Legacy {
    child: u32,
    from: usize,
    to: usize,
}

thread_local! {
    static LEAVING: Cell<Option<Legacy>> = const { Cell::new(None) };
}

/// Drops a value that a forked child has a copy of and goes on with.
///
/// What the value shares with other processes is the child's now: destructors that
/// ask [`is_left_to_child`] close this process's handles and change nothing else.
pub(crate) fn leave_to_child<T>(value: T, child: u32) {
    struct Restore(Option<Legacy>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEAVING.set(self.0);
        }
    }
    let _restore = Restore(LEAVING.get());
    // Dropped here, at the address that is noted, and before what is above.
    let value = value;
    let from = (&raw const value) as usize;
    LEAVING.set(Some(Legacy {
        child,
        from,
        to: from + size_of::<T>(),
    }));
}

/// Whether what is being dropped lives on in a forked child.
pub(crate) fn is_left_to_child() -> bool {
    LEAVING.get().is_some()
}

/// The child that this value is left to and nobody else: it lies in what is being left itself,
/// rather than behind a pointer that others may have too.
pub(crate) fn heir<T>(value: *const T) -> Option<u32> {
    let legacy = LEAVING.get()?;
    let is_inside = (legacy.from..legacy.to).contains(&(value as usize));
    is_inside.then_some(legacy.child)
}

/// This thread's id, as the kernel knows it.
#[inline]
pub(crate) fn tid() -> u32 {
    match TID.get() {
        0 => ask_tid(),
        tid => tid,
    }
}

#[cold]
fn ask_tid() -> u32 {
    watch_forks();
    let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    TID.set(tid);
    tid
}

thread_local! {
    static IDENTITY: Cell<u64> = const { Cell::new(0) };
}

/// The part of [`identity`] that all threads of this process have.
static PROCESS: AtomicU64 = AtomicU64::new(0);

/// Bits of an identity that name the thread, and then the process; the rest is from when that
/// began. The kernel's numbers end at 2^22.
const ID_BITS: u32 = 22;
const ID_MASK: u64 = (1 << ID_BITS) - 1;

/// A number for this thread that no other thread has, of any process, and never 0.
///
/// It tells which process that is also after that has ended: [`is_gone`].
///
/// # Errors
/// If the system does not say when this process began.
#[inline]
pub(crate) fn identity() -> io::Result<u64> {
    match IDENTITY.get() {
        0 => find_identity(),
        identity => Ok(identity),
    }
}

#[cold]
fn find_identity() -> io::Result<u64> {
    let tid = tid();
    let mut process = PROCESS.load(Ordering::Relaxed);
    if process == 0 {
        let pid = std::process::id();
        let began = super::process::began(pid).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "it is unknown when this process began: is /proc mounted?",
            )
        })?;
        process = u64::from(pid) << ID_BITS | began << (2 * ID_BITS);
        PROCESS.store(process, Ordering::Relaxed);
    }
    let identity = process | u64::from(tid);
    IDENTITY.set(identity);
    Ok(identity)
}

/// Whether two identities are those of threads of one process.
pub(crate) fn is_same_process(one: u64, other: u64) -> bool {
    (one ^ other) >> ID_BITS == 0
}

/// Whether the process of an identity has ended. Looks closely if `thoroughly`, and else only
/// where that is cheap: it may then take an ended process that nobody has collected for a
/// living one.
pub(crate) fn is_gone(identity: u64, thoroughly: bool) -> bool {
    let pid = (identity >> ID_BITS & ID_MASK) as u32;
    let Some(known) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return true;
    };
    let is_it = |began: u64| began << (2 * ID_BITS) == identity >> (2 * ID_BITS) << (2 * ID_BITS);
    match rustix::process::test_kill_process(known) {
        Err(rustix::io::Errno::SRCH) => true,
        _ if !thoroughly => false,
        Ok(()) => !super::process::began(pid).is_some_and(is_it),
        // Another user's, of which the system may not say more.
        Err(_) => super::process::began(pid).is_some_and(|began| !is_it(began)),
    }
}

/// Whether `tid` is a thread of this process.
pub(crate) fn is_own_thread(tid: u32) -> bool {
    tid != 0 && rustix::fs::stat(format!("/proc/self/task/{tid}")).is_ok()
}

/// How many threads this process has.
pub(crate) fn count() -> io::Result<usize> {
    // The link count of /proc/self/task is two and one for each thread: one call, no listing.
    let stat = rustix::fs::stat("/proc/self/task")?;
    Ok(usize::try_from(stat.st_nlink)
        .unwrap_or(usize::MAX)
        .saturating_sub(2)
        .max(1))
}

/// Whether this is the thread that `main` runs in, which lives as long as the process.
pub(crate) fn is_main() -> bool {
    tid() == std::process::id()
}

/// The processor that this thread runs on just now.
#[inline]
pub(crate) fn cpu() -> u32 {
    u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(0)
}

/// Processors that this process may use.
pub(crate) fn cpus() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count().max(1) as usize)
}

/// As [`cpus`], as of some milliseconds ago at most: for those who ask again and again.
pub(crate) fn recent_cpus() -> usize {
    /// In ticks.
    const RECENT: u64 = 10_000_000;
    thread_local! {
        static KNOWN: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
    }
    let (since, known) = KNOWN.get();
    let now = ticks();
    if known != 0 && now.wrapping_sub(since) < RECENT {
        return known;
    }
    let cpus = cpus();
    KNOWN.set((now, cpus));
    cpus
}

/// Moves this thread to another processor, if it may run on another.
///
/// It may be moved back at once. Two threads that take turns, and never run at the same time, are
/// left on one processor by the system, though each could look there for what the other does
/// without waiting for its turn.
pub(crate) fn leave_cpu(cpu: u32) {
    let cpu = cpu as usize;
    let Ok(all) = rustix::thread::sched_getaffinity(None) else {
        return;
    };
    if cpu >= rustix::thread::CpuSet::MAX_CPU || !all.is_set(cpu) || all.count() < 2 {
        return;
    }
    let mut others = all;
    others.unset(cpu);
    if rustix::thread::sched_setaffinity(None, &others).is_ok() {
        // Where it is now it may stay, and it may go back.
        let _ = rustix::thread::sched_setaffinity(None, &all);
    }
}

/// Lets another thread that waits for this processor run.
#[inline]
pub(crate) fn give_way() {
    rustix::thread::sched_yield();
}

/// Sleeps for a moment, where there is nothing to be woken by.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_micros(50));
}

/// Ticks of a cheap clock that only says how long ago something was, in units of
/// roughly a nanosecond or less.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: reading the time stamp counter has no other effect.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// Why a sleep on a word has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// It was woken, or the word has another value, or for no reason.
    Well,
    /// The time ran out.
    TooLong,
    /// The program wants an interruption.
    Interrupted,
}

/// Sleeps while the word holds `expected`, for so long at most.
fn sleep_on(word: &AtomicU32, expected: u32, left: Duration) -> Slept {
    if left == Duration::ZERO {
        return Slept::TooLong;
    }
    let timeout = futex::Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    // Shared between processes, hence without the PRIVATE flag.
    match futex::wait(word, futex::Flags::empty(), expected, Some(&timeout)) {
        Err(rustix::io::Errno::TIMEDOUT) => Slept::TooLong,
        Err(rustix::io::Errno::INTR) if interrupt::is_wanted() => Slept::Interrupted,
        _ => Slept::Well,
    }
}

/// Sleeps while the word holds `expected`, or until the deadline.
///
/// Returns whether the time ran out, or the program wants an interruption; may return early for
/// no reason, and does when it is time to look again, as in [`doze`].
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
    match time_left(deadline) {
        left if left < LOOK_AGAIN => sleep_on(word, expected, left) != Slept::Well,
        _ => sleep_on(word, expected, LOOK_AGAIN) == Slept::Interrupted,
    }
}

/// Wakes up to `count` sleepers, and says how many there were.
pub(crate) fn futex_wake(word: &AtomicU32, count: u32) -> u32 {
    let woken = futex::wake(word, futex::Flags::empty(), count);
    woken.map_or(0, |woken| u32::try_from(woken).unwrap_or(u32::MAX))
}

/// How long a sleeper sleeps before it looks whether somebody died whom nobody reports.
const LOOK_AGAIN: Duration = Duration::from_millis(800);

/// As [`futex_wait`], but never for longer than until it is time to look again. Returns whether
/// that time or the deadline has come.
pub(crate) fn doze(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
    let left = time_left(deadline);
    if sleep_on(word, expected, left.min(LOOK_AGAIN)) == Slept::Well {
        return false;
    }
    // A signal that came just before the sleep has not ended it.
    if !interrupt::is_pending() {
        interrupt::is_wanted();
    }
    true
}

/// Whether a signal is to end what this thread waits for.
#[inline]
pub(crate) fn is_interrupted() -> bool {
    interrupt::is_pending()
}

/// How much time there is; the clock is asked only where it has to be.
fn time_left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    })
}

/// `struct robust_list_head` of the kernel.
#[repr(C)]
struct Head {
    /// The first node's `next` field; its lowest bit belongs to the C library.
    list: usize,
    /// From a node's `next` field to its lock word.
    futex_offset: isize,
    /// A node that is about to be added or removed.
    pending: usize,
}

/// A node of the list, inside each lock. Its addresses mean something only in
/// the process of the thread that holds the lock.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Node {
    previous: Cell<usize>,
    next: Cell<usize>,
}

/// From a [`Node`] back to the lock word that it belongs to.
pub(crate) const WORD_FROM_NODE: isize = -24;

/// From the `next` field of a node back to the lock word, as the kernel is told; the shape of
/// the C library's own mutex.
const WORD_FROM_NEXT: isize = WORD_FROM_NODE - std::mem::offset_of!(Node, next) as isize;

#[inline]
fn head() -> io::Result<NonNull<Head>> {
    match NonNull::new(HEAD.get()) {
        Some(head) => Ok(head),
        None => find_head(),
    }
}

#[cold]
fn find_head() -> io::Result<NonNull<Head>> {
    watch_forks();
    let mut head: *mut Head = std::ptr::null_mut();
    let mut len = 0usize;
    // SAFETY: the kernel writes one pointer and one length to two locals.
    let rc = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let found = NonNull::new(head).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "this thread has no list of robust locks",
        )
    })?;
    // SAFETY: the C library registered this head for the life of the thread.
    let offset = unsafe { (*head).futex_offset };
    if offset != WORD_FROM_NEXT {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the C library's robust locks have a shape that bunshin does not know",
        ));
    }
    HEAD.set(head);
    Ok(found)
}

/// Announces that `node`'s lock is being taken or given back, until [`Pending::end`]:
/// if the thread dies in between, the kernel looks at that lock too.
pub(crate) struct Pending(NonNull<Head>);

impl Pending {
    #[inline]
    pub(crate) fn begin(node: &Node) -> io::Result<Self> {
        let head = head()?;
        // SAFETY: the head lives as long as this thread, and only this thread writes to it.
        unsafe { (*head.as_ptr()).pending = node.next.as_ptr() as usize };
        // The kernel reads the list when this very thread ends: program order is all it takes.
        compiler_fence(Ordering::SeqCst);
        Ok(Self(head))
    }

    /// Links the node in: the lock is held.
    #[inline]
    pub(crate) fn link(&self, node: &Node) {
        let head = self.0.as_ptr();
        // SAFETY: as in `begin`.
        let first = unsafe { (*head).list };
        node.next.set(first);
        node.previous.set(head as usize);
        // SAFETY: the list is circular; `first` is the `next` field of a live node or of the
        // head, and the field before it is that node's `previous` (the C library's head has one too).
        unsafe { Self::set_previous(first, node.next.as_ptr() as usize) };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `begin`.
        unsafe { (*head).list = node.next.as_ptr() as usize };
    }

    /// Takes the node out: the lock is about to be given back.
    #[inline]
    pub(crate) fn unlink(&self, node: &Node) {
        let (next, previous) = (node.next.get(), node.previous.get());
        // SAFETY: both neighbours are live nodes of this thread's list, or its head.
        unsafe { Self::set_previous(next, previous) };
        // SAFETY: as above; `previous` points at a `next` field.
        unsafe { *((previous & !1) as *mut usize) = next };
        compiler_fence(Ordering::SeqCst);
    }

    /// # Safety
    /// `next` is the address of the `next` field of a node of this thread's list.
    #[inline]
    unsafe fn set_previous(next: usize, to: usize) {
        let field = ((next & !1) - size_of::<usize>()) as *mut usize;
        // SAFETY: the caller says that a node is there; `previous` lies right before `next`.
        unsafe { *field = to };
    }

    #[inline]
    pub(crate) fn end(self) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `begin`.
        unsafe { (*self.0.as_ptr()).pending = 0 };
    }
}

/// Empties the list of robust locks of a child that was cloned past the C library,
/// and registers it again; to be called with the head that [`list_head`] gave before.
pub(crate) fn adopt_list(head: usize) {
    let Some(head) = NonNull::new(head as *mut Head) else {
        return;
    };
    // SAFETY: the head is the C library's, in the child's own copy of its memory.
    let list = unsafe { &raw mut (*head.as_ptr()).list };
    // SAFETY: this is the only thread, and it holds no lock: the list is empty again.
    unsafe { *list = list as usize };
    // SAFETY: `robust_prev` of the C library lies right before the head.
    unsafe { Pending::set_previous(list as usize, list as usize) };
    // SAFETY: the address and length are those that the C library registered for this thread.
    unsafe { libc::syscall(libc::SYS_set_robust_list, head.as_ptr(), size_of::<Head>()) };
}

/// The address of this thread's list head, or 0.
pub(crate) fn list_head() -> usize {
    head().map_or(0, |head| head.as_ptr() as usize)
}

/// Whether this thread's list of robust locks has any: for tests, at a point where it has given
/// all back.
#[cfg(test)]
pub(crate) fn has_robust_lock() -> bool {
    // SAFETY: as in `begin`.
    head().is_ok_and(|head| unsafe { (*head.as_ptr()).list } != head.as_ptr() as usize)
}
