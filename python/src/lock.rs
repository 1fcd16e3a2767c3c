//! Locks and semaphores.
//!
//! What Python code has is a [`SemLock`]; what it does is done by its [`Hold`], and so the functions
//! that `with` calls can be kept with the one without leading back to it. What there is to do
//! when nobody is in the way is done in the first part below, [`Hold::take_at_once`] and
//! [`Hold::give_back_at_once`].

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bunshin::front::memory::{Attempt, MemoryLock};
use bunshin::front::{Permit, PlainLock, PlainSemaphore, Taken};
use pyo3::exceptions::{
    PyAssertionError, PyOSError, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::error::exception;
use crate::fork::take_raised;
use crate::heap::Block;
use crate::quick::{self, Answer, Arguments, Entrance, Failure, Method};
use crate::sync::{Condition, Memory, Shared, abandoned, limit, unopened, wait};

/// How often a thread that does not wait looks closely whether a lock's holder lives.
const LOOK_EVERY_MS: u64 = 50;

/// Milliseconds since some moment in the past.
fn milliseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
}

#[cold]
fn not_owned(_: Python<'_>) -> PyErr {
    PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
}

#[cold]
fn too_often(_: Python<'_>) -> PyErr {
    PyValueError::new_err("semaphore or lock released too many times")
}

/// Takes the lock of a value, waiting so long at most, or for ever. An abandoned one is taken too.
pub(crate) fn wait_for_memory(
    py: Python<'_>,
    lock: &MemoryLock,
    timeout: Option<Duration>,
) -> PyResult<Attempt> {
    loop {
        let attempt = py.detach(|| match timeout {
            None => lock.lock(),
            Some(timeout) => lock.lock_timeout(timeout),
        });
        let attempt = attempt.map_err(|error| exception(&error))?;
        if attempt == Attempt::Unavailable {
            // A signal's handler raised, or the time is over.
            if let Some(raised) = take_raised() {
                return Err(raised);
            }
            if timeout.is_none() {
                continue;
            }
        }
        return Ok(attempt);
    }
}

fn taken(attempt: Attempt) -> Option<Taken> {
    match attempt {
        Attempt::Taken => Some(Taken::Clean),
        Attempt::Abandoned => Some(Taken::Abandoned),
        Attempt::Unavailable => None,
    }
}

enum Kind {
    Lock(PlainLock),
    RLock(PlainLock),
    /// The lock of a value or an array, which lies beside the data.
    Value {
        lock: MemoryLock,
        block: Py<Block>,
    },
    Semaphore {
        semaphore: PlainSemaphore,
        /// Permits that threads of this process have taken by `with`.
        kept: Mutex<Vec<Permit>>,
    },
}

/// What a lock or a semaphore does.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Hold {
    kind: Kind,
    /// When this was last looked at closely.
    looked: AtomicU64,
}

