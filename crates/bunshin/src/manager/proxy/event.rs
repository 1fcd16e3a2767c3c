//! A proxy to an event.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::error::Result;
use crate::transport::Patience;

/// A flag in a manager's server that can be waited for.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone.
///
/// # Source
/// CPython's `SyncManager.Event`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::EventProxy};
///
/// let manager = Manager::new()?;
/// let event = manager.event()?;
/// let child = Process::start(|event: EventProxy| event.set().is_ok(), (event.clone(),))?;
/// event.wait()?;
/// assert!(event.is_set()? && child.result()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EventProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(EventProxy);

impl EventProxy {
    /// Sets the flag, and wakes all who wait for it.
    ///
    /// # Errors
    /// As the type says.
    pub fn set(&self) -> Result<()> {
        self.referent.ask(Op::Set)?.call()?.check()
    }

    /// Takes the flag back.
    ///
    /// # Errors
    /// As the type says.
    pub fn clear(&self) -> Result<()> {
        self.referent.ask(Op::Reset)?.call()?.check()
    }

    /// Whether the flag is set.
    ///
    /// # Errors
    /// As the type says.
    pub fn is_set(&self) -> Result<bool> {
        let answer = self.referent.ask(Op::IsSet)?.call()?;
        answer.check()?;
        Ok(answer.number != 0)
    }

    /// Waits until the flag is set.
    ///
    /// # Errors
    /// As the type says.
    pub fn wait(&self) -> Result<()> {
        self.sleep(Patience::Forever).map(|_| ())
    }

    /// Waits until the flag is set, for so long at most; `false` if it was not.
    ///
    /// # Errors
    /// As the type says.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.sleep(Patience::within(timeout))
    }

    fn sleep(&self, patience: Patience) -> Result<bool> {
        let answer = self.referent.ask(Op::Wait)?.wait(patience).call()?;
        answer.check()?;
        Ok(answer.status == Status::Ok)
    }
}
