//! Proxies to one value, and to an array of a fixed length.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::error::Result;

/// One value in a manager's server.
///
/// It can be anything that `serde` serialises, unlike the [`Value`](crate::Value) in shared
/// memory, which is quicker by far.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone, `Encode` and `Decode` if a value cannot
/// cross, `OutOfMemory`.
///
/// # Source
/// CPython's `SyncManager.Value`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let value = manager.value("one".to_string())?;
/// assert_eq!(value.replace(&"two".to_string())?, "one");
/// assert_eq!(value.get()?, "two");
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct ValueProxy<T> {
    referent: Arc<Referent>,
    types: PhantomData<fn() -> T>,
}

proxy!(ValueProxy<T>);

impl<T: Serialize + DeserializeOwned> ValueProxy<T> {
    /// The value.
    ///
    /// # Errors
    /// As the type says.
    pub fn get(&self) -> Result<T> {
        let mut answer = self.referent.ask(Op::Get)?.call()?;
        answer.check()?;
        answer.value()
    }

    /// Sets the value.
    ///
    /// # Errors
    /// As the type says.
    pub fn set(&self, value: &T) -> Result<()> {
        self.referent.ask(Op::Put)?.field(value)?.call()?.check()
    }

    /// Sets the value; gives the one before.
    ///
    /// # Errors
    /// As the type says.
    pub fn replace(&self, value: &T) -> Result<T> {
        let mut answer = self.referent.ask(Op::Replace)?.field(value)?.call()?;
        answer.check()?;
        answer.value()
    }

    /// Sets the value to `new` if it is `current`; says whether it was.
    ///
    /// # Errors
    /// As the type says.
    pub fn compare_exchange(&self, current: &T, new: &T) -> Result<bool> {
        let ask = self.referent.ask(Op::CompareAndSet)?;
        let answer = ask.field(current)?.field(new)?.call()?;
        answer.check()?;
        Ok(answer.status == Status::Ok)
    }

    /// Sets the value to what `change` makes of it; gives the value before.
    ///
    /// `change` is called again if somebody else has set the value meanwhile.
    ///
    /// # Errors
    /// As the type says.
    ///
    /// # Examples
    /// ```
    /// let manager = bunshin::Manager::new()?;
    /// let total = manager.value(40)?;
    /// total.update(|n| n + 2)?;
    /// assert_eq!(total.get()?, 42);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn update(&self, mut change: impl FnMut(&T) -> T) -> Result<T> {
        loop {
            let before = self.get()?;
            if self.compare_exchange(&before, &change(&before))? {
                return Ok(before);
            }
        }
    }
}

/// An array of a fixed length in a manager's server.
///
/// Its elements can be anything that `serde` serialises, unlike those of the
/// [`Array`](crate::Array) in shared memory, which is quicker by far.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone, `Encode` and `Decode` if an element
/// cannot cross, `OutOfMemory`.
///
/// # Source
/// CPython's `SyncManager.Array`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let array = manager.array([1.5, 2.5])?;
/// assert!(array.set(1, &3.5)?);
/// assert!(!array.set(2, &4.5)?);
/// assert_eq!(array.to_vec()?, [1.5, 3.5]);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct ArrayProxy<T> {
    referent: Arc<Referent>,
    types: PhantomData<fn() -> T>,
}

proxy!(ArrayProxy<T>);

impl<T: Serialize + DeserializeOwned> ArrayProxy<T> {
    /// An element.
    ///
    /// # Errors
    /// As the type says.
    pub fn get(&self, index: usize) -> Result<Option<T>> {
        let ask = self.referent.ask(Op::Get)?.number(index as u64);
        ask.call()?.optional()
    }

    /// Sets an element; `false` if there is no such index.
    ///
    /// # Errors
    /// As the type says.
    pub fn set(&self, index: usize, value: &T) -> Result<bool> {
        let ask = self.referent.ask(Op::Put)?.number(index as u64);
        ask.field(value)?.call()?.found()
    }

    /// How many elements there are.
    ///
    /// # Errors
    /// As the type says.
    pub fn len(&self) -> Result<usize> {
        let answer = self.referent.ask(Op::Len)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// Whether there is no element.
    ///
    /// # Errors
    /// As the type says.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Copies of all elements, as of one moment.
    ///
    /// # Errors
    /// As the type says.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut answer = self.referent.ask(Op::Items)?.second(u64::MAX).call()?;
        answer.check()?;
        let mut all = Vec::new();
        while let Some(value) = answer.next()? {
            all.push(value);
        }
        Ok(all)
    }
}
