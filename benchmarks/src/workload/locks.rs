//! Locks and signals between two processes, each on a core of its own unless the row says
//! otherwise: the same work for every peer.
//!
//! A contended lock protects a counter that is changed in two steps; at the end it must be
//! what both sides have counted. In a round trip of signals each side waits for the other's, so
//! that a lost one hangs the measurement, which the runner then ends.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Work;
use super::link;
use crate::measure::{self, Result};

/// What takes a lock for a moment.
pub trait Excludes: Sync {
    fn within(&self, work: impl FnOnce()) -> Result<()>;
}

/// A signal each way: side 0 is waited for by the child, side 1 by the measuring process.
pub trait Signals: Sync {
    fn signal(&self, side: usize) -> Result<()>;
    fn wait(&self, side: usize) -> Result<()>;
}

/// A point that both sides pass together.
pub trait Meets: Sync {
    fn meet(&self) -> Result<()>;
}

/// Where the other side runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Far {
    Process,
    /// For peers that work within one process only.
    Thread,
}

/// Memory that a forked child shares, zeroed. It stays until the process ends.
pub fn shared<T>() -> Result<&'static mut T> {
    let (read_write, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a mapping of its own, at an address that the kernel chooses.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            read_write,
            kind,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: mapped for good, aligned to a page, and all types used here may be zero.
    Ok(unsafe { &mut *start.cast::<T>() })
}

/// Starts the other side, which goes on until the measurement is over.
fn start_far(
    far: Far,
    core: usize,
    mut work: impl FnMut() -> Result<()> + Send + 'static,
) -> Result<()> {
    let mut run = move || -> Result<()> {
        measure::pin(core)?;
        loop {
            work()?;
        }
    };
    match far {
        // Killed by the kernel with the measuring process.
        Far::Process => drop(link::fork_into(run)?),
        Far::Thread => drop(std::thread::spawn(move || {
            if let Err(error) = run() {
                eprintln!("in the other thread: {error}");
            }
        })),
    }
    Ok(())
}

/// Seconds that one lock and unlock takes, where nobody else wants the lock.
pub fn pair(work: &Work, lock: impl Excludes) -> Result<f64> {
    measure::pin(work.cores()?.0)?;
    let mut value = 0u64;
    measure::seconds_each(work.budget, u64::MAX, |n_items| {
        for _ in 0..n_items {
            lock.within(|| value = black_box(value + 1))?;
        }
        Ok(())
    })
}

#[derive(Default)]
struct Board {
    /// Changed under the lock, in two steps.
    total: AtomicU64,
    near: AtomicU64,
    far: AtomicU64,
}

impl Board {
    fn change(&self, own: &AtomicU64) {
        let total = self.total.load(Ordering::Relaxed);
        own.store(own.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.total.store(total + 1, Ordering::Relaxed);
    }
}

/// Seconds from one holder to the next, where two want the lock all the time.
pub fn contended<L: Excludes + Send + 'static>(work: &Work, far: Far, lock: L) -> Result<f64> {
    const BATCH: u64 = 10_000;
    let lock: &'static L = Box::leak(Box::new(lock));
    let board: &'static Board = shared()?;
    let (near_core, far_core) = work.cores()?;
    start_far(far, far_core, move || {
        lock.within(|| board.change(&board.far))
    })?;
    measure::pin(near_core)?;
    while board.far.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let mut samples = Vec::new();
    let started = Instant::now();
    while samples.len() < 3 || started.elapsed() < work.budget {
        let before = board.far.load(Ordering::Relaxed);
        let batch = Instant::now();
        for _ in 0..BATCH {
            lock.within(|| board.change(&board.near))?;
        }
        let took = batch.elapsed().as_secs_f64();
        let others = board.far.load(Ordering::Relaxed) - before;
        samples.push(took / (BATCH + others) as f64);
    }
    let mut counted = (0, 0);
    lock.within(|| {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        counted = (load(&board.total), load(&board.near) + load(&board.far));
    })?;
    if counted.0 != counted.1 {
        return Err(format!("two were inside: {} of {}", counted.0, counted.1).into());
    }
    Ok(measure::median(&mut samples))
}

/// Seconds from a signal until its answer has come; both sides sleep in between.
pub fn round_trip<S: Signals + Send + 'static>(work: &Work, far: Far, signals: S) -> Result<f64> {
    let signals: &'static S = Box::leak(Box::new(signals));
    let (near_core, far_core) = work.cores()?;
    start_far(far, far_core, move || {
        signals.wait(0)?;
        signals.signal(1)
    })?;
    measure::pin(near_core)?;
    measure::seconds_each(work.budget, u64::MAX, |n_items| {
        for _ in 0..n_items {
            signals.signal(0)?;
            signals.wait(1)?;
        }
        Ok(())
    })
}

/// Seconds from one meeting at a barrier to the next.
pub fn meetings<M: Meets + Send + 'static>(work: &Work, far: Far, barrier: M) -> Result<f64> {
    let barrier: &'static M = Box::leak(Box::new(barrier));
    let board: &'static Board = shared()?;
    let (near_core, far_core) = work.cores()?;
    let count = |own: &AtomicU64| own.store(own.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    start_far(far, far_core, move || {
        count(&board.far);
        barrier.meet()
    })?;
    measure::pin(near_core)?;
    measure::seconds_each(work.budget, u64::MAX, |n_items| {
        for _ in 0..n_items {
            count(&board.near);
            barrier.meet()?;
            // The other side may be on its way to the next meeting, and no further.
            let near = board.near.load(Ordering::Relaxed);
            let far = board.far.load(Ordering::Relaxed);
            if far != near && far != near + 1 {
                return Err(format!("meeting {near} of this side was {far} of the other").into());
            }
        }
        Ok(())
    })
}
