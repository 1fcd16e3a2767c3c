//! Mapping a function over items.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Pool;
use super::dispatcher::{Dispatcher, Written};
use super::message::Arrived;
use crate::codec::attachments::Outgoing;
use crate::codec::outcome::Failure;
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{Target, TaskError, panic, target};
use crate::shm::table::SLOTS;

/// Tasks that are written before they are put into the queue together.
const LOT: usize = 64;

/// How a map is to be done.
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
#[must_use = "a batch does nothing until it maps"]
pub struct Batch<'a> {
    pool: &'a Pool,
    chunk_size: usize,
    progress: Option<Box<dyn FnMut(usize, usize) + 'a>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(pool: &'a Pool) -> Self {
        Self {
            pool,
            chunk_size: 1,
            progress: None,
        }
    }

    /// How many items a worker takes at a time. By default one: each item goes to the next
    /// worker that is free, so that uneven ones do not wait for each other.
    ///
    /// Whatever the number, each item is tracked by itself: if a worker dies, the one it had
    /// begun is lost, and those it had not begun are run by others. 0 is as 1.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = items.max(1);
        self
    }

    /// Calls `report` with how many items are done, and how many there are as far as is known,
    /// whenever some were.
    pub fn progress(mut self, report: impl FnMut(usize, usize) + 'a) -> Self {
        self.progress = Some(Box::new(report));
        self
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
    pub fn map_each<F, T, I>(mut self, function: F, items: I) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let items = items.into_iter();
        let dispatcher = &self.pool.dispatcher;
        let started = target::locate(function)
            .map_err(TaskError::Pool)
            .and_then(|entry| {
                Ok(Run {
                    dispatcher,
                    batch: dispatcher.open_batch()?,
                    entry,
                    chunk: self.chunk_size,
                })
            });
        let run = match started {
            Ok(run) => run,
            Err(error) => return refuse_all(items, error),
        };
        let expected = items.size_hint().0;
        let mut results = Results {
            results: Vec::with_capacity(expected.min(1 << 20)),
            done: 0,
            out: 0,
        };
        let mut outcomes = Vec::new();
        let mut items = items.fuse().enumerate().peekable();
        loop {
            run.fill(&mut items, &mut results);
            outcomes.clear();
            if results.out > 0 {
                dispatcher.take(run.batch, &mut outcomes);
                if outcomes.is_empty() {
                    let low_water = if items.peek().is_some() { SLOTS / 2 } else { 0 };
                    if let Err(error) = dispatcher.wait(run.batch, low_water, &mut outcomes) {
                        results.give_up(&error);
                    }
                }
            }
            let had_any = !outcomes.is_empty();
            for (position, outcome) in outcomes.drain(..) {
                results.set(position, outcome.and_then(read));
            }
            if let Some(report) = &mut self.progress {
                report(results.done, results.results.len().max(expected));
            }
            if results.out == 0 {
                if items.peek().is_none() {
                    return results.finish();
                }
                if !had_any {
                    // Other maps have all the room.
                    dispatcher.wait_for_room();
                }
            }
        }
    }
}

/// A map under way.
struct Run<'a> {
    dispatcher: &'a Dispatcher,
    batch: u64,
    entry: u64,
    chunk: usize,
}

