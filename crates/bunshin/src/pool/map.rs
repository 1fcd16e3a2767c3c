//! Mapping a function over items, and waiting for all results.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::dispatcher::{Dispatcher, Written};
use super::drive::LowWater;
use super::message::Arrived;
use crate::codec::attachments::Outgoing;
use crate::codec::outcome::Failure;
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{TaskError, panic, target};
use crate::shm::table::SLOTS;
use crate::sys::thread;

/// Tasks that are written before they are put into the queue together.
const LOT: usize = 64;
/// Ticks after which a lot that is to be begun soon is put into the queue as it is.
const SOON: u64 = 100_000;

/// A batch of tasks under way.
pub(super) struct Run {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) batch: u64,
    pub(super) entry: u64,
    pub(super) chunk: usize,
    pub(super) limit: Option<Duration>,
    /// Whether all its outcomes have been taken.
    is_over: Cell<bool>,
}

/// Who keeps count of the tasks of a run.
pub(super) trait Ledger {
    /// The next item, in order, is a task now.
    fn begun(&mut self);
    /// A task that has been begun could not be handed out.
    fn failed(&mut self, position: usize, error: TaskError);
}

impl Run {
    pub(super) fn new(
        dispatcher: &Arc<Dispatcher>,
        entry: Result<u64>,
        chunk: usize,
        limit: Option<Duration>,
    ) -> Result<Self, TaskError> {
        let entry = entry.map_err(TaskError::Pool)?;
        Ok(Self {
            dispatcher: Arc::clone(dispatcher),
            batch: dispatcher.open_batch()?,
            entry,
            chunk,
            limit,
            is_over: Cell::new(false),
        })
    }

    /// Puts up to `most` items into the table while it has room. True if it stopped early,
    /// since the items come slowly: only with `soon`.
    pub(super) fn fill<T: Serialize>(
        &self,
        items: &mut impl Iterator<Item = (usize, T)>,
        mut most: usize,
        soon: bool,
        ledger: &mut impl Ledger,
    ) -> bool {
        let mut bytes = Vec::new();
        let mut lot = Lot {
            run: self,
            slots: Vec::new(),
            written: Vec::new(),
        };
        loop {
            self.dispatcher.take_slots(LOT.min(most), &mut lot.slots);
            if lot.slots.is_empty() {
                return false;
            }
            let since = if soon { thread::ticks() } else { 0 };
            let mut is_slow = false;
            while !lot.slots.is_empty() {
                let Some((position, item)) = items.next() else {
                    break;
                };
                let Some(slot) = lot.slots.pop() else { break };
                ledger.begun();
                most -= 1;
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
                        is_slow = soon && thread::ticks().wrapping_sub(since) > SOON;
                        if is_large || is_slow {
                            // Workers begin at once, and how much is out is looked at again.
                            break;
                        }
                    }
                    Err(error) => {
                        ledger.failed(position, TaskError::Arguments(error));
                        lot.slots.push(slot);
                    }
                }
            }
            let any = lot.submit();
            if !any || is_slow {
                return is_slow;
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
        encode_task(item, bytes, outgoing)?;
        self.dispatcher
            .write(slot, self.entry, self.chunk, bytes, outgoing)
    }
}

/// Encodes the arguments of a task, and lets go of them.
pub(super) fn encode_task<T: Serialize>(
    arguments: T,
    bytes: &mut Vec<u8>,
    outgoing: &mut Outgoing,
) -> Result<()> {
    // Their own code may panic: that is this task's error, not the pool's end.
    panic::catch(false, || encode(&arguments, bytes, outgoing))
        .unwrap_or_else(|failure| Err(Error::new(ErrorKind::Encode, target::said(failure))))
        .inspect_err(|_| outgoing.discard())?;
    // What went beside them must have no other holder, or workers could not write to it.
    drop(arguments);
    Ok(())
}

/// Tasks that are being written, and slots for more.
struct Lot<'a> {
    run: &'a Run,
    slots: Vec<u32>,
    written: Vec<Written>,
}

