//! A queue of encoded items: what all queues share.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ahead::Ahead;
use super::outside::{Call, Ends};
use super::raw::ItemBytes;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::format::NO_VALUE;
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::queue::tasks::{Counted, Tasks, Who};
use crate::shm::queue::{self as memory, Refusal};
use crate::shm::side::{Limit, Shut, Until};
use crate::sys::awake::Awake;
use crate::sys::{process, socket, thread};
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// Buffers from this size on go beside an item, with a handle.
const BESIDE_FROM: usize = 1 << 20;
/// Encoded items up to this size leave their memory for the next one.
const SPARE_MAX: usize = 1280 << 10;
/// Ticks that a process spins at most before it sleeps; about as long as a wake-up takes.
const SPIN_MAX: u64 = 120_000;
/// Ticks that a process spins at least, where spinning has never helped.
const SPIN_MIN: u64 = 4_000;
/// How often who joins a queue looks at whether those with unfinished items still live.
const LOOK_EVERY: Duration = Duration::from_millis(100);

thread_local! {
    /// The last item's bytes, for the next one.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn spare() -> Vec<u8> {
    let mut bytes = SPARE.take();
    bytes.clear();
    bytes
}

pub(super) fn keep_spare(bytes: Vec<u8>) {
    if bytes.capacity() <= SPARE_MAX {
        SPARE.set(bytes);
    }
}

fn done_too_often() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "task_done was called more often than this process has taken items",
    )
}

/// What an item was.
pub(super) enum Taken<T> {
    Bytes(ItemBytes),
    Value(T),
}

/// A queue as one process has it.
#[derive(Debug)]
pub(crate) struct Untyped {
    memory: memory::Queue,
    ends: Ends,
    /// Who has taken what, for a queue that can be joined.
    tasks: Option<Tasks>,
    /// This process's line in there, plus one; bits 32.. say by forks which process that is.
    line: AtomicU64,
    /// How many lost items were already told of.
    told: AtomicU64,
    /// Ticks that spinning is given.
    spin: AtomicU64,
    /// Whether giving way pays.
    awake: Awake,
    /// Whether letting the producers get ahead does.
    ahead: Ahead,
}

/// A queue on its trip; the numbers are indices of handles.
#[derive(Serialize, Deserialize)]
pub(super) struct Form {
    tag: u32,
    is_joinable: bool,
    handles: [u32; 4],
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Producer,
    Consumer,
}

impl Untyped {
    pub(super) fn create(capacity: u64, is_joinable: bool) -> Result<Self> {
        let memory = memory::Queue::create(capacity)?;
        Ok(Self::new(memory, Ends::new()?, is_joinable))
    }

    fn new(memory: memory::Queue, ends: Ends, is_joinable: bool) -> Self {
        thread::watch_forks();
        let tasks = is_joinable.then(|| Tasks::new(memory.segment().clone()));
        Self {
            memory,
            ends,
            tasks,
            line: AtomicU64::new(0),
            told: AtomicU64::new(0),
            spin: AtomicU64::new(SPIN_MAX / 2),
            awake: Awake::new(),
            ahead: Ahead::default(),
        }
    }