impl Run<'_> {
    /// Puts items into the table while it has room.
    fn fill<T, R>(&self, items: &mut impl Iterator<Item = (usize, T)>, results: &mut Results<R>)
    where
        T: Serialize,
    {
        let mut bytes = Vec::new();
        let mut lot = Lot {
            run: self,
            slots: Vec::new(),
            written: Vec::new(),
        };
        loop {
            self.dispatcher.take_slots(LOT, &mut lot.slots);
            if lot.slots.is_empty() {
                return;
            }
            while !lot.slots.is_empty() {
                let Some((position, item)) = items.next() else {
                    break;
                };
                let Some(slot) = lot.slots.pop() else { break };
                results.results.push(None);
                results.out += 1;
                bytes.clear();
                let mut outgoing = self.dispatcher.outgoing();
                match self.write(slot, item, &mut bytes, &mut outgoing) {
                    Ok(()) => {
                        let is_large = !outgoing.blocks.is_empty() || !outgoing.handles.is_empty();
                        lot.written.push(Written {
                            slot,
                            position,
                            outgoing,
                        });
                        if is_large {
                            // Workers begin at once, and how much is out is looked at again.
                            break;
                        }
                    }
                    Err(error) => {
                        results.set(position, Err(TaskError::Arguments(error)));
                        lot.slots.push(slot);
                    }
                }
            }
            if !lot.submit() {
                return;
            }
        }
    }

    fn write<T: Serialize>(
        &self,
        slot: u32,
        item: T,
        bytes: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<()> {
        // The item's own code may panic: that is this item's error, not the map's end.
        panic::catch(false, || encode(&(&item,), bytes, outgoing))
            .unwrap_or_else(|failure| Err(Error::new(ErrorKind::Encode, target::said(failure))))
            .inspect_err(|_| outgoing.discard())?;
        // What went beside the item must have no other holder, or workers could not write to it.
        drop(item);
        self.dispatcher
            .write(slot, self.entry, self.chunk, bytes, outgoing)
    }
}

/// Tasks that are being written, and slots for more.
struct Lot<'a> {
    run: &'a Run<'a>,
    slots: Vec<u32>,
    written: Vec<Written>,
}

impl Lot<'_> {
    /// Puts what was written into the queue, and gives the other slots back. False if
    /// nothing was written.
    fn submit(&mut self) -> bool {
        for slot in self.slots.drain(..) {
            self.run.dispatcher.give_back(slot);
        }
        let any = !self.written.is_empty();
        if any {
            self.run
                .dispatcher
                .submit(self.run.batch, &mut self.written);
        }
        any
    }
}

impl Drop for Lot<'_> {
    fn drop(&mut self) {
        // Also if the caller's iterator panics.
        self.submit();
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Also if the caller's iterator or progress report panics.
        self.dispatcher.close_batch(self.batch);
    }
}

/// The results so far, in input order.
struct Results<R> {
    results: Vec<Option<Result<R, TaskError>>>,
    done: usize,
    /// Items without a result yet.
    out: usize,
}

impl<R> Results<R> {
    fn set(&mut self, position: usize, result: Result<R, TaskError>) {
        if let Some(slot @ None) = self.results.get_mut(position) {
            *slot = Some(result);
            self.done += 1;
            self.out -= 1;
        }
    }

    fn give_up(&mut self, error: &Error) {
        for position in 0..self.results.len() {
            if self.results[position].is_none() {
                let error = Error::new(error.kind(), error.to_string());
                self.set(position, Err(TaskError::Pool(error)));
            }
        }
    }

    fn finish(self) -> Vec<Result<R, TaskError>> {
        self.results
            .into_iter()
            .map(|result| result.unwrap_or(Err(TaskError::Cancelled)))
            .collect()
    }
}

/// Makes a value, or the task's error, of what a worker has left.
fn read<R: DeserializeOwned>(arrived: Arrived) -> Result<R, TaskError> {
    let Arrived {
        input,
        mut incoming,
        is_failure,
    } = arrived;
    if is_failure {
        return match decode::<Failure>(input.as_bytes(), &mut incoming) {
            Ok(failure) => Err(failure.into()),
            Err(error) => Err(TaskError::Result(error)),
        };
    }
    panic::catch(false, || decode(input.as_bytes(), &mut incoming))
        .unwrap_or_else(|failure| Err(Error::new(ErrorKind::Decode, target::said(failure))))
        .map_err(TaskError::Result)
}

/// The same error for each item.
fn refuse_all<T, R>(items: impl Iterator<Item = T>, error: TaskError) -> Vec<Result<R, TaskError>> {
    let said = match &error {
        TaskError::Pool(error) => (error.kind(), error.to_string()),
        other => (ErrorKind::Closed, other.to_string()),
    };
    let again = || TaskError::Pool(Error::new(said.0, said.1.clone()));
    items.map(|_| Err(again())).collect()
}