fn locked(kept: &Mutex<Vec<Permit>>) -> MutexGuard<'_, Vec<Permit>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hold {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            looked: AtomicU64::new(0),
        }
    }

    /// Takes it if nothing is in the way, or does nothing.
    #[inline]
    fn take_at_once(&self, keep: bool) -> Option<Taken> {
        match &self.kind {
            Kind::Lock(lock) => lock.try_lock().ok()?,
            Kind::RLock(lock) => match lock.try_lock().ok()? {
                Some(taken) => {
                    lock.set_depth(1);
                    Some(taken)
                }
                None if lock.is_mine() => {
                    lock.set_depth(lock.depth() + 1);
                    Some(Taken::Clean)
                }
                None => None,
            },
            Kind::Value { lock, .. } => taken(lock.try_lock().ok()?),
            Kind::Semaphore { semaphore, kept } => {
                let (permit, taken) = semaphore.try_acquire(keep).ok()??;
                if keep {
                    locked(kept).push(permit);
                }
                Some(taken)
            }
        }
    }

    /// Gives it back, once; or says why that is an error.
    #[inline]
    fn give_back_at_once(&self) -> Result<(), Failure> {
        let (is_done, failure): (bool, Failure) = match &self.kind {
            Kind::Lock(lock) => (lock.unlock(), too_often),
            Kind::RLock(lock) => {
                let is_mine = lock.is_mine();
                if is_mine {
                    match lock.depth() {
                        0 | 1 => drop(lock.unlock()),
                        depth => lock.set_depth(depth - 1),
                    }
                }
                (is_mine, not_owned)
            }
            Kind::Value { lock, .. } => (lock.unlock(), not_owned),
            Kind::Semaphore { semaphore, kept } => {
                let mut kept = locked(kept);
                let own = kept.iter().rposition(Permit::is_mine);
                let permit = own.map(|at| kept.remove(at));
                drop(kept);
                match permit {
                    Some(permit) => {
                        semaphore.give_back(permit);
                        (true, too_often)
                    }
                    None => (semaphore.release(), too_often),
                }
            }
        };
        if is_done { Ok(()) } else { Err(failure) }
    }

    /// Takes it, waiting if it is to; how, or nothing if the time is over.
    fn take(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<f64>,
        keep: bool,
    ) -> PyResult<Option<Taken>> {
        // Checked in any case.
        let limit = if block { limit(timeout)? } else { None };
        if let Some(taken) = self.take_at_once(keep) {
            return Ok(Some(taken));
        }
        match &self.kind {
            Kind::Lock(lock) => self.take_lock(py, lock, block, limit),
            Kind::RLock(lock) => {
                let taken = self.take_lock(py, lock, block, limit)?;
                if taken.is_some() {
                    lock.set_depth(1);
                }
                Ok(taken)
            }
            Kind::Value { lock, .. } => {
                let mut attempt = lock.try_lock().map_err(|error| exception(&error))?;
                if attempt == Attempt::Unavailable && block {
                    py.check_signals()?;
                    attempt = wait_for_memory(py, lock, limit)?;
                }
                Ok(taken(attempt))
            }
            Kind::Semaphore { semaphore, kept } => {
                let os = |error| exception(&error);
                let mut acquired = semaphore.try_acquire(keep).map_err(os)?;
                if acquired.is_none() && block {
                    let work = || semaphore.acquire(keep, limit);
                    let undo = |acquired| match acquired {
                        Ok(Some((permit, _))) if keep => semaphore.give_back(permit),
                        // There is room for what was just taken.
                        Ok(Some(_)) => drop(semaphore.release()),
                        _ => {}
                    };
                    acquired = wait(py, work, undo)?.map_err(os)?;
                }
                let Some((permit, taken)) = acquired else {
                    return Ok(None);
                };
                if keep {
                    locked(kept).push(permit);
                }
                Ok(Some(taken))
            }
        }
    }

    fn take_lock(
        &self,
        py: Python<'_>,
        lock: &PlainLock,
        block: bool,
        limit: Option<Duration>,
    ) -> PyResult<Option<Taken>> {
        let taken = if block {
            let undo = |taken| {
                if let Ok(Some(_)) = taken {
                    lock.unlock();
                }
            };
            wait(py, || lock.lock(limit), undo)?
        } else {
            let now = milliseconds();
            if now.wrapping_sub(self.looked.load(Ordering::Relaxed)) < LOOK_EVERY_MS {
                return Ok(None);
            }
            self.looked.store(now, Ordering::Relaxed);
            lock.try_lock_thoroughly()
        };
        taken.map_err(|error| exception(&error))
    }

    /// Takes it for a block of code, which is not run if this fails.
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<Answer> {
        match self.take(py, true, None, true)? {
            Some(Taken::Abandoned) => {
                // What would end the block is not called.
                self.give_back_at_once().map_err(|why| why(py))?;
                Err(abandoned(py))
            }
            taken => Ok(taken.is_some().into()),
        }
    }

    /// Ends what [`enter`](Self::enter) began.
    pub(crate) fn leave(&self, py: Python<'_>) -> PyResult<()> {
        self.give_back_at_once().map_err(|why| why(py))
    }

    /// An error unless a condition can be used with it.
    pub(crate) fn check_for_condition(&self) -> PyResult<()> {
        match &self.kind {
            Kind::Lock(_) | Kind::RLock(_) | Kind::Value { .. } => Ok(()),
            Kind::Semaphore { .. } => Err(PyTypeError::new_err(
                "a condition is used with a Lock or an RLock",
            )),
        }
    }

    /// Gives up a lock of this thread's, however often it was taken; how often that is.
    pub(crate) fn give_up(&self) -> u32 {
        match &self.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => {
                let depth = lock.depth();
                lock.unlock();
                depth
            }
            Kind::Value { lock, .. } => {
                let mut depth = 0;
                while lock.is_mine() && lock.unlock() {
                    depth += 1;
                }
                depth
            }
            Kind::Semaphore { .. } => 0,
        }
    }

    /// Takes again what was given up, and waits for that whatever comes.
    pub(crate) fn take_again(&self, depth: u32) -> bunshin::Result<Taken> {
        match &self.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => {
                let taken = loop {
                    if let Some(taken) = lock.lock(None)? {
                        break taken;
                    }
                };
                lock.set_depth(depth);
                Ok(taken)
            }
            Kind::Value { lock, .. } => {
                let first = loop {
                    if let Some(taken) = taken(lock.lock()?) {
                        break taken;
                    }
                };
                for _ in 1..depth {
                    lock.try_lock()?;
                }
                Ok(first)
            }
            Kind::Semaphore { .. } => Ok(Taken::Clean),
        }
    }

    /// Whether this thread has it.
    pub(crate) fn is_mine(&self) -> bool {
        match &self.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => lock.is_mine(),
            Kind::Value { lock, .. } => lock.is_mine(),
            Kind::Semaphore { kept, .. } => locked(kept).iter().any(Permit::is_mine),
        }
    }

    /// Whether a thread of this process has it.
    fn is_held_here(&self) -> bool {
        match &self.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => lock.is_held_here(),
            Kind::Value { lock, .. } => lock.is_held_here(),
            Kind::Semaphore { kept, .. } => !locked(kept).is_empty(),
        }
    }

    /// How often a thread of this process has acquired it.
    fn count(&self) -> u32 {
        match &self.kind {
            Kind::Lock(lock) => u32::from(lock.is_held_here()),
            Kind::RLock(lock) if lock.is_held_here() => lock.depth(),
            Kind::Value { lock, .. } if lock.is_held_here() => lock.depth(),
            Kind::RLock(_) | Kind::Value { .. } => 0,
            Kind::Semaphore { kept, .. } => u32::try_from(locked(kept).len()).unwrap_or(u32::MAX),
        }
    }

    fn value(&self) -> u32 {
        match &self.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => u32::from(!lock.is_locked()),
            Kind::Value { lock, .. } => u32::from(!lock.is_taken()),
            Kind::Semaphore { semaphore, .. } => semaphore.value(),
        }
    }
}

