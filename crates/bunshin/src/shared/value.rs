//! One plain value in shared memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytemuck::Pod;

use super::atomic::Atomic;
use super::atomic::sealed::{Memory, Place};
use super::travels;
use crate::error::Result;
use crate::shm::cell::{Held, SharedCell};
use crate::sync::{LockError, Recover, acquire, holds};
use crate::transport::Patience;

/// A value in shared memory, with a lock.
///
/// Clones, and copies in other processes, are the same value. Sending one to another process
/// sends a handle to its memory. The memory goes when the last process lets go of it.
///
/// If a process dies while it holds the lock, the next one gets it and is told, as the value
/// may be half changed: see [`LockError::Abandoned`].
///
/// # Shape and units
/// `T` is plain data without padding (`bytemuck::Pod`), aligned to 64 bytes or less.
///
/// # Source
/// CPython's `multiprocessing.Value`.
///
/// # Examples
/// ```
/// use bunshin::{Process, Value};
///
/// let total = Value::new(0u64)?;
/// let children = (1..=3u64)
///     .map(|n| Process::start(|total: Value<u64>, n: u64| *total.lock().unwrap() += n, (total.clone(), n)))
///     .collect::<Result<Vec<_>, _>>()?;
/// for child in children {
///     child.join()?;
/// }
/// assert_eq!(total.get()?, 6);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct Value<T: Pod> {
    cell: SharedCell,
    values: PhantomData<T>,
}

impl<T: Pod> Value<T> {
    /// Makes a value.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Value::new(7)?.get()?, 7);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(value: T) -> Result<Self> {
        const {
            assert!(
                align_of::<T>() <= 64,
                "shared values are aligned to 64 bytes at most"
            )
        };
        let cell = SharedCell::create(size_of::<T>())?;
        cell.copy_in(0, bytemuck::bytes_of(&value));
        Ok(Self::of(cell, 1))
    }

    fn of(cell: SharedCell, _len: usize) -> Self {
        Self {
            cell,
            values: PhantomData,
        }
    }

    /// Takes the lock, waiting until it is free; the guard is the value.
    ///
    /// # Errors
    /// As [`Lock::lock`](crate::Lock::lock).
    ///
    /// # Examples
    /// ```
    /// let value = bunshin::Value::new([1.0f64, 2.0])?;
    /// value.lock()?[1] = 3.0;
    /// assert_eq!(*value.lock()?, [1.0, 3.0]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "get_lock")]
    pub fn lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        acquire(&self.cell, Patience::Forever, ValueGuard::of)
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// As [`Lock::try_lock`](crate::Lock::try_lock).
    ///
    /// # Examples
    /// ```
    /// let value = bunshin::Value::new(1)?;
    /// let guard = value.try_lock()?;
    /// assert_eq!(*guard, 1);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        acquire(&self.cell, Patience::Never, ValueGuard::of)
    }

    /// Takes the lock, waiting for so long at most.
    ///
    /// # Errors
    /// As [`Lock::lock_timeout`](crate::Lock::lock_timeout).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let value = bunshin::Value::new(1)?;
    /// *value.lock_timeout(Duration::from_secs(1))? += 1;
    /// assert_eq!(value.get()?, 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        acquire(&self.cell, Patience::within(timeout), ValueGuard::of)
    }

    /// The value, read under the lock.
    ///
    /// # Errors
    /// `Abandoned` if a process died with the lock, `Busy` if this thread holds it.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Value::new(0.5)?.get()?, 0.5);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn get(&self) -> Result<T> {
        Ok(*self.lock()?)
    }

    /// Sets the value, under the lock. That mends an abandoned one.
    ///
    /// # Errors
    /// `Busy` if this thread holds the lock.
    ///
    /// # Examples
    /// ```
    /// let value = bunshin::Value::new(1)?;
    /// value.set(2)?;
    /// assert_eq!(value.get()?, 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn set(&self, value: T) -> Result<()> {
        *self.lock().or_else(LockError::recover)? = value;
        Ok(())
    }
}

impl<T: Pod> Clone for Value<T> {
    /// Another handle to the same value.
    fn clone(&self) -> Self {
        Self::of(self.cell.clone(), 1)
    }
}

impl<T: Pod> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value<{}>", std::any::type_name::<T>())
    }
}

travels!(Value, |_: &Self| 1, Value::of);

/// A [`Value`], locked until this is dropped.
///
/// # Examples
/// ```
/// let value = bunshin::Value::new(1)?;
/// let mut guard = value.lock()?;
/// *guard += 1;
/// drop(guard);
/// assert_eq!(value.get()?, 2);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct ValueGuard<'a, T: Pod> {
    held: Held<'a>,
    values: PhantomData<&'a mut T>,
}

impl<'a, T: Pod> ValueGuard<'a, T> {
    fn of(held: Held<'a>) -> Self {
        Self {
            held,
            values: PhantomData,
        }
    }
}

