//! Shared memory in messages, and its integers as atomics.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::atomic::Atomic;
use super::atomic::sealed::{Memory, Place};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, Result};
pub use crate::shm::memory::SharedMemory;
use crate::sys::socket;

impl SharedMemory {
    /// The integer at `offset`, for operations that are one step for all processes.
    ///
    /// # Errors
    /// `InvalidInput` if it does not lie in the memory, at a multiple of its size.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let memory = bunshin::SharedMemory::new(64)?;
    /// let count = memory.atomic::<u32>(8)?;
    /// count.fetch_add(5, Ordering::SeqCst);
    /// assert_eq!(count.load(Ordering::SeqCst), 5);
    /// assert!(memory.atomic::<u32>(9).is_err());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn atomic<T: Atomic>(&self, offset: usize) -> Result<SharedAtomic<'_, T>> {
        let memory = Memory(Place::Bytes(self, offset));
        T::check(&memory)?;
        Ok(SharedAtomic {
            memory,
            value: PhantomData,
        })
    }
}

/// An integer in a [`SharedMemory`]. The orders are as for [`std::sync::atomic`].
#[derive(Clone, Copy)]
pub struct SharedAtomic<'a, T> {
    memory: Memory<'a>,
    value: PhantomData<T>,
}

impl<T: Atomic> SharedAtomic<'_, T> {
    /// Reads in one step.
    ///
    /// # Panics
    /// If the order is `Release` or `AcqRel`.
    #[must_use]
    pub fn load(&self, order: Ordering) -> T {
        T::load(&self.memory, order)
    }

    /// Writes in one step.
    ///
    /// # Panics
    /// If the order is `Acquire` or `AcqRel`.
    pub fn store(&self, value: T, order: Ordering) {
        T::store(&self.memory, value, order);
    }

    /// Writes, and gives the value before, in one step.
    pub fn swap(&self, value: T, order: Ordering) -> T {
        T::swap(&self.memory, value, order)
    }

    /// Adds, wrapping around, and gives the value before, in one step.
    pub fn fetch_add(&self, value: T, order: Ordering) -> T {
        T::add(&self.memory, value, order)
    }

    /// Writes `new` if the value is `current`, in one step. Gives the value before.
    ///
    /// # Errors
    /// The value, if it is another one.
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        T::compare_exchange(&self.memory, current, new)
    }
}

impl<T: Atomic + fmt::Debug> fmt::Debug for SharedAtomic<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedAtomic")
            .field(&self.load(Ordering::Relaxed))
            .finish()
    }
}

/// A shared memory on its trip.
#[derive(Serialize, Deserialize)]
struct Form {
    memory: u32,
    len: u64,
    name: Option<String>,
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let depart = || {
            let fd = socket::duplicate(self.fd())
                .map_err(|error| Error::os("send shared memory", error))?;
            Ok(Form {
                memory: Outgoing::attach(fd)?,
                len: self.len() as u64,
                name: self.name().map(str::to_owned),
            })
        };
        depart()
            .map_err(|error: Error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Form::deserialize(deserializer)?;
        Incoming::detach(form.memory)
            .and_then(|fd| Self::attach(fd, form.len, form.name.as_deref()))
            .map_err(D::Error::custom)
    }
}
