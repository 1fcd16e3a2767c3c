//! How tasks are to be done, and all ways to have them done.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Pool;
use super::dispatcher::Dispatcher;
use super::handle::{MapHandle, TaskHandle};
use super::imap::Imap;
use super::map::{Run, again, encode_task, map_all, read};
use super::outcomes::{Outcome, Outcomes, Payload, Source};
use super::post::Order;
use crate::error::Result;
use crate::process::{Target, TaskError, target};

/// How tasks are to be done. [`Pool`]'s own methods are those of a batch without choices.
///
/// # Examples
/// ```
/// use bunshin::Pool;
///
/// let pool = Pool::new(2)?;
/// let mut seen = 0;
/// let squares = pool.batch().chunk_size(10).progress(|done, _total| seen = done).map(|n: u64| n * n, 0..100)?;
/// assert_eq!(squares[99], 9801);
/// assert_eq!(seen, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a batch does nothing until it is given tasks"]
pub struct Batch<'a> {
    pool: &'a Pool,
    chunk_size: usize,
    limit: Option<Duration>,
    window: Option<usize>,
    progress: Option<Box<dyn FnMut(usize, usize) + 'a>>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(pool: &'a Pool) -> Self {
        Self {
            pool,
            chunk_size: 1,
            limit: None,
            window: None,
            progress: None,
        }
    }

    /// How many items a worker takes at a time. By default one: each item goes to the next
    /// worker that is free, so that uneven ones do not wait for each other.
    ///
    /// Whatever the number, each item is tracked by itself: if a worker dies, the one it had
    /// begun is lost, and those it had not begun are run by others. 0 is as 1.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let batch = pool.batch().chunk_size(50);
    /// assert_eq!(batch.map(|n: u32| n + 1, 0..1000)?.len(), 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "chunksize")]
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = items.max(1);
        self
    }

    /// How long each task may run, from when its worker begins it. By default for ever.
    ///
    /// One that takes longer fails with [`TaskError::TimedOut`]: its worker, and all processes
    /// below that, are asked to end (SIGTERM), and killed half a second later; another worker
    /// takes its place. The limit is kept to about a tenth of itself, from a millisecond to 50.
    ///
    /// # Examples
    /// ```
    /// use bunshin::Pool;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::new(2)?;
    /// let limited = pool.batch().timeout(Duration::from_millis(50));
    /// let error = limited.apply(|| loop {}, ()).map(|(): ()| ()).unwrap_err();
    /// assert!(error.is_timeout());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// How many items an [`imap`](Self::imap) takes ahead of its consumer at most. By default
    /// 512, and at first only a few for each worker; a number that is given counts from the first
    /// item on, up to 512. 0 is as 1.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let mut taken = 0;
    /// let items = std::iter::repeat_with(|| { taken += 1; taken });
    /// let mut results = pool.batch().window(3).imap(|n: u32| n, items);
    /// assert_eq!(results.next().transpose()?, Some(1));
    /// drop(results);
    /// assert!(taken <= 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items.max(1));
        self
    }

    /// Calls `report` with how many items are done, and how many there are as far as is known,
    /// whenever some were. Only maps that are waited for report.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let mut reports = Vec::new();
    /// let batch = pool.batch().progress(|done, total| reports.push((done, total)));
    /// batch.map(|n: u32| n, 0..10)?;
    /// assert_eq!(reports.last(), Some(&(10, 10)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn progress(mut self, report: impl FnMut(usize, usize) + 'a) -> Self {
        self.progress = Some(Box::new(report));
        self
    }

    fn run(&self, entry: Result<u64>) -> Result<Run, TaskError> {
        Run::new(&self.pool.dispatcher, entry, self.chunk_size, self.limit)
    }

    /// [`apply`](Self::apply) of the function at a place.
    pub(super) fn apply_entry<Args, R>(
        self,
        entry: Result<u64>,
        arguments: Args,
    ) -> Result<R, TaskError>
    where
        Args: Serialize,
        R: DeserializeOwned,
    {
        let mut results = self.map_entry(entry, iter::once(arguments));
        match results.pop().unwrap_or(Err(TaskError::Cancelled)) {
            Err(TaskError::Lost(mut lost)) => {
                // It has no position: it was the only one.
                lost.task = None;
                Err(TaskError::Lost(lost))
            }
            result => result,
        }
    }

    /// [`starmap_each`](Self::starmap_each) of the function at a place.
    pub(super) fn map_entry<Args, R>(
        mut self,
        entry: Result<u64>,
        items: impl Iterator<Item = Args>,
    ) -> Vec<Result<R, TaskError>>
    where
        Args: Serialize,
        R: DeserializeOwned,
    {
        let run = self.run(entry);
        let progress = self.progress.as_mut().map(|report| report as _);
        map_all(run, items, progress, &mut || ())
    }

    /// [`apply_async`](Self::apply_async) of the function at a place.
    pub(super) fn apply_entry_async<Args, R>(
        self,
        entry: Result<u64>,
        arguments: Args,
    ) -> TaskHandle<R>
    where
        Args: Serialize,
        R: DeserializeOwned,
    {
        let outcomes = Outcomes::one();
        let posted = self
            .order(entry, &outcomes)
            .and_then(|order| self.post(&order, arguments));
        let hint = posted.unwrap_or_else(|error| {
            // Nobody has the handle yet, so that nobody is to be told.
            let _ = outcomes.deliver(0, Err(error));
            // There is no post to look for.
            usize::MAX
        });
        TaskHandle::new(outcomes, self.source(), Some(hint), read_payload)
    }

    /// [`starmap_async`](Self::starmap_async) of the function at a place.
    pub(super) fn map_entry_async<Args, R>(
        self,
        entry: Result<u64>,
        items: impl Iterator<Item = Args>,
    ) -> MapHandle<R>
    where
        Args: Serialize,
        R: DeserializeOwned,
    {
        let outcomes = Outcomes::many();
        let order = self.order(entry, &outcomes);
        for item in items {
            let position = outcomes.add();
            let posted = match &order {
                Ok(order) => self.post(&Order { position, ..*order }, item),
                Err(error) => Err(again(error)),
            };
            if let Err(error) = posted {
                let _ = outcomes.deliver(position, Err(error));
            }
        }
        outcomes.seal();
        MapHandle::new(outcomes, self.source(), read_payload)
    }

    /// [`imap`](Self::imap) of the function at a place.
    pub(super) fn imap_entry<I, R>(
        self,
        entry: Result<u64>,
        items: I,
        is_ordered: bool,
    ) -> Imap<I, R>
    where
        I: Iterator<Item: Serialize>,
        R: DeserializeOwned,
    {
        Imap::new(self.run(entry), items, is_ordered, self.window)
    }

    /// See [`Pool::apply`].
    ///
    /// # Errors
    /// As there.
    pub fn apply<F, Args>(self, function: F, arguments: Args) -> Result<F::Output, TaskError>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        self.apply_entry(target::locate(function), arguments)
    }

    /// See [`Pool::map`].
    ///
    /// # Errors
    /// As there.
    pub fn map<F, T, I>(self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.map_each(function, items).into_iter().collect()
    }

    /// See [`Pool::map_each`].
    pub fn map_each<F, T, I>(self, function: F, items: I) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.starmap_each(function, alone(items))
    }

    /// See [`Pool::starmap`].
    ///
    /// # Errors
    /// As there.
    pub fn starmap<F, Args, I>(self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.starmap_each(function, items).into_iter().collect()
    }

    /// See [`Pool::starmap_each`].
    pub fn starmap_each<F, Args, I>(
        self,
        function: F,
        items: I,
    ) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.map_entry(target::locate(function), items.into_iter())
    }

    /// See [`Pool::apply_async`].
    pub fn apply_async<F, Args>(self, function: F, arguments: Args) -> TaskHandle<F::Output>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        self.apply_entry_async(target::locate(function), arguments)
    }

    /// See [`Pool::map_async`].
    pub fn map_async<F, T, I>(self, function: F, items: I) -> MapHandle<F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.starmap_async(function, alone(items))
    }

    /// See [`Pool::starmap_async`].
    pub fn starmap_async<F, Args, I>(self, function: F, items: I) -> MapHandle<F::Output>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.map_entry_async(target::locate(function), items.into_iter())
    }

    /// See [`Pool::imap`].
    pub fn imap<F, T, I>(
        self,
        function: F,
        items: I,
    ) -> Imap<impl Iterator<Item = (T,)> + use<F, T, I>, F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.imap_entry(target::locate(function), alone(items), true)
    }

    /// See [`Pool::imap_unordered`].
    pub fn imap_unordered<F, T, I>(
        self,
        function: F,
        items: I,
    ) -> Imap<impl Iterator<Item = (T,)> + use<F, T, I>, F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.imap_entry(target::locate(function), alone(items), false)
    }

    fn order<'b>(
        &self,
        entry: Result<u64>,
        outcomes: &'b Arc<Outcomes>,
    ) -> Result<Order<'b>, TaskError> {
        let dispatcher = &self.pool.dispatcher;
        dispatcher.check_ours().map_err(TaskError::Pool)?;
        Ok(Order {
            outcomes,
            position: 0,
            entry: entry.map_err(TaskError::Pool)?,
            chunk: self.chunk_size,
            limit: self.limit,
        })
    }

    fn post<Args: Serialize>(
        &self,
        order: &Order<'_>,
        arguments: Args,
    ) -> Result<usize, TaskError> {
        let dispatcher = &self.pool.dispatcher;
        let (mut bytes, mut outgoing) = (Vec::new(), dispatcher.outgoing());
        encode_task(arguments, &mut bytes, &mut outgoing).map_err(TaskError::Arguments)?;
        dispatcher.post(order, bytes, outgoing)
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::<Dispatcher>::clone(&self.pool.dispatcher)
    }
}

/// Each item as a tuple of one argument.
pub(super) fn alone<T, I: IntoIterator<Item = T>>(
    items: I,
) -> impl Iterator<Item = (T,)> + use<T, I> {
    items.into_iter().map(|item| (item,))
}

/// Makes a value of what a task gave.
pub(super) fn read_payload<R: DeserializeOwned>(outcome: Outcome) -> Result<R, TaskError> {
    match outcome? {
        Payload::Arrived(arrived) => read(arrived),
        // Processes give no values.
        Payload::Value(_) => Err(TaskError::Cancelled),
    }
}
