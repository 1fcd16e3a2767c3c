//! Choices for a pool of threads.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex};

use super::thread_pool::{Crew, ThreadPool};
use crate::error::{Error, ErrorKind, Result};
use crate::process::panic;
use crate::sys::thread;

/// What each thread does before its first task, or after its last one.
pub(super) type Hook = Box<dyn Fn() + Send + Sync>;

/// Makes a [`ThreadPool`].
///
/// # Examples
/// ```
/// use std::cell::RefCell;
///
/// use bunshin::ThreadPool;
///
/// thread_local! {
///     static WORDS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
/// }
///
/// let pool = ThreadPool::builder()
///     .threads(2)
///     .initializer(|| WORDS.set(vec!["zero", "one", "two"]))
///     .build()?;
/// let words = pool.map(|n: usize| WORDS.with_borrow(|words| words[n]), [2, 0])?;
/// assert_eq!(words, ["two", "zero"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
#[must_use = "a builder makes a pool when it is built"]
pub struct ThreadPoolBuilder {
    threads: Option<usize>,
    name: Option<String>,
    initializer: Option<Hook>,
    exit: Option<Hook>,
}

impl ThreadPoolBuilder {
    /// How many threads. By default as many as there are processors that this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// What the threads are called, followed by `-1` and so on. By default `bunshin-task`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A function that each thread runs before its first task.
    ///
    /// If it panics, the pool is broken: all tasks fail with an error of kind `Initializer` that
    /// says why.
    pub fn initializer(mut self, function: impl Fn() + Send + Sync + 'static) -> Self {
        self.initializer = Some(Box::new(function));
        self
    }

    /// A function that each thread runs last: when the pool is closed and its work is done, and
    /// when the pool is terminated or dropped. A panic in it is nobody's.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    ///
    /// let left = Arc::new(AtomicUsize::new(0));
    /// let count = Arc::clone(&left);
    /// let builder = bunshin::ThreadPool::builder().threads(3);
    /// drop(builder.on_exit(move || _ = count.fetch_add(1, Ordering::SeqCst)).build()?);
    /// assert_eq!(left.load(Ordering::SeqCst), 3);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn on_exit(mut self, function: impl Fn() + Send + Sync + 'static) -> Self {
        self.exit = Some(Box::new(function));
        self
    }

    /// Makes the pool. The initializers may not have run yet.
    ///
    /// # Errors
    /// As [`ThreadPool::new`]; `InvalidInput` also for a name with a NUL byte.
    pub fn build(self) -> Result<ThreadPool> {
        let threads = self.threads.unwrap_or_else(thread::cpus);
        let name = self.name.unwrap_or_else(|| "bunshin-task".to_owned());
        let invalid = |why: &str| Err(Error::new(ErrorKind::InvalidInput, why));
        if threads == 0 {
            return invalid("a pool of 0 threads: there is at least 1");
        }
        if name.contains('\0') {
            return invalid("the name of a pool's threads has a NUL byte");
        }
        // So that a panic is told with its place.
        panic::install_hook();
        let pool = ThreadPool {
            crew: Arc::new(Crew {
                state: Mutex::default(),
                work: Condvar::new(),
                done: Condvar::new(),
                generation: thread::generation(),
                initializer: self.initializer,
                exit: self.exit,
            }),
            threads: Mutex::default(),
            n_threads: threads,
        };
        for number in 1..=threads {
            let crew = Arc::clone(&pool.crew);
            // Those already started end when the pool is dropped.
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || crew.live())
                .map_err(|error| Error::os("start a thread of a pool", error))?;
            pool.lock_threads().push(thread);
        }
        Ok(pool)
    }
}

impl fmt::Debug for ThreadPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPoolBuilder")
            .field("threads", &self.threads)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
