//! A proxy to a list.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::client::Ask;
use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::error::Result;

/// A list in a manager's server.
///
/// Every method is one call to the server, and nobody sees it half done. Elements are equal
/// if they encode equally. What Rust answers with a panic, such as an index past the end,
/// gives `None` or `false`.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone, `Encode` and `Decode` if an element
/// cannot cross, `OutOfMemory`. A server that is stopped (SIGSTOP) is waited for.
///
/// # Source
/// CPython's `SyncManager.list`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let list = manager.list([1, 2, 3])?;
/// list.push(&4)?;
/// assert_eq!(list.remove(0)?, Some(1));
/// assert_eq!(list.to_vec()?, [2, 3, 4]);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub struct ListProxy<T> {
    referent: Arc<Referent>,
    types: PhantomData<fn() -> T>,
}

proxy!(ListProxy<T>);

impl<T: Serialize + DeserializeOwned> ListProxy<T> {
    fn ask(&self, op: Op) -> Result<Ask> {
        self.referent.ask(op)
    }

    /// An element.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__getitem__")]
    pub fn get(&self, index: usize) -> Result<Option<T>> {
        let ask = self.ask(Op::Get)?.number(index as u64);
        ask.call()?.optional()
    }

    /// Replaces an element; gives the one before, or `None` if there is no such index.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__setitem__")]
    pub fn set(&self, index: usize, value: &T) -> Result<Option<T>> {
        let ask = self.ask(Op::Put)?.number(index as u64).field(value)?;
        ask.call()?.optional()
    }

    /// Sets an element to `new` if it is `current`; says whether it was.
    ///
    /// # Errors
    /// As the type says.
    pub fn compare_exchange(&self, index: usize, current: &T, new: &T) -> Result<bool> {
        let ask = self.ask(Op::CompareAndSet)?.number(index as u64);
        let answer = ask.field(current)?.field(new)?.call()?;
        answer.check()?;
        Ok(answer.status == Status::Ok)
    }

    /// Appends an element.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "append")]
    pub fn push(&self, value: &T) -> Result<()> {
        self.ask(Op::Push)?.field(value)?.call()?.check()
    }

    /// Takes the last element.
    ///
    /// # Errors
    /// As the type says.
    pub fn pop(&self) -> Result<Option<T>> {
        self.ask(Op::Pop)?.call()?.optional()
    }

    /// Puts an element before that index; `false` if it is past the end.
    ///
    /// # Errors
    /// As the type says.
    pub fn insert(&self, index: usize, value: &T) -> Result<bool> {
        let ask = self.ask(Op::Insert)?.number(index as u64).field(value)?;
        ask.call()?.found()
    }

    /// Takes an element out; the ones after it move up.
    ///
    /// # Errors
    /// As the type says.
    pub fn remove(&self, index: usize) -> Result<Option<T>> {
        let ask = self.ask(Op::Take)?.number(index as u64);
        ask.call()?.optional()
    }

    /// Appends many at once.
    ///
    /// # Errors
    /// As the type says.
    pub fn extend<I: IntoIterator<Item = T>>(&self, values: I) -> Result<()> {
        fields(self.ask(Op::Update)?, values)?.call()?.check()
    }

    /// Puts other elements in place of all.
    ///
    /// # Errors
    /// As the type says.
    pub fn replace<I: IntoIterator<Item = T>>(&self, values: I) -> Result<()> {
        fields(self.ask(Op::Replace)?, values)?.call()?.check()
    }

    /// Where the first element is that equals `value`.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "index")]
    pub fn position(&self, value: &T) -> Result<Option<usize>> {
        let answer = self.ask(Op::Find1)?.field(value)?.call()?;
        Ok(answer.found()?.then_some(answer.number as usize))
    }

    /// Whether an element equals `value`.
    ///
    /// # Errors
    /// As the type says.
    pub fn contains(&self, value: &T) -> Result<bool> {
        Ok(self.position(value)?.is_some())
    }

    /// How many elements equal `value`.
    ///
    /// # Errors
    /// As the type says.
    pub fn count(&self, value: &T) -> Result<usize> {
        let answer = self.ask(Op::Count)?.field(value)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// Exchanges two elements; `false` if one of them is not there.
    ///
    /// # Errors
    /// As the type says.
    pub fn swap(&self, one: usize, other: usize) -> Result<bool> {
        let ask = self.ask(Op::Swap)?.number(one as u64).second(other as u64);
        ask.call()?.found()
    }

    /// Turns the order round.
    ///
    /// # Errors
    /// As the type says.
    pub fn reverse(&self) -> Result<()> {
        self.ask(Op::Reverse)?.call()?.check()
    }

    /// Keeps the first so many elements.
    ///
    /// # Errors
    /// As the type says.
    pub fn truncate(&self, len: usize) -> Result<()> {
        self.ask(Op::Truncate)?.number(len as u64).call()?.check()
    }

    /// Takes all out.
    ///
    /// # Errors
    /// As the type says.
    pub fn clear(&self) -> Result<()> {
        self.ask(Op::Clear)?.call()?.check()
    }

    /// How many elements there are.
    ///
    /// # Errors
    /// As the type says.
    pub fn len(&self) -> Result<usize> {
        let answer = self.ask(Op::Len)?.call()?;
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
        self.range(0..usize::MAX)
    }

    /// Copies of some elements, as of one moment; fewer if the range goes past the end.
    ///
    /// # Errors
    /// As the type says.
    pub fn range(&self, range: Range<usize>) -> Result<Vec<T>> {
        let ask = self.ask(Op::Items)?.number(range.start as u64);
        let mut answer = ask.second(range.end as u64).call()?;
        answer.check()?;
        let mut all = Vec::new();
        while let Some(value) = answer.next()? {
            all.push(value);
        }
        Ok(all)
    }
}

/// Adds many values to a request.
pub(in crate::manager) fn fields<T: Serialize>(
    mut ask: Ask,
    values: impl IntoIterator<Item = T>,
) -> Result<Ask> {
    for value in values {
        ask = ask.field(&value)?;
    }
    Ok(ask)
}
