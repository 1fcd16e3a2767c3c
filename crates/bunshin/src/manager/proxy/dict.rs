//! A proxy to a dict.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::error::Result;

/// A map in a manager's server.
///
/// Every method is one call to the server, and nobody sees it half done. Keys are equal if
/// they encode equally: keep to keys whose encoding has one order, such as text, numbers,
/// tuples and structs of them, not hash maps. The order of [`keys`](Self::keys) and the like
/// is that of a [`HashMap`](std::collections::HashMap): none.
///
/// Values are copies: to change a value, put another one in, or keep a proxy to what is to
/// be changed in place.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone, `Encode` and `Decode` if a key or value
/// cannot cross, `OutOfMemory`. A server that is stopped (SIGSTOP) is waited for.
///
/// # Source
/// CPython's `SyncManager.dict`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::DictProxy};
///
/// fn count(words: Vec<String>, counts: DictProxy<String, u32>) -> bunshin::Result<()> {
///     for word in words {
///         let before = counts.get(&word)?.unwrap_or(0);
///         counts.insert(&word, &(before + 1))?;
///     }
///     Ok(())
/// }
///
/// let manager = Manager::new()?;
/// let counts = manager.dict()?;
/// let words = ["a", "b", "a"].map(String::from).to_vec();
/// Process::start(|words, counts| count(words, counts).is_ok(), (words, counts.clone()))?.result()?;
/// assert_eq!(counts.get("a")?, Some(2));
/// assert_eq!(counts.len()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DictProxy<K, V> {
    referent: Arc<Referent>,
    types: PhantomData<fn() -> (K, V)>,
}

proxy!(DictProxy<K, V>);

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> DictProxy<K, V> {
    /// The value of a key.
    ///
    /// The key may be a borrowed form that encodes the same, such as `&str` for `String`.
    ///
    /// # Errors
    /// As the type says.
    pub fn get<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Option<V>> {
        self.referent.ask(Op::Get)?.field(key)?.call()?.optional()
    }

    /// Sets the value of a key; gives the one before.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__setitem__")]
    pub fn insert<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<Option<V>> {
        let ask = self.referent.ask(Op::Put)?.field(key)?.field(value)?;
        ask.call()?.optional()
    }

    /// Takes a key out; gives its value.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "pop")]
    pub fn remove<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Option<V>> {
        self.referent.ask(Op::Take)?.field(key)?.call()?.optional()
    }

    /// The value of a key, which is set to `value` if there is none.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "setdefault")]
    pub fn get_or_insert<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<V> {
        let ask = self.referent.ask(Op::GetOrPut)?.field(key)?.field(value)?;
        let mut answer = ask.call()?;
        answer.check()?;
        answer.value()
    }

    /// Sets the value of a key to `new` if it is `current`; says whether it was.
    ///
    /// # Errors
    /// As the type says.
    ///
    /// # Examples
    /// ```
    /// let manager = bunshin::Manager::new()?;
    /// let stock = manager.dict::<String, u32>()?;
    /// stock.insert("nuts", &5)?;
    /// assert!(stock.compare_exchange("nuts", &5, &4)?);
    /// assert!(!stock.compare_exchange("nuts", &5, &4)?);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn compare_exchange<Q: Serialize + ?Sized>(
        &self,
        key: &Q,
        current: &V,
        new: &V,
    ) -> Result<bool> {
        let ask = self.referent.ask(Op::CompareAndSet)?;
        let answer = ask.field(key)?.field(current)?.field(new)?.call()?;
        answer.check()?;
        Ok(answer.status == Status::Ok)
    }

    /// Whether the key is there.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__contains__")]
    pub fn contains_key<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<bool> {
        let answer = self.referent.ask(Op::Has)?.field(key)?.call()?;
        answer.check()?;
        Ok(answer.number != 0)
    }

    /// Sets many at once: all of them, or none if one cannot be encoded.
    ///
    /// # Errors
    /// As the type says.
    pub fn update<Q: Serialize, I: IntoIterator<Item = (Q, V)>>(&self, items: I) -> Result<()> {
        let mut ask = self.referent.ask(Op::Update)?;
        for (key, value) in items {
            ask = ask.field(&key)?.field(&value)?;
        }
        ask.call()?.check()
    }

    /// Takes any key and its value out.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "popitem")]
    pub fn remove_any(&self) -> Result<Option<(K, V)>> {
        let mut answer = self.referent.ask(Op::TakeAny)?.call()?;
        match answer.optional()? {
            Some(key) => Ok(Some((key, answer.value()?))),
            None => Ok(None),
        }
    }

    /// How many keys there are.
    ///
    /// # Errors
    /// As the type says.
    pub fn len(&self) -> Result<usize> {
        let answer = self.referent.ask(Op::Len)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// Whether there is no key.
    ///
    /// # Errors
    /// As the type says.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Takes all out.
    ///
    /// # Errors
    /// As the type says.
    pub fn clear(&self) -> Result<()> {
        self.referent.ask(Op::Clear)?.call()?.check()
    }

    /// All keys, as of one moment.
    ///
    /// # Errors
    /// As the type says.
    pub fn keys(&self) -> Result<Vec<K>> {
        self.all(Op::Keys)
    }

    /// All values, as of one moment.
    ///
    /// # Errors
    /// As the type says.
    pub fn values(&self) -> Result<Vec<V>> {
        self.all(Op::Values)
    }

    fn all<T: DeserializeOwned>(&self, op: Op) -> Result<Vec<T>> {
        let mut answer = self.referent.ask(op)?.call()?;
        answer.check()?;
        let mut all = Vec::new();
        while let Some(one) = answer.next()? {
            all.push(one);
        }
        Ok(all)
    }

    /// All keys with their values, as of one moment.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "copy")]
    pub fn items(&self) -> Result<Vec<(K, V)>> {
        let mut answer = self.referent.ask(Op::Items)?.call()?;
        answer.check()?;
        let mut all = Vec::new();
        while let Some(key) = answer.next()? {
            all.push((key, answer.value()?));
        }
        Ok(all)
    }
}
