//! A mutex that a forked copy of the process can lock whoever held it at the fork.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::sys::thread;

/// What a process keeps for itself about something that processes share.
///
/// A copy of the process goes on with it. Where another thread held it at the fork, which does
/// not exist in the copy, the copy begins anew.
#[derive(Debug)]
pub(crate) struct ForkMutex<T> {
    value: Mutex<T>,
    /// The process whose threads lock it.
    generation: AtomicU32,
    /// In its place, in copies that were made while it was held.
    next: OnceLock<Box<Self>>,
}

impl<T: Default> ForkMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            generation: AtomicU32::new(thread::generation()),
            next: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        if self.generation.load(Ordering::Relaxed) == thread::generation() {
            self.value.lock().unwrap_or_else(PoisonError::into_inner)
        } else {
            self.lock_inherited()
        }
    }

    #[cold]
    fn lock_inherited(&self) -> MutexGuard<'_, T> {
        let value = match self.value.try_lock() {
            Ok(value) => value,
            Err(TryLockError::Poisoned(value)) => value.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // Another thread of this copy may just have been quicker.
                if self.generation.load(Ordering::Acquire) == thread::generation() {
                    return self.lock();
                }
                return self
                    .next
                    .get_or_init(|| Box::new(Self::new(T::default())))
                    .lock();
            }
        };
        self.generation
            .store(thread::generation(), Ordering::Release);
        value
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_on_with_what_nobody_held() {
        let mutex = ForkMutex::new(1);
        *mutex.lock() = 2;
        mutex.generation.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(*mutex.lock(), 2);
    }

    #[test]
    fn a_copy_begins_anew_where_a_thread_that_it_has_not_held_it() {
        let mutex = ForkMutex::new(1);
        let held = mutex.lock();
        mutex.generation.store(u32::MAX, Ordering::Relaxed);
        *mutex.lock() += 5;
        assert_eq!(*mutex.lock(), 5);
        drop(held);
    }
}
