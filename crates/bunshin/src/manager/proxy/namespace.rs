//! A proxy to a namespace.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::message::Op;
use super::super::referent::Referent;
use super::proxy;
use crate::error::Result;

/// Named values of any types in a manager's server.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone, `Encode` if a value cannot be encoded,
/// `Decode` if it is asked for as another type than it was set as, `OutOfMemory`.
///
/// # Source
/// CPython's `SyncManager.Namespace`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let settings = manager.namespace()?;
/// settings.set("title", "a list")?;
/// settings.set("size", &(4, 7))?;
/// assert_eq!(settings.get::<String>("title")?.as_deref(), Some("a list"));
/// assert_eq!(settings.get("size")?, Some((4, 7)));
/// assert_eq!(settings.get::<u8>("colour")?, None);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[doc(alias = "Namespace")]
pub struct NamespaceProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(NamespaceProxy);

impl NamespaceProxy {
    /// The value of a name.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__getattr__")]
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.referent.ask(Op::Get)?.text(name)?.call()?.optional()
    }

    /// Sets the value of a name.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__setattr__")]
    pub fn set<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        let ask = self.referent.ask(Op::Update)?.text(name)?.field(value)?;
        ask.call()?.check()
    }

    /// Takes a name out; says whether it was there.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "__delattr__")]
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.referent.ask(Op::Take)?.text(name)?.call()?.found()
    }

    /// All names, in no order.
    ///
    /// # Errors
    /// As the type says.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut answer = self.referent.ask(Op::Keys)?.call()?;
        answer.check()?;
        let mut names = Vec::new();
        while let Some(name) = answer.next_text() {
            names.push(name);
        }
        Ok(names)
    }
}
