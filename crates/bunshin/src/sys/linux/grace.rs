//! A short while between the end of the parent and that of this process.
//!
//! The system signals the parent's end with a signal of ours, whose handler starts a timer that
//! was made beforehand and kills this process. What the handler does is async-signal-safe.
//!
//! The signal also comes when only the thread ends that this process was made by; it then has
//! another thread of the parent's for its parent, and the signal comes again when that ends. A
//! handler can tell the one from the other, so that any thread may make children.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::process::parent_id;

/// The timer that ends this process.
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());
/// The process that the timer is of: a copy of it has none, and is not signalled either.
static MADE_IN: AtomicU32 = AtomicU32::new(0);
/// The process that this one is not to outlive.
static PARENT: AtomicU32 = AtomicU32::new(0);
/// What the timer is set to, in nanoseconds.
static GRACE: AtomicU64 = AtomicU64::new(0);

/// One that programs do not use: those that do count from the ends.
fn signal_number() -> i32 {
    libc::SIGRTMAX() - 7
}

/// Ends this process so long after its parent, rather than with it. Programs that it is replaced
/// by (`exec`) end with the parent's thread.
///
/// One that has made a session of its own (setsid(2)) is meant to go on by itself, and does.
///
/// # Errors
/// Those of the system; then it is left as it was.
pub(crate) fn end_after_parent(parent: u32, grace: Duration) -> io::Result<()> {
    let nanoseconds = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    GRACE.store(nanoseconds.max(1), Ordering::SeqCst);
    // Where this process cannot see its parent, in a namespace of its own, that has no number.
    let parent = if parent_id() == 0 { 0 } else { parent };
    PARENT.store(parent, Ordering::SeqCst);
    make_timer()?;
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = start_timer as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handler does only what a handler may, and the action is fully set.
    if unsafe { libc::sigaction(signal_number(), &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let number = signal_number() as libc::c_ulong;
    // SAFETY: this only tells the system which signal to send to this thread's process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // It may have ended before the system was told.
    start_timer(signal_number());
    Ok(())
}

fn make_timer() -> io::Result<()> {
    if MADE_IN.swap(std::process::id(), Ordering::SeqCst) == std::process::id() {
        return Ok(());
    }
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: both pointers are to variables of the right types.
    let rc = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    if rc != 0 {
        MADE_IN.store(0, Ordering::SeqCst);
        return Err(io::Error::last_os_error());
    }
    TIMER.store(timer, Ordering::SeqCst);
    Ok(())
}

extern "C" fn start_timer(_signal: libc::c_int) {
    if parent_id() == PARENT.load(Ordering::SeqCst) || leads_a_session() {
        return;
    }
    let grace = GRACE.load(Ordering::SeqCst);
    let once = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: (grace / 1_000_000_000) as libc::time_t,
            tv_nsec: (grace % 1_000_000_000) as libc::c_long,
        },
    };
    // SAFETY: the timer was made before the handler was set and is never deleted; in a copy of
    // this process the number leads to none, and the call fails.
    unsafe {
        libc::timer_settime(
            TIMER.load(Ordering::SeqCst),
            0,
            &raw const once,
            ptr::null_mut(),
        )
    };
}

fn leads_a_session() -> bool {
    // SAFETY: this only asks the system.
    let session = unsafe { libc::getsid(0) };
    u32::try_from(session).is_ok_and(|session| session == std::process::id())
}