/// What `with` calls.
pub(crate) struct Entrances {
    enter: Py<PyAny>,
    exit: Py<PyAny>,
}

struct Ready {
    hold: Py<Hold>,
    entrances: Entrances,
}

/// A lock, a recursive lock or a semaphore.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct SemLock(OnceLock<Ready>);

impl SemLock {
    #[inline]
    pub(crate) fn hold(&self) -> PyResult<&Hold> {
        match self.0.get() {
            Some(ready) => Ok(ready.hold.get()),
            None => Err(unopened()),
        }
    }

    #[inline]
    pub(crate) fn entrances(&self) -> Option<&Entrances> {
        self.0.get().map(|ready| &ready.entrances)
    }

    /// The lock of a value or an array, if it is one.
    pub(crate) fn memory(&self) -> Option<&MemoryLock> {
        match &self.0.get()?.hold.get().kind {
            Kind::Value { lock, .. } => Some(lock),
            _ => None,
        }
    }

    fn open(&self, py: Python<'_>, kind: Kind) -> PyResult<()> {
        let hold = Bound::new(py, Hold::new(kind))?;
        let entrances = Entrances {
            enter: quick::bound::<Enter>(&hold)?,
            exit: quick::bound::<Exit>(&hold)?,
        };
        let ready = Ready {
            hold: hold.unbind(),
            entrances,
        };
        self.0
            .set(ready)
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }
}

