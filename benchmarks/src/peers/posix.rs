//! The C library's own: robust mutexes, conditions, semaphores and barriers in memory that processes
//! share.

use std::cell::UnsafeCell;
use std::io;

use crate::measure::Result;
use crate::workload::Work;
use crate::workload::locks::{self, Excludes, Far, Meets, Signals};

fn check(status: libc::c_int) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(status).into())
    }
}

/// A mutex, a condition and whose turn it is, in shared memory.
struct Shared {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    changed: UnsafeCell<libc::pthread_cond_t>,
    is_signalled: UnsafeCell<[bool; 2]>,
}

struct Mutex(&'static Shared);

// SAFETY: the C library's objects are for many threads; the flags are used under the mutex.
unsafe impl Sync for Mutex {}
// SAFETY: as above.
unsafe impl Send for Mutex {}

impl Mutex {
    fn new(is_robust: bool) -> Result<Mutex> {
        let shared: &'static Shared = locks::shared()?;
        // SAFETY: attributes are plain data that the next call initialises.
        let mut kind: libc::pthread_mutexattr_t = unsafe { std::mem::zeroed() };
        // SAFETY: there is room for attributes.
        check(unsafe { libc::pthread_mutexattr_init(&mut kind) })?;
        let process_shared = libc::PTHREAD_PROCESS_SHARED;
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::pthread_mutexattr_setpshared(&mut kind, process_shared) })?;
        if is_robust {
            let robust = libc::PTHREAD_MUTEX_ROBUST;
            // SAFETY: the attributes are initialised.
            check(unsafe { libc::pthread_mutexattr_setrobust(&mut kind, robust) })?;
        }
        // SAFETY: the mutex is not in use, and stays where it is.
        check(unsafe { libc::pthread_mutex_init(shared.mutex.get(), &kind) })?;
        // SAFETY: as for the mutex's.
        let mut kind: libc::pthread_condattr_t = unsafe { std::mem::zeroed() };
        // SAFETY: there is room for attributes.
        check(unsafe { libc::pthread_condattr_init(&mut kind) })?;
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::pthread_condattr_setpshared(&mut kind, process_shared) })?;
        // SAFETY: the condition is not in use, and stays where it is.
        check(unsafe { libc::pthread_cond_init(shared.changed.get(), &kind) })?;
        Ok(Mutex(shared))
    }

    fn lock(&self) -> Result<()> {
        // SAFETY: initialised, and mapped for good.
        check(unsafe { libc::pthread_mutex_lock(self.0.mutex.get()) })
    }

    fn unlock(&self) -> Result<()> {
        // SAFETY: as above, and this thread has it.
        check(unsafe { libc::pthread_mutex_unlock(self.0.mutex.get()) })
    }
}

impl Excludes for Mutex {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        self.lock()?;
        work();
        self.unlock()
    }
}

impl Signals for Mutex {
    fn signal(&self, side: usize) -> Result<()> {
        self.lock()?;
        let flags = self.0.is_signalled.get();
        // SAFETY: this thread has the mutex.
        unsafe { (*flags)[side] = true };
        self.unlock()?;
        // SAFETY: initialised, and mapped for good.
        check(unsafe { libc::pthread_cond_signal(self.0.changed.get()) })
    }

    fn wait(&self, side: usize) -> Result<()> {
        self.lock()?;
        let flags = self.0.is_signalled.get();
        // SAFETY: this thread has the mutex.
        while !std::mem::replace(unsafe { &mut (*flags)[side] }, false) {
            let (changed, mutex) = (self.0.changed.get(), self.0.mutex.get());
            // SAFETY: both are initialised, and this thread has the mutex.
            check(unsafe { libc::pthread_cond_wait(changed, mutex) })?;
        }
        self.unlock()
    }
}

/// Two semaphores in shared memory.
struct Semaphores(&'static [UnsafeCell<libc::sem_t>; 2]);

// SAFETY: the C library's semaphores are for many threads.
unsafe impl Sync for Semaphores {}
// SAFETY: as above.
unsafe impl Send for Semaphores {}

fn last_error(status: libc::c_int) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}

impl Semaphores {
    fn new(value: u32) -> Result<Semaphores> {
        let semaphores: &'static [UnsafeCell<libc::sem_t>; 2] = locks::shared()?;
        for semaphore in semaphores {
            // SAFETY: not in use, and stays where it is.
            last_error(unsafe { libc::sem_init(semaphore.get(), 1, value) })?;
        }
        Ok(Semaphores(semaphores))
    }
}

impl Excludes for Semaphores {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        self.wait(0)?;
        work();
        self.signal(0)
    }
}

impl Signals for Semaphores {
    fn signal(&self, side: usize) -> Result<()> {
        // SAFETY: initialised, and mapped for good.
        last_error(unsafe { libc::sem_post(self.0[side].get()) })
    }

    fn wait(&self, side: usize) -> Result<()> {
        // SAFETY: as above.
        last_error(unsafe { libc::sem_wait(self.0[side].get()) })
    }
}

/// A barrier in shared memory.
struct Barrier(&'static UnsafeCell<libc::pthread_barrier_t>);

// SAFETY: the C library's barriers are for many threads.
unsafe impl Sync for Barrier {}
// SAFETY: as above.
unsafe impl Send for Barrier {}

impl Barrier {
    fn new(parties: u32) -> Result<Barrier> {
        let barrier: &'static UnsafeCell<libc::pthread_barrier_t> = locks::shared()?;
        // SAFETY: attributes are plain data that the next call initialises.
        let mut kind: libc::pthread_barrierattr_t = unsafe { std::mem::zeroed() };
        // SAFETY: there is room for attributes.
        check(unsafe { libc::pthread_barrierattr_init(&mut kind) })?;
        let process_shared = libc::PTHREAD_PROCESS_SHARED;
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::pthread_barrierattr_setpshared(&mut kind, process_shared) })?;
        // SAFETY: the barrier is not in use, and stays where it is.
        check(unsafe { libc::pthread_barrier_init(barrier.get(), &kind, parties) })?;
        Ok(Barrier(barrier))
    }
}

impl Meets for Barrier {
    fn meet(&self) -> Result<()> {
        // SAFETY: initialised, and mapped for good.
        match unsafe { libc::pthread_barrier_wait(self.0.get()) } {
            // One of the parties is told that it is the one.
            libc::PTHREAD_BARRIER_SERIAL_THREAD => Ok(()),
            status => check(status),
        }
    }
}

pub fn robust_pair(work: &Work) -> Result<f64> {
    locks::pair(work, Mutex::new(true)?)
}

pub fn plain_pair(work: &Work) -> Result<f64> {
    locks::pair(work, Mutex::new(false)?)
}

pub fn semaphore_pair(work: &Work) -> Result<f64> {
    locks::pair(work, Semaphores::new(1)?)
}

pub fn robust_contended(work: &Work) -> Result<f64> {
    locks::contended(work, Far::Process, Mutex::new(true)?)
}

pub fn semaphore_contended(work: &Work) -> Result<f64> {
    locks::contended(work, Far::Process, Semaphores::new(1)?)
}

/// A condition with a robust mutex.
pub fn condition_round_trip(work: &Work) -> Result<f64> {
    locks::round_trip(work, Far::Process, Mutex::new(true)?)
}

pub fn semaphore_round_trip(work: &Work) -> Result<f64> {
    locks::round_trip(work, Far::Process, Semaphores::new(0)?)
}

pub fn barrier_meetings(work: &Work) -> Result<f64> {
    locks::meetings(work, Far::Process, Barrier::new(2)?)
}
