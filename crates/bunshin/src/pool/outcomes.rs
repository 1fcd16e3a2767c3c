//! What a handle waits for: the outcomes of its tasks, and what is called then.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::Waker;
use std::time::Instant;

use super::message::Arrived;
use crate::error::Result;
use crate::process::{TaskError, panic};
use crate::sys::mutex::ForkMutex;

/// What a task gave.
pub(crate) enum Payload {
    /// Bytes of a process, which who wants the result decodes.
    Arrived(Arrived),
    /// A value of a thread.
    Value(Box<dyn Any + Send>),
}

impl Payload {
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::Arrived(arrived) => arrived.is_failure,
            Self::Value(_) => false,
        }
    }
}

pub(crate) type Outcome = Result<Payload, TaskError>;

/// Something that is to be called without the pool's lock.
pub(crate) type Job = Box<dyn FnOnce() + Send>;
/// Turns outcomes into what callbacks are shown and the handle then gives.
pub(crate) type Decode = Box<dyn FnOnce(Vec<Outcome>) -> Box<dyn Any + Send> + Send>;
type Callback = Box<dyn FnOnce(&dyn Any) + Send>;

/// Who does the tasks of a handle.
pub(crate) trait Source: Send + Sync {
    /// Waits until all outcomes are there. False if the time was up before.
    fn wait(&self, outcomes: &Outcomes, deadline: Option<Instant>) -> Result<bool>;
    /// Takes in what has come, without waiting.
    fn look(&self);
    /// Cancels the tasks of a handle that have not begun, and if `also_running` ends the
    /// workers of those that have. `hint` is where its post is, if it can have only one. Gives
    /// how many tasks that were.
    fn cancel(&self, outcomes: &Arc<Outcomes>, hint: Option<usize>, also_running: bool) -> usize;
    /// Whether a worker is at the task of a handle that has only one, where that can be told.
    fn has_begun(&self, _outcomes: &Arc<Outcomes>, _hint: Option<usize>) -> bool {
        false
    }
    /// Has `attach` add a callback while no outcome is delivered, which says whether that will
    /// be called by and by, and what is to be called now.
    fn attach(&self, attach: &mut dyn FnMut() -> (bool, Option<Job>));
    /// Has a future woken once all outcomes are there, and sees to it that they come though
    /// nobody waits. True if they are there already, and nobody will be woken.
    fn watch(&self, outcomes: &Arc<Outcomes>, waker: &Waker) -> Result<bool>;
    /// The future is gone.
    fn unwatch(&self, outcomes: &Outcomes);
}

/// What the last outcome of a handle sets off, once no lock is held.
#[must_use]
#[derive(Default)]
pub(crate) struct Aftermath {
    /// What calls its callbacks.
    pub(crate) job: Option<Job>,
    /// The future that waits for it, unless callbacks come first.
    pub(crate) waker: Option<Waker>,
    /// Whether a future did wait for it.
    pub(crate) was_awaited: bool,
}

/// The outcomes of one or many tasks.
pub(crate) struct Outcomes {
    inner: ForkMutex<Inner>,
    is_ready: AtomicBool,
    /// Whether they are those of a map, whose tasks have positions.
    is_map: bool,
}

#[derive(Default)]
struct Inner {
    outcomes: Vec<Option<Outcome>>,
    /// Outcomes that are to come, and one more while tasks are being added.
    left: usize,
    callbacks: Vec<Callback>,
    /// There from the first callback on, until they are being called.
    decode: Option<Decode>,
    is_calling: bool,
    /// The future that waits for all this.
    waker: Option<Waker>,
    /// Whether that future is counted by who does the tasks.
    is_awaited: bool,
    /// What callbacks were shown.
    decoded: Option<Box<dyn Any + Send>>,
}

/// What a handle gets.
pub(crate) enum Taken {
    Outcomes(Vec<Outcome>),
    Decoded(Box<dyn Any + Send>),
}

impl Outcomes {
    /// For one task.
    pub(crate) fn one() -> Arc<Self> {
        let mut inner = Inner::default();
        inner.outcomes.push(None);
        inner.left = 1;
        Self::new(inner, false)
    }

    /// For any number of tasks, which are to be added; then `seal` it.
    pub(crate) fn many() -> Arc<Self> {
        let inner = Inner {
            left: 1,
            ..Inner::default()
        };
        Self::new(inner, true)
    }