#[pymethods]
impl SemLock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    /// Makes what is behind it: `"lock"`, `"rlock"`, or a semaphore with so many permits.
    #[pyo3(signature = (what, value=1, bounded=false))]
    fn _open(&self, py: Python<'_>, what: &str, value: i64, bounded: bool) -> PyResult<()> {
        const EINVAL: i32 = 22;
        let os = |error: bunshin::Error| exception(&error);
        let kind = match what {
            "lock" => Kind::Lock(PlainLock::new().map_err(os)?),
            "rlock" => Kind::RLock(PlainLock::new().map_err(os)?),
            _ => {
                let invalid = |error: bunshin::Error| match error.kind() {
                    bunshin::ErrorKind::InvalidInput => {
                        PyOSError::new_err((EINVAL, error.to_string()))
                    }
                    _ => exception(&error),
                };
                if i32::try_from(value).is_err() {
                    return Err(PyOverflowError::new_err(
                        "a semaphore's value is 32 bits long",
                    ));
                }
                let value = u64::try_from(value)
                    .map_err(|_| PyOSError::new_err((EINVAL, "a semaphore has no debts")))?;
                Kind::Semaphore {
                    semaphore: PlainSemaphore::new(value, bounded).map_err(invalid)?,
                    kept: Mutex::default(),
                }
            }
        };
        self.open(py, kind)
    }

    /// Goes on with what came from another process, or with the lock of a block.
    fn _adopt(&self, py: Python<'_>, what: &str, shared: &Bound<'_, PyAny>) -> PyResult<()> {
        let strange = || PyTypeError::new_err("something else has arrived");
        if let Ok(block) = shared.cast::<Block>() {
            let lock = block.get().lock().cloned();
            let lock =
                lock.ok_or_else(|| PyValueError::new_err("the block was made without a lock"))?;
            let block = block.clone().unbind();
            return self.open(py, Kind::Value { lock, block });
        }
        let shared = shared.cast::<Shared>().map_err(|_| strange())?;
        let kind = match (what, shared.get().0.clone()) {
            ("lock", Memory::Lock(lock)) => Kind::Lock(lock),
            ("rlock", Memory::Lock(lock)) => Kind::RLock(lock),
            (_, Memory::Semaphore(semaphore)) => Kind::Semaphore {
                semaphore,
                kept: Mutex::default(),
            },
            _ => return Err(strange()),
        };
        self.open(py, kind)
    }

    /// What another process needs to go on with it.
    fn _shared<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let memory = match &self.hold()?.kind {
            Kind::Lock(lock) | Kind::RLock(lock) => Memory::Lock(lock.clone()),
            Kind::Semaphore { semaphore, .. } => Memory::Semaphore(semaphore.clone()),
            Kind::Value { block, .. } => return Ok(block.bind(py).clone().into_any()),
        };
        Ok(Bound::new(py, Shared(memory))?.into_any())
    }

    /// Whether nobody could acquire it just now.
    fn locked(&self) -> PyResult<bool> {
        self._is_zero()
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self.hold()?.is_mine())
    }

    fn _is_held_here(&self) -> PyResult<bool> {
        Ok(self.hold()?.is_held_here())
    }

    fn _count(&self) -> PyResult<u32> {
        Ok(self.hold()?.count())
    }

    /// How many permits there are.
    fn _get_value(&self) -> PyResult<u32> {
        Ok(self.hold()?.value())
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self._get_value()? == 0)
    }
}

/// `acquire`: whether it has acquired it.
pub(crate) struct Acquire;

impl Method for Acquire {
    type Class = SemLock;
    const NAME: &'static CStr = c"acquire";
    const DOC: &'static CStr = c"acquire($self, /, block=True, timeout=None)\n--\n\n\
        Acquires it; with `block`, waiting for `timeout` seconds or for ever. Whether it did.";

    #[inline]
    fn at_once(this: &SemLock) -> Result<Option<Answer>, Failure> {
        let Some(ready) = this.0.get() else {
            return Ok(None);
        };
        match ready.hold.get().take_at_once(false) {
            Some(Taken::Clean) => Ok(Some(Answer::True)),
            Some(Taken::Abandoned) => Err(abandoned),
            None => Ok(None),
        }
    }

    fn in_full(this: &SemLock, py: Python<'_>, arguments: &Arguments<'_, '_>) -> PyResult<Answer> {
        let [block, timeout] = arguments.of::<Self, 2>(["block", "timeout"])?;
        let block = match block {
            Some(block) => block.is_truthy()?,
            None => true,
        };
        let timeout = match timeout {
            Some(timeout) => timeout.extract::<Option<f64>>()?,
            None => None,
        };
        match this.hold()?.take(py, block, timeout, false)? {
            None => Ok(Answer::False),
            Some(Taken::Clean) => Ok(Answer::True),
            Some(Taken::Abandoned) => Err(abandoned(py)),
        }
    }
}

/// `release`.
pub(crate) struct Release;