holds!(ValueGuard<'_, T>, held, T);

impl<T: Pod> Recover for ValueGuard<'_, T> {
    fn recover(&mut self) {
        self.held.recover();
    }
}

impl<T: Pod> Deref for ValueGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        bytemuck::from_bytes(self.held.bytes(size_of::<T>()))
    }
}

impl<T: Pod> DerefMut for ValueGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        bytemuck::from_bytes_mut(self.held.bytes_mut(size_of::<T>()))
    }
}

/// A value in shared memory, without a lock.
///
/// Reads and writes copy; while another process writes, a read may give a mixture of old and
/// new bytes. For integers the atomic operations do not: each is one step for all processes.
///
/// # Source
/// CPython's `multiprocessing.sharedctypes.RawValue`.
///
/// # Examples
/// ```
/// use bunshin::{Process, RawValue};
/// use std::sync::atomic::Ordering;
///
/// let counter = RawValue::new(0u64)?;
/// let child = Process::start(|c: RawValue<u64>| { c.fetch_add(2, Ordering::SeqCst); }, (counter.clone(),))?;
/// counter.fetch_add(1, Ordering::SeqCst);
/// child.join()?;
/// assert_eq!(counter.get(), 3);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct RawValue<T: Pod> {
    cell: SharedCell,
    values: PhantomData<T>,
}

impl<T: Pod> RawValue<T> {
    /// Makes a value.
    ///
    /// # Errors
    /// As [`Value::new`].
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::RawValue::new(7)?.get(), 7);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(value: T) -> Result<Self> {
        let cell = SharedCell::create(size_of::<T>())?;
        cell.copy_in(0, bytemuck::bytes_of(&value));
        Ok(Self::of(cell, 1))
    }

    fn of(cell: SharedCell, _len: usize) -> Self {
        Self {
            cell,
            values: PhantomData,
        }
    }

    /// A copy of the value.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::RawValue::new(0.5)?.get(), 0.5);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn get(&self) -> T {
        let mut value = T::zeroed();
        self.cell.copy_out(0, bytemuck::bytes_of_mut(&mut value));
        value
    }

    /// Sets the value.
    ///
    /// # Examples
    /// ```
    /// let value = bunshin::RawValue::new(1)?;
    /// value.set(2);
    /// assert_eq!(value.get(), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn set(&self, value: T) {
        self.cell.copy_in(0, bytemuck::bytes_of(&value));
    }

    fn memory(&self) -> Memory<'_> {
        Memory(Place::Cell(&self.cell, 0))
    }
}

impl<T: Atomic> RawValue<T> {
    /// Reads in one step. The order is as for [`std::sync::atomic`].
    ///
    /// # Panics
    /// If the order is `Release` or `AcqRel`.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let value = bunshin::RawValue::new(1u64)?;
    /// assert_eq!(value.load(Ordering::Acquire), 1);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn load(&self, order: Ordering) -> T {
        T::load(&self.memory(), order)
    }

    /// Writes in one step.
    ///
    /// # Panics
    /// If the order is `Acquire` or `AcqRel`.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let value = bunshin::RawValue::new(1u64)?;
    /// value.store(2, Ordering::Release);
    /// assert_eq!(value.get(), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn store(&self, value: T, order: Ordering) {
        T::store(&self.memory(), value, order);
    }

    /// Writes, and gives the value before, in one step.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let value = bunshin::RawValue::new(1u64)?;
    /// assert_eq!(value.swap(2, Ordering::AcqRel), 1);
    /// assert_eq!(value.get(), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn swap(&self, value: T, order: Ordering) -> T {
        T::swap(&self.memory(), value, order)
    }

    /// Adds, wrapping around, and gives the value before, in one step.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let value = bunshin::RawValue::new(1u64)?;
    /// assert_eq!(value.fetch_add(2, Ordering::Relaxed), 1);
    /// assert_eq!(value.get(), 3);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn fetch_add(&self, value: T, order: Ordering) -> T {
        T::add(&self.memory(), value, order)
    }

    /// Writes `new` if the value is `current`, in one step. Gives the value before.
    ///
    /// # Errors
    /// The value, if it is another one.
    ///
    /// # Examples
    /// ```
    /// let value = bunshin::RawValue::new(1u64)?;
    /// assert_eq!(value.compare_exchange(1, 2), Ok(1));
    /// assert_eq!(value.compare_exchange(1, 3), Err(2));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        T::compare_exchange(&self.memory(), current, new)
    }
}

impl<T: Pod> Clone for RawValue<T> {
    /// Another handle to the same value.
    fn clone(&self) -> Self {
        Self::of(self.cell.clone(), 1)
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawValue").field(&self.get()).finish()
    }
}

travels!(RawValue, |_: &Self| 1, RawValue::of);