    pub(super) fn depart(&self, tag: u32) -> Result<Form> {
        let attach = |fd: BorrowedFd<'_>| {
            let copy = socket::duplicate(fd);
            Outgoing::attach(copy.map_err(|error| Error::os("send a queue", error))?)
        };
        Ok(Form {
            tag,
            is_joinable: self.tasks.is_some(),
            handles: [
                attach(self.memory.segment().as_fd())?,
                attach(self.ends.inlet.as_fd())?,
                attach(self.ends.outlet.as_fd())?,
                attach(self.ends.bell.as_fd())?,
            ],
        })
    }

    pub(super) fn arrive(form: &Form, tag: u32, name: &str) -> Result<Self> {
        if form.tag != tag {
            return Err(Error::new(
                ErrorKind::TypeMismatch,
                format!("a queue of another type arrived as {name}"),
            ));
        }
        let [memory, inlet, outlet, bell] = form.handles.map(Incoming::detach);
        let memory = memory::Queue::attach(memory?)?;
        let ends = Ends {
            inlet: inlet?,
            outlet: outlet?,
            bell: bell?,
        };
        Ok(Self::new(memory, ends, form.is_joinable))
    }

    // -- looking

    pub(super) fn len(&self) -> usize {
        usize::try_from(self.memory.len()).unwrap_or(usize::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    pub(super) fn capacity(&self) -> Option<usize> {
        match self.memory.capacity() {
            0 => None,
            capacity => Some(usize::try_from(capacity).unwrap_or(usize::MAX)),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        !self.memory.is_closed() && !self.memory.has_room()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.memory.is_closed()
    }

    pub(super) fn close(&self) -> Result<()> {
        self.memory
            .close(&self.call())
            .map_err(|refusal| told(refusal, "close a queue"))
    }

    fn call(&self) -> Call<'_> {
        Call::new(&self.ends, Vec::new())
    }

    // -- items

    /// Whether it is worth while to try to send.
    #[inline]
    fn admit(&self, patience: Patience) -> Result<(), Failure> {
        if self.memory.is_closed() {
            return Err(Failure::Disconnected);
        }
        if patience == Patience::Never && !self.memory.has_room() {
            return Err(Failure::NotYet);
        }
        Ok(())
    }

    /// Sends an item that is no value: bytes that lie in two places.
    pub(super) fn send_bytes(
        &self,
        [first, second]: [&[u8]; 2],
        patience: Patience,
    ) -> Result<(), Failure> {
        self.admit(patience)?;
        let parts: [&[u8]; 3] = [&[NO_VALUE], first, second];
        self.push(&parts, &mut Outgoing::default(), patience)
    }

    pub(super) fn send<T: Serialize>(&self, value: &T, patience: Patience) -> Result<(), Failure> {
        self.admit(patience)?;
        let mut bytes = spare();
        // Handles need a place in a socket, which holds few; memory inside the queue does not.
        let beside_from = if self.memory.is_crowded() {
            usize::MAX
        } else {
            BESIDE_FROM
        };
        let mut outgoing = Outgoing::for_anyone(beside_from);
        let sent = match encode(value, &mut bytes, &mut outgoing) {
            Ok(()) => self.push(&[&bytes], &mut outgoing, patience),
            Err(error) => Err(Failure::Other(error)),
        };
        keep_spare(bytes);
        sent
    }

    fn push(
        &self,
        parts: &[&[u8]],
        outgoing: &mut Outgoing,
        patience: Patience,
    ) -> Result<(), Failure> {
        let handles = std::mem::take(&mut outgoing.handles);
        let count = handles.len();
        if count > socket::HANDLES_AT_ONCE {
            return Err(Failure::Other(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a queue's item holds {count} handles; {} fit",
                    socket::HANDLES_AT_ONCE
                ),
            )));
        }
        if !self.memory.has_room() {
            self.linger(Side::Producer, patience);
        }
        let call = Call::new(&self.ends, handles);
        Ok(self.memory.push(parts, count, limit(patience), &call)?)
    }

    pub(super) fn recv<T: DeserializeOwned>(&self, patience: Patience) -> Result<T, Failure> {
        let (bytes, handles) = self.pop(patience)?;
        let value = decode(&bytes, &mut Incoming::new(handles, Vec::new()));
        keep_spare(bytes);
        value.map_err(Failure::Other)
    }

    /// Takes an item, which may be one of [`send_bytes`](Self::send_bytes).
    pub(super) fn recv_either<T: DeserializeOwned>(
        &self,
        patience: Patience,
    ) -> Result<Taken<T>, Failure> {
        let (bytes, handles) = self.pop(patience)?;
        if bytes.first() == Some(&NO_VALUE) {
            return Ok(Taken::Bytes(ItemBytes::new(bytes, 1)));
        }
        let value = decode(&bytes, &mut Incoming::new(handles, Vec::new()));
        keep_spare(bytes);
        value.map(Taken::Value).map_err(Failure::Other)
    }

    /// Takes an item: its bytes, and its handles.
    fn pop(&self, patience: Patience) -> Result<(Vec<u8>, Vec<OwnedFd>), Failure> {
        if !self.memory.has_item() {
            self.linger(Side::Consumer, patience);
            if patience == Patience::Never && !self.memory.has_item() {
                // The bell may have announced one that is just coming.
                self.unring();
                if !self.memory.has_item() {
                    return Err(Failure::NotYet);
                }
            }
        }
        let mut bytes = spare();
        let call = self.call();
        let popped = match &self.tasks {
            None => self.memory.pop(&mut bytes, limit(patience), &call, &()),
            Some(tasks) => {
                let counted = Counted {
                    tasks,
                    line: &|| self.line(tasks),
                };
                let limit = limit(patience);
                self.memory.pop(&mut bytes, limit, &call, &counted)
            }
        };
        match popped {
            Ok(_) => Ok((bytes, call.into_handles())),
            Err(refusal) => {
                keep_spare(bytes);
                Err(refusal.into())
            }
        }
    }

    /// Spins, or gives way, for as long as that is likely to be quicker than sleeping.
    #[cold]
    fn linger(&self, side: Side, patience: Patience) {
        if patience == Patience::Never {
            return;
        }
        let is_done = || match side {
            Side::Producer => self.memory.has_room(),
            Side::Consumer => self.memory.has_item(),
        };
        let there = match (side, self.memory.cpus()) {
            (Side::Producer, (_, consumer)) => consumer,
            (Side::Consumer, (producer, _)) => producer,
        };
        let Some(there) = there else {
            // The other side has never run: it is still to be started.
            return;
        };
        if there != thread::cpu() {
            let spin = self.spin.load(Ordering::Relaxed);
            let start = thread::ticks();
            while thread::ticks().wrapping_sub(start) < spin {
                for _ in 0..16 {
                    if is_done() {
                        let more = (spin * 2).min(SPIN_MAX);
                        self.spin.store(more, Ordering::Relaxed);
                        if side == Side::Consumer {
                            self.ahead.wait(|| self.memory.len());
                        }
                        return;
                    }
                    std::hint::spin_loop();
                }
            }
            self.spin.store((spin / 2).max(SPIN_MIN), Ordering::Relaxed);
        }
        // They then go on for a while, and do not have to wake this one after their first item.
        self.awake.until(|| is_done() || patience.is_over());
    }

    /// Waits until there is room, or the queue is closed, and takes none; false if the time was
    /// up before.
    #[cfg(feature = "tokio")]
    pub(crate) fn wait_for_room(&self, patience: Patience) -> Result<bool> {
        self.memory
            .wait_for_room(limit(patience))
            .map_err(|refusal| told(refusal, "wait for room in a queue"))
    }

    // -- watching

    /// From now on the bell is readable while there is an item, or the queue is closed.
    pub(super) fn watch(&self) -> Result<BorrowedFd<'_>> {
        self.memory
            .watch(&self.call())
            .map_err(|refusal| told(refusal, "make a queue's handle to watch it by"))?;
        Ok(self.ends.bell.as_fd())
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.ends.bell.as_fd()
    }

    pub(super) fn has_item(&self) -> bool {
        self.memory.has_item()
    }

    /// To be called when nothing was there: a bell that said otherwise is silenced.
    pub(super) fn unring(&self) {
        match &self.tasks {
            None => self.memory.unring(&self.call(), &()),
            Some(tasks) => {
                let counted = Counted {
                    tasks,
                    line: &|| self.line(tasks),
                };
                self.memory.unring(&self.call(), &counted);
            }
        }
    }

    // -- unfinished items

    /// This process's line in the table, for who is inside as a consumer.
    fn line(&self, tasks: &Tasks) -> Result<usize> {
        if let Some(line) = self.known_line() {
            return Ok(line);
        }
        let line = tasks.line(own()?, |who| process::began(who.pid) == Some(who.began))?;
        let known = u64::from(thread::generation()) << 32 | (line as u64 + 1);
        self.line.store(known, Ordering::Relaxed);
        Ok(line)
    }

    fn known_line(&self) -> Option<usize> {
        let known = self.line.load(Ordering::Relaxed);
        // A forked child has taken nothing yet, whatever its parent has.
        let is_ours = (known >> 32) as u32 == thread::generation();
        (is_ours && known != 0).then(|| (known as u32 - 1) as usize)
    }

    pub(super) fn task_done(&self) -> Result<()> {
        let line = self.known_line();
        let is_counted = match (&self.tasks, line) {
            (Some(tasks), Some(line)) => tasks.finish(line, || self.is_over(tasks)),
            _ => false,
        };
        if is_counted {
            return Ok(());
        }
        Err(done_too_often())
    }

    /// As [`task_done`](Self::task_done), also for an item that another process has taken, or
    /// that nobody has taken yet.
    pub(super) fn task_done_for_anyone(&self) -> Result<()> {
        let too_often = |tasks: &Tasks| tasks.ahead() > 0 && self.unfinished() == 0;
        if self.tasks.as_ref().is_some_and(too_often) {
            return Err(done_too_often());
        }
        let own = self.task_done();
        if own.is_ok() {
            return own;
        }
        let Some(tasks) = &self.tasks else {
            return own;
        };
        let is_over = || self.is_over(tasks);
        let mut holders = tasks.holders().into_iter();
        if holders.any(|(line, _)| tasks.finish(line, is_over)) {
            return Ok(());
        }
        if tasks.finish_ahead(|| self.open(tasks), is_over) {
            return Ok(());
        }
        own
    }

    pub(super) fn unfinished(&self) -> u64 {
        let Some(tasks) = &self.tasks else {
            return self.memory.len();
        };
        // In this order: what was finished ahead was there.
        let ahead = tasks.ahead();
        self.open(tasks).saturating_sub(ahead)
    }

    /// Items that are in the queue, or were taken and not finished.
    fn open(&self, tasks: &Tasks) -> u64 {
        loop {
            // An item is in the table before it leaves the queue: in this order it is not missed.
            let sent = self.memory.sent();
            let open = self.memory.len() + tasks.unfinished();
            if self.memory.sent() == sent {
                return open;
            }
        }
    }

    fn is_over(&self, tasks: &Tasks) -> bool {
        // One look: whoever changes anything looks after it. (One who takes an item does not, by which
        // items finished ahead look unfinished for a moment: who joins looks again soon.)
        let sent = self.memory.sent();
        let ahead = tasks.ahead();
        let is_finished = match ahead {
            0 => self.memory.is_empty() && tasks.unfinished() == 0,
            _ => self.memory.len() + tasks.unfinished() <= ahead,
        };
        is_finished && self.memory.sent() == sent
    }

    /// Waits until every item that was sent is finished. Says how many were lost with processes
    /// that ended, since this was told last.
    pub(super) fn join(&self, patience: Patience) -> Result<u64, Failure> {
        let Some(tasks) = &self.tasks else {
            return Ok(0);
        };
        loop {
            let next = Instant::now() + LOOK_EVERY;
            let until = match patience {
                Patience::Never => Until::Now,
                Patience::Until(deadline) => Until::Then(deadline.min(next)),
                Patience::Forever => Until::Then(next),
            };
            let limit = Limit {
                ready: until,
                held: until,
            };
            match tasks.wait(limit, || self.is_over(tasks)) {
                Ok(()) => {
                    let lost = tasks.lost();
                    return Ok(lost - self.told.swap(lost, Ordering::Relaxed).min(lost));
                }
                Err(Shut::Never(refused)) => {
                    return Err(Failure::Other(Error::new(
                        ErrorKind::Unsupported,
                        format!("join a queue: {refused:?}"),
                    )));
                }
                Err(Shut::NotReady | Shut::Held) => {
                    self.bury_the_dead(tasks)?;
                    let is_enough = patience.is_over() || thread::is_interrupted();
                    if is_enough && !self.is_over(tasks) {
                        return Err(Failure::NotYet);
                    }
                }
            }
        }
    }

    fn bury_the_dead(&self, tasks: &Tasks) -> Result<(), Failure> {
        let is_dead = |who: &Who| process::began(who.pid) != Some(who.began);
        let dead: Vec<_> = tasks.holders();
        let dead: Vec<_> = dead.into_iter().filter(|(_, who)| is_dead(who)).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let counted = Counted {
            tasks,
            line: &|| self.line(tasks),
        };
        // What they were about to take and did not is put right on the way in.
        self.memory
            .as_consumer(&counted, || {
                for (line, who) in dead {
                    tasks.bury(line, who, || self.is_over(tasks));
                }
            })
            .map_err(Failure::from)
    }
}

/// This process.
fn own() -> Result<Who> {
    let pid = std::process::id();
    let began = process::began(pid).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "look up when this process began: is /proc mounted?",
        )
    })?;
    Ok(Who { pid, began })
}

fn limit(patience: Patience) -> Limit {
    match patience {
        Patience::Never => Limit {
            ready: Until::Now,
            held: Until::Soon,
        },
        Patience::Until(deadline) => Limit {
            ready: Until::Then(deadline),
            held: Until::Then(deadline),
        },
        Patience::Forever => Limit {
            ready: Until::Forever,
            held: Until::Forever,
        },
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotYet => Self::NotYet,
            Refusal::Closed => Self::Disconnected,
            Refusal::Failed(error) => Self::Other(error),
        }
    }
}

fn told(refusal: Refusal, what: &str) -> Error {
    match refusal {
        Refusal::Failed(error) => error,
        Refusal::NotYet => Error::new(ErrorKind::TimedOut, what),
        Refusal::Closed => Error::new(ErrorKind::Closed, what),
    }
}