impl Method for Release {
    type Class = SemLock;
    const NAME: &'static CStr = c"release";
    const DOC: &'static CStr = c"release($self, /)\n--\n\nReleases it.";

    #[inline]
    fn at_once(this: &SemLock) -> Result<Option<Answer>, Failure> {
        let Some(ready) = this.0.get() else {
            return Ok(None);
        };
        ready.hold.get().give_back_at_once()?;
        Ok(Some(Answer::None))
    }

    fn in_full(this: &SemLock, py: Python<'_>, arguments: &Arguments<'_, '_>) -> PyResult<Answer> {
        let [] = arguments.of::<Self, 0>([])?;
        this.hold()?.leave(py)?;
        Ok(Answer::None)
    }
}

/// `__enter__`.
pub(crate) struct Enter;

impl Method for Enter {
    type Class = Hold;
    const NAME: &'static CStr = c"__enter__";
    const DOC: &'static CStr = c"__enter__($self, /)\n--\n\nAcquires it.";

    #[inline]
    fn at_once(this: &Hold) -> Result<Option<Answer>, Failure> {
        match this.take_at_once(true) {
            Some(Taken::Clean) => Ok(Some(Answer::True)),
            Some(Taken::Abandoned) => {
                // What would end the block is not called.
                this.give_back_at_once()?;
                Err(abandoned)
            }
            None => Ok(None),
        }
    }

    fn in_full(this: &Hold, py: Python<'_>, arguments: &Arguments<'_, '_>) -> PyResult<Answer> {
        let [] = arguments.of::<Self, 0>([])?;
        this.enter(py)
    }
}

/// `__exit__`.
pub(crate) struct Exit;

impl Method for Exit {
    type Class = Hold;
    const NAME: &'static CStr = c"__exit__";
    const DOC: &'static CStr =
        c"__exit__($self, type=None, value=None, traceback=None, /)\n--\n\nReleases it.";
    const IGNORED: usize = 3;

    #[inline]
    fn at_once(this: &Hold) -> Result<Option<Answer>, Failure> {
        this.give_back_at_once()?;
        Ok(Some(Answer::None))
    }

    fn in_full(this: &Hold, py: Python<'_>, arguments: &Arguments<'_, '_>) -> PyResult<Answer> {
        arguments.of::<Self, 3>(["type", "value", "traceback"])?;
        this.leave(py)?;
        Ok(Answer::None)
    }
}

/// `__enter__` of a lock or a semaphore.
pub(crate) struct LockEnter;

impl Entrance for LockEnter {
    type Class = SemLock;
    const NAME: &'static CStr = Enter::NAME;

    #[inline]
    fn function(this: &SemLock) -> Option<&Py<PyAny>> {
        Some(&this.entrances()?.enter)
    }
}

/// `__exit__` of a lock or a semaphore.
pub(crate) struct LockExit;

impl Entrance for LockExit {
    type Class = SemLock;
    const NAME: &'static CStr = Exit::NAME;

    #[inline]
    fn function(this: &SemLock) -> Option<&Py<PyAny>> {
        Some(&this.entrances()?.exit)
    }
}

/// `__enter__` of a condition, which is its lock's.
pub(crate) struct ConditionEnter;

impl Entrance for ConditionEnter {
    type Class = Condition;
    const NAME: &'static CStr = Enter::NAME;

    #[inline]
    fn function(this: &Condition) -> Option<&Py<PyAny>> {
        Some(&this.entrances()?.enter)
    }
}

/// `__exit__` of a condition.
pub(crate) struct ConditionExit;

impl Entrance for ConditionExit {
    type Class = Condition;
    const NAME: &'static CStr = Exit::NAME;

    #[inline]
    fn function(this: &Condition) -> Option<&Py<PyAny>> {
        Some(&this.entrances()?.exit)
    }
}

/// Gives the classes what the interpreter calls with nothing in between.
pub(crate) fn add_methods(py: Python<'_>) -> PyResult<()> {
    let (lock, condition) = (py.get_type::<SemLock>(), py.get_type::<Condition>());
    quick::add_method::<Acquire>(&lock)?;
    quick::add_method::<Release>(&lock)?;
    quick::add_entrance::<LockEnter>(&lock)?;
    quick::add_entrance::<LockExit>(&lock)?;
    quick::add_entrance::<ConditionEnter>(&condition)?;
    quick::add_entrance::<ConditionExit>(&condition)
}