impl Lot<'_> {
    /// Puts what was written into the queue, and gives the other slots back. False if
    /// nothing was written.
    fn submit(&mut self) -> bool {
        let Run {
            dispatcher,
            batch,
            limit,
            ..
        } = self.run;
        for slot in self.slots.drain(..) {
            dispatcher.give_back(slot);
        }
        let any = !self.written.is_empty();
        if any {
            dispatcher.submit(*batch, *limit, &mut self.written);
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

impl Drop for Run {
    fn drop(&mut self) {
        if self.is_over.get() {
            self.dispatcher.close_batch(self.batch);
        } else {
            // The caller's iterator or progress report has panicked, or an imap's consumer
            // does not want the rest.
            self.dispatcher.drop_batch(self.batch);
        }
    }
}

/// The results so far, in input order.
struct Results<R> {
    results: Vec<Option<Result<R, TaskError>>>,
    done: usize,
    /// Items without a result yet.
    out: usize,
}

impl<R> Ledger for Results<R> {
    fn begun(&mut self) {
        self.results.push(None);
        self.out += 1;
    }

    fn failed(&mut self, position: usize, error: TaskError) {
        self.set(position, Err(error));
    }
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

/// Runs a task for each item, and gives each one's result or error in order.
///
/// `hire` starts workers, where the pool cannot; it is asked whenever one may be missing.
pub(super) fn map_all<T, R>(
    run: Result<Run, TaskError>,
    items: impl Iterator<Item = T>,
    mut progress: Option<&mut dyn FnMut(usize, usize)>,
    hire: &mut dyn FnMut(),
) -> Vec<Result<R, TaskError>>
where
    T: Serialize,
    R: DeserializeOwned,
{
    let run = match run {
        Ok(run) => run,
        Err(error) => return refuse_all(items, error),
    };
    let dispatcher = &run.dispatcher;
    let expected = items.size_hint().0;
    let mut results = Results {
        results: Vec::with_capacity(expected.min(1 << 20)),
        done: 0,
        out: 0,
    };
    let mut outcomes = Vec::new();
    let mut items = items.fuse().enumerate().peekable();
    loop {
        hire();
        run.fill(&mut items, usize::MAX, false, &mut results);
        outcomes.clear();
        if results.out > 0 {
            dispatcher.take(run.batch, &mut outcomes);
            if outcomes.is_empty() {
                let low_water = if items.peek().is_some() { SLOTS / 2 } else { 0 };
                let low_water = LowWater::At(low_water);
                if let Err(error) = dispatcher.wait(run.batch, low_water, None, &mut outcomes) {
                    results.give_up(&error);
                }
            }
        }
        let had_any = !outcomes.is_empty();
        for (position, outcome) in outcomes.drain(..) {
            results.set(position, outcome.and_then(read));
        }
        if let Some(report) = &mut progress {
            report(results.done, results.results.len().max(expected));
        }
        if results.out == 0 {
            if items.peek().is_none() {
                run.is_over.set(true);
                return results.finish();
            }
            if !had_any {
                // Others have all the room.
                if let Err(error) = dispatcher.wait_for_room() {
                    let rest = refuse_all(items, TaskError::Pool(error));
                    return results.finish().into_iter().chain(rest).collect();
                }
            }
        }
    }
}

/// Makes a value, or the task's error, of what a worker has left.
pub(super) fn read<R: DeserializeOwned>(arrived: Arrived) -> Result<R, TaskError> {
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

/// The same error once more.
pub(super) fn again(error: &TaskError) -> TaskError {
    match error {
        TaskError::Pool(error) => TaskError::Pool(Error::new(error.kind(), error.to_string())),
        other => TaskError::Pool(Error::new(ErrorKind::Closed, other.to_string())),
    }
}

/// The same error for each item.
fn refuse_all<T, R>(items: impl Iterator<Item = T>, error: TaskError) -> Vec<Result<R, TaskError>> {
    items.map(|_| Err(again(&error))).collect()
}
