//! Proxies to a lock, which can be taken once or by one thread again and again.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::super::client::Answer;
use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{LockError, Recover};
use crate::sys::thread;
use crate::transport::Patience;

/// In which process, of which server, which object.
type Key = (u32, u64, u64);

thread_local! {
    /// The locks that this thread has, and how many times. A forked child inherits the list
    /// and none of the locks.
    static HELD: RefCell<Vec<(Key, u32)>> = const { RefCell::new(Vec::new()) };
}

/// A lock of which this thread is the holder, or one more time so.
pub(super) struct Held<'a> {
    referent: &'a Referent,
    generation: u32,
    // The lock is this thread's.
    thread: PhantomData<*const ()>,
}

fn key(referent: &Referent) -> Key {
    let (server, object) = referent.key();
    (thread::generation(), server, object)
}

impl<'a> Held<'a> {
    pub(super) fn new(referent: &'a Referent) -> Self {
        HELD.with_borrow_mut(|held| {
            match held.iter_mut().find(|(known, _)| *known == key(referent)) {
                Some((_, times)) => *times += 1,
                None => held.push((key(referent), 1)),
            }
        });
        Self {
            referent,
            generation: thread::generation(),
            thread: PhantomData,
        }
    }

    pub(super) fn referent(&self) -> &'a Referent {
        self.referent
    }
}

/// Whether this thread has the lock.
pub(super) fn is_held(referent: &Referent) -> bool {
    HELD.with_borrow(|held| held.iter().any(|(known, _)| *known == key(referent)))
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.generation != thread::generation() {
            // The parent has it.
            return;
        }
        let is_last = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            let place = held
                .iter()
                .position(|(known, _)| *known == key(self.referent));
            let Some(place) = place else { return true };
            held[place].1 -= 1;
            let is_last = held[place].1 == 0;
            if is_last {
                held.swap_remove(place);
            }
            is_last
        });
        if is_last.unwrap_or(true) {
            // A server that is gone has no locks.
            let _ = self.referent.ask(Op::Unlock).and_then(|ask| ask.call());
        }
    }
}

/// Asks for a lock, and makes a guard of it.
pub(super) fn take<'a, G>(
    referent: &'a Referent,
    op: Op,
    patience: Patience,
    guard: impl FnOnce(&'a Referent) -> G,
) -> Result<G, LockError<G>> {
    let answer = referent
        .ask(op)
        .and_then(|ask| ask.wait(patience).call())
        .and_then(|answer| answer.check().map(|()| answer));
    match answer {
        Ok(answer) => taken(&answer, referent, guard),
        Err(error) if error.is_timeout() => Err(LockError::Unavailable),
        Err(error) => Err(LockError::Failed(error)),
    }
}

pub(super) fn taken<'a, G>(
    answer: &Answer,
    referent: &'a Referent,
    guard: impl FnOnce(&'a Referent) -> G,
) -> Result<G, LockError<G>> {
    match answer.status {
        Status::NotYet => Err(LockError::Unavailable),
        Status::Abandoned => Err(LockError::Abandoned(guard(referent))),
        _ => Ok(guard(referent)),
    }
}

/// Refuses a thread what it would wait for in vain.
pub(super) fn check_own<G>(referent: &Referent) -> Result<(), LockError<G>> {
    if is_held(referent) {
        return Err(LockError::Failed(Error::new(
            ErrorKind::Busy,
            "this thread holds the lock already; waiting for it would never end",
        )));
    }
    Ok(())
}

pub(super) fn recover(referent: &Referent) {
    // If the server is gone, so is the lock.
    let _ = referent.ask(Op::Recover).and_then(|ask| ask.call());
}

/// A lock in a manager's server.
///
/// It belongs to the thread that took it, until the guard is dropped. When that thread's
/// process dies, the next one gets the lock at once and is told:
/// [`LockError::Abandoned`]. A guard that is forgotten keeps the lock as long as its process
/// lives.
///
/// # Source
/// CPython's `SyncManager.Lock`, which others wait for in vain if its holder dies.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::LockProxy};
///
/// let manager = Manager::new()?;
/// let lock = manager.lock()?;
/// let guard = lock.lock()?;
/// let child = Process::start(|lock: LockProxy| lock.try_lock().is_err(), (lock.clone(),))?;
/// assert!(child.result()?);
/// drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LockProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(LockProxy);

impl LockProxy {
    fn take(
        &self,
        patience: Patience,
    ) -> Result<LockProxyGuard<'_>, LockError<LockProxyGuard<'_>>> {
        check_own(&self.referent)?;
        take(&self.referent, Op::Lock, patience, LockProxyGuard::new)
    }
}

/// A lock in a manager's server that its holder can take again.
///
/// The thread that has it gets it again at once, and has it until the last of its guards is
/// dropped. Otherwise it is a [`LockProxy`].
///
/// # Source
/// CPython's `SyncManager.RLock`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let lock = manager.rlock()?;
/// let outer = lock.lock()?;
/// let inner = lock.lock()?;
/// # drop((outer, inner));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RLockProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(RLockProxy);

impl RLockProxy {
    fn take(
        &self,
        patience: Patience,
    ) -> Result<LockProxyGuard<'_>, LockError<LockProxyGuard<'_>>> {
        if is_held(&self.referent) {
            return Ok(LockProxyGuard::new(&self.referent));
        }
        take(&self.referent, Op::Lock, patience, LockProxyGuard::new)
    }
}

/// The three ways to take a lock of either kind.
macro_rules! lockable {
    ($proxy:ident, $until:literal, $if_free:literal, $refusal:literal) => {
        impl $proxy {
            #[doc = $until]
            ///
            /// # Errors
            /// [`LockError::Abandoned`] with the lock, if its holder died; [`LockError::Failed`] if
            #[doc = $refusal]
            #[doc(alias = "acquire")]
            pub fn lock(&self) -> Result<LockProxyGuard<'_>, LockError<LockProxyGuard<'_>>> {
                self.take(Patience::Forever)
            }

            #[doc = $if_free]
            ///
            /// # Errors
            /// [`LockError::Unavailable`] if not; otherwise as [`lock`](Self::lock).
            pub fn try_lock(&self) -> Result<LockProxyGuard<'_>, LockError<LockProxyGuard<'_>>> {
                self.take(Patience::Never)
            }

            /// Takes the lock, waiting for so long at most.
            ///
            /// # Errors
            /// [`LockError::Unavailable`] if that was not enough; otherwise as
            /// [`lock`](Self::lock).
            pub fn lock_timeout(
                &self,
                timeout: Duration,
            ) -> Result<LockProxyGuard<'_>, LockError<LockProxyGuard<'_>>> {
                self.take(Patience::within(timeout))
            }
        }
    };
}

lockable!(
    LockProxy,
    "Takes the lock, waiting until it is free.",
    "Takes the lock if it is free.",
    "this thread has it already, or the server is gone."
);
lockable!(
    RLockProxy,
    "Takes the lock, waiting until no other thread has it.",
    "Takes the lock if no other thread has it.",
    "the server is gone."
);

/// A [`LockProxy`] or [`RLockProxy`], held until this is dropped.
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct LockProxyGuard<'a>(Held<'a>);

impl<'a> LockProxyGuard<'a> {
    fn new(referent: &'a Referent) -> Self {
        Self(Held::new(referent))
    }
}

impl Recover for LockProxyGuard<'_> {
    fn recover(&mut self) {
        recover(self.0.referent());
    }
}

impl std::fmt::Debug for LockProxyGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LockProxyGuard")
    }
}
