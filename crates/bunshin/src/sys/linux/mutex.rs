//! A mutex that a forked copy of the process can lock whoever held it at the fork, and a cell that
//! it can fill.

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use super::thread;

/// What a process keeps for itself, and copies of it go on with.
///
/// Where another thread held it at the fork, which does not exist in the copy, the copy begins
/// anew with the default, and what was there stays as it is, for ever: it may be half changed.
#[derive(Debug)]
pub struct ForkMutex<T> {
    value: ManuallyDrop<Mutex<T>>,
    /// Which process has found out whether it can lock the value, and what it has found.
    state: AtomicU64,
    /// In the value's place, in copies that were made while it was held.
    next: AtomicPtr<Self>,
}

/// What a process knows; with the number of the process above these two bits.
const USABLE: u64 = 0;
/// One of its threads is about to find out.
const LOOKING: u64 = 1;
/// Its place has been taken.
const REPLACED: u64 = 2;

fn here(known: u64) -> u64 {
    u64::from(thread::generation()) << 2 | known
}

impl<T> ForkMutex<T> {
    /// One that nobody has.
    pub const fn new(value: T) -> Self {
        Self {
            value: ManuallyDrop::new(Mutex::new(value)),
            // The first process. A copy that makes one finds that it can lock it.
            state: AtomicU64::new(USABLE),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

impl<T: Default> ForkMutex<T> {
    #[inline]
    /// Waits until no other thread of this process has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let value = self.own().value.lock();
        value.unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing if another thread has it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.own().value.try_lock() {
            Ok(value) => Some(value),
            Err(TryLockError::Poisoned(value)) => Some(value.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The one that this process locks: this, or what has come into its place.
    #[inline]
    fn own(&self) -> &Self {
        if self.state.load(Ordering::Acquire) == here(USABLE) {
            self
        } else {
            self.find()
        }
    }

    #[cold]
    fn find(&self) -> &Self {
        let (usable, looking, replaced) = (here(USABLE), here(LOOKING), here(REPLACED));
        let mut own = self;
        loop {
            let state = own.state.load(Ordering::Acquire);
            if state == usable {
                return own;
            }
            if state == replaced {
                // SAFETY: it was put there before the state said so, and stays.
                if let Some(next) = unsafe { own.next.load(Ordering::Acquire).as_ref() } {
                    own = next;
                    continue;
                }
            }
            if state == looking {
                std::thread::yield_now();
                continue;
            }
            let begun =
                own.state
                    .compare_exchange(state, looking, Ordering::AcqRel, Ordering::Acquire);
            if begun.is_err() {
                continue;
            }
            // Nobody else of this process has locked it, as nobody has got beyond this.
            let mut is_replaced = !own.next.load(Ordering::Acquire).is_null();
            if !is_replaced && matches!(own.value.try_lock(), Err(TryLockError::WouldBlock)) {
                let next = Box::into_raw(Box::new(Self::new(T::default())));
                own.next.store(next, Ordering::Release);
                is_replaced = true;
            }
            let found = if is_replaced { replaced } else { usable };
            own.state.store(found, Ordering::Release);
        }
    }
}

/// What is kept in a cell, found at the first call.
///
/// It is found before the cell is locked, for a copy that is forked meanwhile would have it so.
pub(crate) fn find_once<T>(cell: &OnceLock<T>, find: impl FnOnce() -> T) -> &T {
    if let Some(found) = cell.get() {
        return found;
    }
    let found = find();
    cell.get_or_init(|| found)
}

impl<T> Drop for ForkMutex<T> {
    fn drop(&mut self) {
        let next = *self.next.get_mut();
        if !next.is_null() {
            // SAFETY: it came from `Box::into_raw`, and nobody else has this one any more.
            drop(unsafe { Box::from_raw(next) });
        }
        // Guards borrow, so whoever still holds it was not copied, nor has it left in order
        // what it was changing.
        if !matches!(self.value.try_lock(), Err(TryLockError::WouldBlock)) {
            // SAFETY: nobody uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// As if another process had found this out.
    fn forget(mutex: &ForkMutex<i32>, known: u64) {
        mutex.state.store(u64::MAX << 2 | known, Ordering::Relaxed);
    }

    #[test]
    fn a_copy_goes_on_with_what_nobody_held() {
        for known in [USABLE, LOOKING] {
            let mutex = ForkMutex::new(1);
            *mutex.lock() = 2;
            forget(&mutex, known);
            assert_eq!(*mutex.lock(), 2);
            assert_eq!(mutex.try_lock().as_deref(), Some(&2));
        }
    }

    #[test]
    fn a_copy_begins_anew_where_a_thread_that_it_has_not_held_it() {
        let mutex = ForkMutex::new(1);
        let held = mutex.lock();
        forget(&mutex, USABLE);
        *mutex.lock() += 5;
        assert_eq!(*mutex.lock(), 5);
        // So does a copy of the copy.
        forget(&mutex, REPLACED);
        assert_eq!(mutex.try_lock().as_deref(), Some(&5));
        drop(held);
    }

    #[test]
    fn threads_of_a_copy_agree_where_they_begin_anew() {
        for _ in 0..200 {
            let mutex = ForkMutex::new(1);
            let held = mutex.lock();
            forget(&mutex, USABLE);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| *mutex.lock() += 1);
                }
            });
            assert_eq!(*mutex.lock(), 4);
            drop(held);
        }
    }
}
