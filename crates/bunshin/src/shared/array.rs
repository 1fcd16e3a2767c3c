//! Plain arrays in shared memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytemuck::Pod;

use super::atomic::Atomic;
use super::atomic::sealed::{Memory, Place};
use super::travels;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::cell::{Held, SharedCell};
use crate::sync::{LockError, Recover, acquire, holds};
use crate::transport::Patience;

/// Makes shared memory for `len` elements.
fn create<T: Pod>(len: usize) -> Result<SharedCell> {
    const {
        assert!(
            align_of::<T>() <= 64,
            "shared arrays are aligned to 64 bytes at most"
        )
    };
    let bytes = len.checked_mul(size_of::<T>());
    let too_long = || {
        Error::new(
            ErrorKind::OutOfMemory,
            format!("share an array of {len} elements"),
        )
    };
    SharedCell::create(bytes.ok_or_else(too_long)?)
}

/// An array in shared memory, with a lock.
///
/// Clones, and copies in other processes, are the same array; the rest is as for
/// [`Value`](crate::Value). The length is fixed.
///
/// # Shape and units
/// `T` is plain data without padding (`bytemuck::Pod`), aligned to 64 bytes or less; lengths
/// and positions are in elements.
///
/// # Source
/// CPython's `multiprocessing.Array`.
///
/// # Examples
/// ```
/// use bunshin::{Array, Process};
///
/// fn negate(numbers: Array<i32>) {
///     for number in numbers.lock().unwrap().iter_mut() {
///         *number = -*number;
///     }
/// }
///
/// let numbers = Array::from_slice(&[1, 2, 3])?;
/// Process::start(negate, (numbers.clone(),))?.join()?;
/// assert_eq!(numbers.to_vec()?, [-1, -2, -3]);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct Array<T: Pod> {
    cell: SharedCell,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Array<T> {
    /// Makes an array of `len` zeros.
    ///
    /// # Errors
    /// `OutOfMemory` if there is not that much memory, now rather than when it is used.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Array, ErrorKind};
    ///
    /// assert_eq!(Array::<u8>::new(3)?.to_vec()?, [0, 0, 0]);
    /// assert_eq!(Array::<u8>::new(1 << 50).unwrap_err().kind(), ErrorKind::OutOfMemory);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(len: usize) -> Result<Self> {
        Ok(Self::of(create::<T>(len)?, len))
    }

    /// Makes an array of the elements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::Array::from_slice(&[1, 2, 3])?;
    /// assert_eq!(array.to_vec()?, [1, 2, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        let array = Self::new(elements.len())?;
        array.cell.copy_in(0, bytemuck::cast_slice(elements));
        Ok(array)
    }

    fn of(cell: SharedCell, len: usize) -> Self {
        Self {
            cell,
            len,
            values: PhantomData,
        }
    }

    /// How many elements there are.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Array::<u8>::new(3)?.len(), 3);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    ///
    /// # Examples
    /// ```
    /// assert!(bunshin::Array::<u8>::new(0)?.is_empty());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn guard(&self) -> impl FnOnce(Held<'_>) -> ArrayGuard<'_, T> + use<T> {
        let len_bytes = self.len * size_of::<T>();
        move |held| ArrayGuard {
            held,
            len_bytes,
            values: PhantomData,
        }
    }

    /// Takes the lock, waiting until it is free; the guard is the elements.
    ///
    /// # Errors
    /// As [`Lock::lock`](crate::Lock::lock).
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::Array::from_slice(&[3, 1, 2])?;
    /// array.lock()?.sort();
    /// assert_eq!(array.to_vec()?, [1, 2, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "get_lock")]
    pub fn lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        acquire(&self.cell, Patience::Forever, self.guard())
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// As [`Lock::try_lock`](crate::Lock::try_lock).
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::Array::from_slice(&[1, 2])?;
    /// array.try_lock()?[0] = 7;
    /// assert_eq!(array.to_vec()?, [7, 2]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        acquire(&self.cell, Patience::Never, self.guard())
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
    /// let array = bunshin::Array::from_slice(&[1, 2])?;
    /// array.lock_timeout(Duration::from_secs(1))?[0] = 7;
    /// assert_eq!(array.to_vec()?, [7, 2]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        acquire(&self.cell, Patience::within(timeout), self.guard())
    }

    /// A copy of the elements, made under the lock.
    ///
    /// # Errors
    /// `Abandoned` if a process died with the lock, `Busy` if this thread holds it.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::Array::from_slice(&[1.5, 2.5])?;
    /// assert_eq!(array.to_vec()?, [1.5, 2.5]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn to_vec(&self) -> Result<Vec<T>> {
        Ok(self.lock()?.to_vec())
    }
}

impl<T: Pod> Clone for Array<T> {
    /// Another handle to the same array.
    fn clone(&self) -> Self {
        Self::of(self.cell.clone(), self.len)
    }
}

impl<T: Pod> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

travels!(Array, Array::len, Array::of);

/// An [`Array`], locked until this is dropped.
///
/// # Examples
/// ```
/// let array = bunshin::Array::from_slice(&[1, 2, 3])?;
/// let mut guard = array.lock()?;
/// guard.iter_mut().for_each(|number| *number *= 2);
/// drop(guard);
/// assert_eq!(array.to_vec()?, [2, 4, 6]);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct ArrayGuard<'a, T: Pod> {
    held: Held<'a>,
    len_bytes: usize,
    values: PhantomData<&'a mut T>,
}

holds!(ArrayGuard<'_, T>, held, T);

impl<T: Pod> Recover for ArrayGuard<'_, T> {
    fn recover(&mut self) {
        self.held.recover();
    }
}

impl<T: Pod> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.held.bytes(self.len_bytes))
    }
}

