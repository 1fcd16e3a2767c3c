//! A proxy to a barrier.

use std::error::Error as StdError;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::super::message::{Op, Status};
use super::super::object::gate::ACT;
use super::super::referent::Referent;
use super::proxy;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Patience;

/// Why a wait at a barrier did not end with all others there.
#[derive(Debug)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: somebody ran out of time, died, aborted it or reset it.
    Broken,
    /// The time was over; that breaks the barrier for the others.
    TimedOut,
    /// Something else, such as the server being gone.
    Failed(Error),
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("the barrier is broken"),
            Self::TimedOut => f.write_str("not all came to the barrier in the time given"),
            Self::Failed(error) => write!(f, "cannot wait at a barrier: {error}"),
        }
    }
}

impl StdError for BarrierError {}

impl From<BarrierError> for Error {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Failed(error) => error,
            BarrierError::TimedOut => Self::new(ErrorKind::TimedOut, error.to_string()),
            BarrierError::Broken => Self::new(ErrorKind::Abandoned, error.to_string()),
        }
    }
}

/// A barrier in a manager's server, which lets a number of parties through together.
///
/// A party that dies while it waits breaks the barrier for the others, as one whose time is
/// over does.
///
/// # Source
/// CPython's `SyncManager.Barrier`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::BarrierProxy};
///
/// let manager = Manager::new()?;
/// let barrier = manager.barrier(2)?;
/// let child = Process::start(|barrier: BarrierProxy| barrier.wait().is_ok(), (barrier.clone(),))?;
/// barrier.wait()?;
/// assert!(child.result()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BarrierProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(BarrierProxy);

impl BarrierProxy {
    /// Waits until all parties are there; gives this one's place in the order they came, from 0.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.pass(Patience::Forever, None::<fn()>)
    }

    /// The same, for so long at most.
    ///
    /// # Errors
    /// [`BarrierError::TimedOut`], and the barrier is broken then.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.pass(Patience::within(timeout), None::<fn()>)
    }

    /// Waits; the last one to come runs its `action` before any of them goes on.
    ///
    /// If the action panics, or its process dies, the barrier is broken.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.pass(Patience::Forever, Some(action))
    }

    fn pass(
        &self,
        patience: Patience,
        action: Option<impl FnOnce()>,
    ) -> Result<usize, BarrierError> {
        let answer = self
            .referent
            .ask(Op::Wait)
            .map(|ask| ask.second(action.is_some().into()).wait(patience))
            .and_then(|ask| ask.call())
            .and_then(|answer| answer.check().map(|()| answer))
            .map_err(BarrierError::Failed)?;
        match answer.status {
            Status::Ok => {}
            Status::NotYet => return Err(BarrierError::TimedOut),
            _ => return Err(BarrierError::Broken),
        }
        if answer.number & ACT != 0 {
            struct Abort<'a>(&'a BarrierProxy);
            impl Drop for Abort<'_> {
                fn drop(&mut self) {
                    let _ = self.0.abort();
                }
            }
            let abort = Abort(self);
            if let Some(action) = action {
                action();
            }
            std::mem::forget(abort);
            let ended = self.referent.ask(Op::Set).and_then(|ask| ask.call());
            if ended.map_err(BarrierError::Failed)?.status == Status::Broken {
                return Err(BarrierError::Broken);
            }
        }
        Ok((answer.number & (ACT - 1)) as usize)
    }

    /// Breaks the barrier: all who wait, and all who come, are told so.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn abort(&self) -> Result<()> {
        self.referent.ask(Op::Abort)?.call()?.check()
    }

    /// Makes the barrier as new; those who wait are told that it is broken.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn reset(&self) -> Result<()> {
        self.referent.ask(Op::Reset)?.call()?.check()
    }

    /// How many it lets through together.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn parties(&self) -> Result<usize> {
        let answer = self.referent.ask(Op::Len)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// How many wait now.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "n_waiting")]
    pub fn waiting(&self) -> Result<usize> {
        Ok((self.state()? & !(1 << 63)) as usize)
    }

    /// Whether it is broken.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> Result<bool> {
        Ok(self.state()? >> 63 != 0)
    }

    fn state(&self) -> Result<u64> {
        let answer = self.referent.ask(Op::State)?.call()?;
        answer.check()?;
        Ok(answer.number)
    }
}
