//! A start method to make everything else with.

use crate::error::Result;
use crate::pool::{Pool, PoolBuilder};
use crate::process::{ProcessBuilder, StartMethod, start_method};
use crate::sys::cpus;

/// How many processes can run at the same time: the processors that this process may use,
/// at least one.
///
/// Counted are those of its affinity (`sched_setaffinity(2)`), and no more than the quota of
/// its control group, of version 1 or 2, is worth: a quota of two and a half counts as three.
///
/// # Source
/// CPython's `os.process_cpu_count`, and the quota; `multiprocessing.cpu_count` counts the
/// processors of the machine.
///
/// # Examples
/// ```
/// let workers = bunshin::cpu_count();
/// assert!(workers >= 1);
/// ```
#[must_use]
pub fn cpu_count() -> usize {
    cpus::count()
}

/// Makes processes and pools with one start method.
///
/// Pipes, shared values and locks do not depend on it: they go to any child.
///
/// # Source
/// CPython's `multiprocessing.get_context`.
///
/// # Examples
/// ```
/// use bunshin::{Context, StartMethod};
///
/// let context = Context::new(StartMethod::Spawn);
/// let child = context.process().start(|| 7, ())?;
/// assert_eq!(child.result()?, 7);
/// assert_eq!(context.pool(2)?.map(|n: i32| -n, 0..3)?, [0, -1, -2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "get_context")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    method: StartMethod,
}

impl Context {
    /// A context with that start method.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Context, StartMethod};
    ///
    /// let child = Context::new(StartMethod::Spawn).process().start(|| 7, ())?;
    /// assert_eq!(child.result()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(method: StartMethod) -> Self {
        Self { method }
    }

    /// Its start method.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Context, StartMethod, start_method};
    ///
    /// assert_eq!(Context::new(StartMethod::Fork).start_method(), StartMethod::Fork);
    /// assert_eq!(Context::default().start_method(), start_method());
    /// ```
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.method
    }

    /// See [`Process::builder`](crate::Process::builder).
    #[must_use]
    pub fn process(&self) -> ProcessBuilder {
        ProcessBuilder::default().start_method(self.method)
    }

    /// See [`Pool::new`].
    ///
    /// # Errors
    /// As there.
    pub fn pool(&self, workers: usize) -> Result<Pool> {
        self.pool_builder().workers(workers).build()
    }

    /// See [`Pool::builder`].
    pub fn pool_builder(&self) -> PoolBuilder {
        Pool::builder().start_method(self.method)
    }
}

impl Default for Context {
    /// A context with the default start method.
    fn default() -> Self {
        Self::new(start_method())
    }
}