impl<T: Pod> DerefMut for ArrayGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.held.bytes_mut(self.len_bytes))
    }
}

/// An array in shared memory, without a lock.
///
/// Reads and writes copy; what that means beside other processes is said at
/// [`RawValue`](crate::RawValue).
///
/// # Source
/// CPython's `multiprocessing.sharedctypes.RawArray`.
///
/// # Examples
/// ```
/// use bunshin::RawArray;
/// use std::sync::atomic::Ordering;
///
/// let counts = RawArray::<u32>::new(10)?;
/// counts.fetch_add(3, 1, Ordering::Relaxed);
/// assert_eq!((counts.get(3), counts.get(4)), (1, 0));
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct RawArray<T: Pod> {
    cell: SharedCell,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> RawArray<T> {
    /// Makes an array of `len` zeros.
    ///
    /// # Errors
    /// As [`Array::new`].
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::RawArray::<u8>::new(3)?.to_vec(), [0, 0, 0]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(len: usize) -> Result<Self> {
        Ok(Self::of(create::<T>(len)?, len))
    }

    /// Makes an array of the elements.
    ///
    /// # Errors
    /// As [`Array::new`].
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::from_slice(&[1, 2, 3])?;
    /// assert_eq!(array.to_vec(), [1, 2, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        let array = Self::new(elements.len())?;
        array.write(0, elements);
        Ok(array)
    }

    fn of(cell: SharedCell, len: usize) -> Self {
        Self {
            cell,
            len,
            values: PhantomData,
        }
    }

    /// How many elements there are.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::RawArray::<u8>::new(3)?.len(), 3);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    ///
    /// # Examples
    /// ```
    /// assert!(bunshin::RawArray::<u8>::new(0)?.is_empty());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn offset(&self, position: usize, count: usize) -> usize {
        assert!(
            position <= self.len && count <= self.len - position,
            "elements {position} to {} of a shared array of {}",
            position.saturating_add(count),
            self.len
        );
        position * size_of::<T>()
    }

    /// A copy of one element.
    ///
    /// # Panics
    /// If there is no such element.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::from_slice(&[1, 2, 3])?;
    /// assert_eq!(array.get(1), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn get(&self, position: usize) -> T {
        let mut element = T::zeroed();
        self.cell.copy_out(
            self.offset(position, 1),
            bytemuck::bytes_of_mut(&mut element),
        );
        element
    }

    /// Sets one element.
    ///
    /// # Panics
    /// If there is no such element.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::from_slice(&[1, 2, 3])?;
    /// array.set(1, 7);
    /// assert_eq!(array.to_vec(), [1, 7, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn set(&self, position: usize, element: T) {
        self.cell
            .copy_in(self.offset(position, 1), bytemuck::bytes_of(&element));
    }

    /// Copies elements out, from `position` on.
    ///
    /// # Panics
    /// If there are not so many.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::from_slice(&[1, 2, 3])?;
    /// let mut last = [0; 2];
    /// array.read(1, &mut last);
    /// assert_eq!(last, [2, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn read(&self, position: usize, elements: &mut [T]) {
        self.cell.copy_out(
            self.offset(position, elements.len()),
            bytemuck::cast_slice_mut(elements),
        );
    }

    /// Copies elements in, from `position` on.
    ///
    /// # Panics
    /// If there is no room for so many.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::new(3)?;
    /// array.write(1, &[7, 8]);
    /// assert_eq!(array.to_vec(), [0, 7, 8]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn write(&self, position: usize, elements: &[T]) {
        self.cell.copy_in(
            self.offset(position, elements.len()),
            bytemuck::cast_slice(elements),
        );
    }

    /// A copy of all elements.
    ///
    /// # Examples
    /// ```
    /// let array = bunshin::RawArray::from_slice(&[1, 2, 3])?;
    /// assert_eq!(array.to_vec(), [1, 2, 3]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::zeroed(); self.len];
        self.read(0, &mut elements);
        elements
    }

    fn memory(&self, position: usize) -> Memory<'_> {
        Memory(Place::Cell(&self.cell, self.offset(position, 1)))
    }
}

impl<T: Atomic> RawArray<T> {
    /// Reads one element in one step. The order is as for [`std::sync::atomic`].
    ///
    /// # Panics
    /// If there is no such element, or the order is `Release` or `AcqRel`.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let array = bunshin::RawArray::from_slice(&[1u32, 2])?;
    /// assert_eq!(array.load(1, Ordering::Acquire), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn load(&self, position: usize, order: Ordering) -> T {
        T::load(&self.memory(position), order)
    }

    /// Writes one element in one step.
    ///
    /// # Panics
    /// If there is no such element, or the order is `Acquire` or `AcqRel`.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let array = bunshin::RawArray::<u32>::new(2)?;
    /// array.store(1, 7, Ordering::Release);
    /// assert_eq!(array.to_vec(), [0, 7]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn store(&self, position: usize, element: T, order: Ordering) {
        T::store(&self.memory(position), element, order);
    }

    /// Adds to one element, wrapping around, and gives the value before, in one step.
    ///
    /// # Panics
    /// If there is no such element.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let array = bunshin::RawArray::<u32>::new(2)?;
    /// assert_eq!(array.fetch_add(1, 7, Ordering::Relaxed), 0);
    /// assert_eq!(array.to_vec(), [0, 7]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn fetch_add(&self, position: usize, value: T, order: Ordering) -> T {
        T::add(&self.memory(position), value, order)
    }
}

impl<T: Pod> Clone for RawArray<T> {
    /// Another handle to the same array.
    fn clone(&self) -> Self {
        Self::of(self.cell.clone(), self.len)
    }
}

impl<T: Pod> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawArray<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

travels!(RawArray, RawArray::len, RawArray::of);