    fn new(inner: Inner, is_map: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: ForkMutex::new(inner),
            is_ready: AtomicBool::new(false),
            is_map,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// One more task is about to be begun; gives its position.
    pub(crate) fn add(&self) -> usize {
        let mut inner = self.lock();
        inner.outcomes.push(None);
        inner.left += 1;
        inner.outcomes.len() - 1
    }

    /// No more tasks will be added.
    pub(crate) fn seal(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.left -= 1;
        // Nobody has had a chance to add a callback.
        if inner.left == 0 {
            self.is_ready.store(true, Ordering::Release);
        }
    }

    /// The number of the task at a position, if it has one.
    pub(crate) fn task(&self, position: usize) -> Option<usize> {
        self.is_map.then_some(position)
    }

    /// Takes the outcome of a task; gives what is to be done now.
    pub(crate) fn deliver(self: &Arc<Self>, position: usize, outcome: Outcome) -> Aftermath {
        let mut aftermath = Aftermath::default();
        let mut inner = self.lock();
        let Some(slot @ None) = inner.outcomes.get_mut(position) else {
            return aftermath;
        };
        *slot = Some(outcome);
        inner.left -= 1;
        if inner.left > 0 {
            return aftermath;
        }
        aftermath.was_awaited = std::mem::take(&mut inner.is_awaited);
        if inner.decode.is_some() {
            aftermath.job = Some(self.job(&mut inner));
        } else {
            self.is_ready.store(true, Ordering::Release);
            aftermath.waker = inner.waker.take();
        }
        aftermath
    }

    /// Has a future woken once it is ready. Nothing if it is ready already; or else whether
    /// the future is to be counted from now on.
    pub(crate) fn watch(&self, waker: &Waker) -> Option<bool> {
        let mut inner = self.lock();
        if self.is_ready() {
            return None;
        }
        match &mut inner.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        // While callbacks are being called, nothing more has to be done for it.
        let is_new = inner.left > 0 && !inner.is_awaited;
        inner.is_awaited |= is_new;
        Some(is_new)
    }

    /// Forgets the future. True if it was counted.
    pub(crate) fn unwatch(&self) -> bool {
        let mut inner = self.lock();
        inner.waker = None;
        std::mem::take(&mut inner.is_awaited)
    }

    fn job(self: &Arc<Self>, inner: &mut Inner) -> Job {
        inner.is_calling = true;
        self.is_ready.store(false, Ordering::Release);
        let outcomes = Arc::clone(self);
        Box::new(move || outcomes.call())
    }

    /// Adds a callback. Gives whether it will be called by and by, or what calls it now.
    pub(crate) fn attach(
        self: &Arc<Self>,
        decode: Decode,
        callback: Callback,
    ) -> (bool, Option<Job>) {
        let mut inner = self.lock();
        inner.callbacks.push(callback);
        if inner.is_calling {
            return (false, None);
        }
        let is_first = inner.decode.is_none();
        if inner.decoded.is_none() {
            inner.decode.get_or_insert(decode);
        }
        if inner.left > 0 {
            return (is_first, None);
        }
        (false, Some(self.job(&mut inner)))
    }

    fn call(&self) {
        let mut inner = self.lock();
        let decode = inner.decode.take();
        let before = inner.decoded.take();
        let outcomes = std::mem::take(&mut inner.outcomes);
        drop(inner);
        let decoded = match (before, decode) {
            (Some(decoded), _) => decoded,
            (None, Some(decode)) => decode(outcomes.into_iter().flatten().collect()),
            // There is always one of them.
            (None, None) => Box::new(()),
        };
        loop {
            let mut inner = self.lock();
            let callbacks = std::mem::take(&mut inner.callbacks);
            if callbacks.is_empty() {
                inner.decoded = Some(decoded);
                inner.is_calling = false;
                self.is_ready.store(true, Ordering::Release);
                let waker = inner.waker.take();
                drop(inner);
                if let Some(waker) = waker {
                    waker.wake();
                }
                return;
            }
            drop(inner);
            for callback in callbacks {
                // The hook has printed it, and the others are to be called all the same.
                let _ = panic::catch(false, || callback(&*decoded));
            }
        }
    }

    /// Whether all outcomes are there, and all callbacks have been called.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// Whether all outcomes are there, and callbacks are yet to be called.
    pub(crate) fn is_calling(&self) -> bool {
        self.lock().is_calling
    }

    /// Takes all, once it is ready.
    pub(crate) fn take(&self) -> Taken {
        let mut inner = self.lock();
        match inner.decoded.take() {
            Some(decoded) => Taken::Decoded(decoded),
            None => {
                let outcomes = std::mem::take(&mut inner.outcomes);
                let missing = || Err(TaskError::Cancelled);
                Taken::Outcomes(
                    outcomes
                        .into_iter()
                        .map(|outcome| outcome.unwrap_or_else(missing))
                        .collect(),
                )
            }
        }
    }

    /// Looks at the outcomes, or at what callbacks were shown.
    pub(crate) fn look<T>(
        &self,
        outcome: impl Fn(&Outcome) -> bool,
        decoded: impl FnOnce(&dyn Any) -> T,
    ) -> Result<T, bool> {
        let inner = self.lock();
        match &inner.decoded {
            Some(shown) => Ok(decoded(&**shown)),
            None => Err(inner.outcomes.iter().flatten().all(outcome)),
        }
    }
}

impl fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcomes")
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}
