//! A value that one thread uses at a time, and that others wait for no longer than they want.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Patience;

/// A mutex whose lock has a time limit, and may be held over waiting.
#[derive(Debug)]
pub(crate) struct Turn<T> {
    /// Empty while somebody has it.
    slot: Mutex<Option<T>>,
    free: Condvar,
}

/// The value, for as long as this lives.
pub(crate) struct Held<'a, T> {
    turn: &'a Turn<T>,
    value: Option<T>,
}

impl<T> Turn<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            slot: Mutex::new(Some(value)),
            free: Condvar::new(),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the value once nobody else has it; `None` if that was not in time.
    pub(crate) fn take(&self, patience: Patience) -> Option<Held<'_, T>> {
        let mut slot = self.slot();
        loop {
            if let Some(value) = slot.take() {
                return Some(Held {
                    turn: self,
                    value: Some(value),
                });
            }
            slot = match patience {
                Patience::Never => return None,
                Patience::Forever => self.free.wait(slot).unwrap_or_else(PoisonError::into_inner),
                Patience::Until(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.free
                        .wait_timeout(slot, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// The value, where nobody else can have it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.slot
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is here until the drop")
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is here until the drop")
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        *self.turn.slot() = self.value.take();
        // After the slot is full again, so that who wakes finds it so.
        self.turn.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_comes_second_waits_no_longer_than_it_wants() {
        let turn = Turn::new(1);
        let held = turn.take(Patience::Never).unwrap();
        assert!(turn.take(Patience::Never).is_none());
        assert!(
            turn.take(Patience::within(Duration::from_millis(5)))
                .is_none()
        );
        drop(held);
        assert_eq!(*turn.take(Patience::Forever).unwrap(), 1);
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let turn = Turn::new(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut held = turn.take(Patience::Forever).unwrap();
            *held = 2;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(*turn.take(Patience::Never).unwrap(), 2);
    }
}
