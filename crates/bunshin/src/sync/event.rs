//! The event.

use std::time::Duration;

use super::travels;
use crate::error::Result;
use crate::shm::event::SharedEvent;
use crate::transport::Patience;

/// A flag that processes set, clear, and wait for.
///
/// It lives in shared memory, and clones and copies in other processes are the same event. Whoever
/// dies leaves it as it is: if a process is killed within [`set`](Self::set), the event is set or
/// it is not, and if it is, all who wait go on within a second.
///
/// # Source
/// CPython's `multiprocessing.Event`.
///
/// # Examples
/// ```
/// use bunshin::{Event, Process};
///
/// let go = Event::new()?;
/// let child = Process::start(|go: Event| go.wait(), (go.clone(),))?;
/// go.set();
/// assert!(child.join()?.success());
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone)]
pub struct Event {
    shared: SharedEvent,
}

travels!(Event, shared, SharedEvent, "an event");

impl Event {
    /// Makes an event that is not set.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// assert!(!bunshin::Event::new()?.is_set());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new() -> Result<Self> {
        Ok(Self {
            shared: SharedEvent::create()?,
        })
    }

    /// Sets it: all who wait go on, and nobody waits any more until it is cleared.
    ///
    /// What this thread wrote to shared memory before is seen by whoever sees the event set.
    ///
    /// # Examples
    /// ```
    /// let event = bunshin::Event::new()?;
    /// event.set();
    /// assert!(event.is_set());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn set(&self) {
        self.shared.set();
    }

    /// Clears it: who waits from now on waits for the next [`set`](Self::set).
    ///
    /// # Examples
    /// ```
    /// let event = bunshin::Event::new()?;
    /// event.set();
    /// event.clear();
    /// assert!(!event.is_set());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn clear(&self) {
        self.shared.clear();
    }

    /// Whether it is set; the form of [`wait`](Self::wait) that does not wait.
    ///
    /// # Examples
    /// ```
    /// assert!(!bunshin::Event::new()?.is_set());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "try_wait")]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.shared.is_set()
    }

    /// Waits until it is set.
    ///
    /// Who waits when it is set goes on, even if it is cleared at once.
    ///
    /// # Examples
    /// ```
    /// let event = bunshin::Event::new()?;
    /// event.set();
    /// event.wait();
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait(&self) {
        self.shared.wait(None);
    }

    /// As [`wait`](Self::wait), for so long at most. Says whether it was set.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let event = bunshin::Event::new()?;
    /// assert!(!event.wait_timeout(Duration::from_millis(1)));
    /// event.set();
    /// assert!(event.wait_timeout(Duration::from_millis(1)));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.shared.wait(Patience::within(timeout).deadline())
    }
}
