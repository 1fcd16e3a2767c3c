//! The worker's side: take a task, run it, leave the result, until there is nothing left.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::drive::{SPIN_MAX, WORTH};
use super::message::{self, BELL, FAILED, HANDLES, READY, WANT};
use super::supervisor::member;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::outcome::{Call, Failure, Input};
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{bootstrap, last_words, target};
use crate::shm::heap::Heap;
use crate::shm::table::{Claim, Parcel, Table};
use crate::sys::image::Entry;
use crate::sys::{awake, thread};

/// How often a worker waits for tasks on the parent's processor, though nobody else is awake,
/// before it leaves that for the first time.
const TURNS: u32 = 32;
/// Ticks from which on a task counts as long: its result is told at once.
const LONG: u64 = 250_000;

/// What a worker is started with. The handles of the message are the table's, the socket's, and
/// that of its last words, then those of the initializer's arguments.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStart {
    pub(crate) number: usize,
    pub(crate) member: u32,
    pub(crate) tasks: Option<usize>,
    pub(crate) initializer: Option<(u64, Vec<u8>)>,
    pub(crate) handles: usize,
    pub(crate) exit: Option<u64>,
}

/// What each worker of this program runs before it sleeps.
static IDLE: OnceLock<fn()> = OnceLock::new();

/// Has workers run a function before they sleep: at any time after that they may be ended.
pub(crate) fn on_idle(call: fn()) {
    let _ = IDLE.set(call);
}

/// The rest of a worker's life, once it is known whether it can begin; gives its exit code.
pub(crate) type Rest = Box<dyn FnOnce(std::result::Result<(), String>) -> i32 + Send>;

/// Runs the rest of each worker's life.
static AROUND: OnceLock<fn(Rest) -> i32> = OnceLock::new();

/// Has a function run the rest of a worker's life, from its initializer on to its end.
pub(crate) fn around(call: fn(Rest) -> i32) {
    let _ = AROUND.set(call);
}

/// What an external worker does instead of the functions that tasks name.
pub(crate) type Local<'a> = &'a dyn Fn(&mut Call);

/// The entry of worker processes.
pub(crate) fn run(call: &mut Call) {
    let code = match begin(call) {
        Ok((table, socket, start)) => {
            let rest = |begun| live(table, socket, start, begun);
            match AROUND.get() {
                Some(around) => around(Box::new(rest)),
                None => rest(Ok(())),
            }
        }
        Err(_) => 1,
    };
    // The result of the process is nobody's business, and its socket has no reader.
    bootstrap::leave(code, bootstrap::Exit::Now)
}

/// What a worker has to begin with, once its initializer has run.
fn begin(call: &mut Call) -> Result<(Table, OwnedFd, WorkerStart)> {
    let mut start: WorkerStart = decode(call.input.as_bytes(), &mut Incoming::default())?;
    let table = Table::attach(call.incoming.handle(0)?)?;
    let socket = call.incoming.handle(1)?;
    last_words::adopt(call.incoming.handle(2)?)?;
    if let Some((entry, arguments)) = start.initializer.take() {
        let handles = (0..start.handles)
            .map(|index| call.incoming.handle(index as u32 + 3))
            .collect::<Result<_>>()?;
        initialize(&socket, entry, arguments, handles)?;
    }
    Ok((table, socket, start))
}

/// Runs tasks until there are none left; gives the exit code.
fn live(
    table: Table,
    socket: OwnedFd,
    start: WorkerStart,
    begun: std::result::Result<(), String>,
) -> i32 {
    if let Err(why) = begun {
        let _ = message::send(socket.as_fd(), FAILED, 0, why.as_bytes(), &[], true);
        return 1;
    }
    let Ok(mut worker) = Worker::new(table, socket, start) else {
        return 1;
    };
    let code = worker.work(None);
    worker.run_last();
    code
}

/// An external worker's life: a child that its parent has forked runs `local` for each task.
/// Gives its exit code.
pub(crate) fn run_local(table: Table, socket: OwnedFd, number: usize, local: Local<'_>) -> i32 {
    let start = WorkerStart {
        number,
        member: member(number),
        tasks: None,
        initializer: None,
        handles: 0,
        exit: None,
    };
    match Worker::new(table, socket, start) {
        Ok(mut worker) => worker.work(Some(local)),
        Err(_) => 1,
    }
}

struct Worker {
    table: Table,
    heap: Arc<Heap>,
    socket: OwnedFd,
    start: WorkerStart,
    claimed: VecDeque<Claim>,
    spin: u64,
    /// How often it has waited on the parent's processor, and at how many it leaves that.
    turns: u32,
    most_turns: u32,
    /// The last task's function, by its place.
    entry: Option<(u64, Entry<Call>)>,
}

impl Worker {
    fn new(table: Table, socket: OwnedFd, start: WorkerStart) -> Result<Self> {
        let heap = Heap::new(Arc::clone(table.segment()), Table::HEAP, start.member);
        message::send(socket.as_fd(), READY, 0, &[], &[], true)
            .map_err(|error| Error::os("tell the pool", error))?;
        Ok(Self {
            table,
            heap,
            socket,
            start,
            claimed: VecDeque::new(),
            spin: SPIN_MAX / 2,
            turns: 0,
            most_turns: TURNS,
            entry: None,
        })
    }

    fn work(&mut self, local: Option<Local<'_>>) -> i32 {
        let mut call = Call {
            is_quiet: true,
            ..Call::default()
        };
        let mut left = self.start.tasks.unwrap_or(usize::MAX);
        while left > 0 {
            let Some(claim) = self.next(left) else {
                return 0;
            };
            if !self.table.begin(self.start.number, claim) {
                // It has been taken back.
                continue;
            }
            left -= 1;
            match self.run_task(claim, &mut call, local) {
                Ok(true) => {}
                // The parent is ending this worker, and has given up on it.
                Ok(false) => return 1,
                // The parent is gone, or the table makes no sense any more.
                Err(_) => return 1,
            }
        }
        0
    }

    /// Runs the function that each worker is to run last.
    fn run_last(&mut self) {
        if let Some(entry) = self.start.exit.and_then(target::find) {
            let mut none = Vec::new();
            // No arguments always encode.
            let _ = encode(&(), &mut none, &mut Outgoing::default());
            entry(&mut Call {
                input: Input::Bytes(none, 0),
                is_quiet: true,
                ..Call::default()
            });
        }
    }

    /// The next task; `None` when the pool is closed and empty.
    fn next(&mut self, left: usize) -> Option<Claim> {
        if let Some(claim) = self.claimed.pop_front() {
            return Some(claim);
        }
        let number = self.start.number;
        loop {
            if let Some(claim) = self.table.claim(number) {
                let chunk = self.table.parcel(claim.slot).chunk as usize;
                for _ in 1..chunk.min(left) {
                    let Some(more) = self.table.claim(number) else {
                        break;
                    };
                    self.claimed.push_back(more);
                }
                return Some(claim);
            }
            if self.table.is_closing() {
                return None;
            }
            let since = thread::ticks();
            self.table.set_searching(number);
            if self.linger() {
                self.table.set_busy(number);
                continue;
            }
            // A worker that is asleep may be ended any time: what tasks have printed goes out.
            let _ = std::io::stdout().flush();
            if let Some(call) = IDLE.get() {
                call();
            }
            self.table.arm_worker(number);
            if self.table.has_tasks() || self.table.is_closing() {
                // The bell may ring all the same; the packet is read at the next sleep.
                self.table.set_busy(number);
                continue;
            }
            match message::receive(self.socket.as_fd(), true) {
                Ok(Some(_)) => {
                    self.table.set_busy(number);
                    if thread::ticks().wrapping_sub(since) < WORTH {
                        // Sleeping took longer than what it was for.
                        self.spin = SPIN_MAX;
                    }
                }
                // The parent is gone.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Looks for a task for a while. True if there may be one.
    fn linger(&mut self) -> bool {
        let is_time = |table: &Table| table.has_tasks() || table.is_closing();
        if thread::cpu() == self.table.parent_cpu() {
            self.turns += 1;
            if self.turns >= self.most_turns && self.table.is_alone_awake(self.start.number) {
                // It and the parent take turns, which the system does not see as a load.
                self.turns = 0;
                self.most_turns = self.most_turns.saturating_mul(2);
                thread::leave_cpu(self.table.parent_cpu());
                self.table.set_searching(self.start.number);
            }
        }
        if thread::cpu() == self.table.parent_cpu() {
            return (0..4).any(|_| {
                thread::give_way();
                is_time(&self.table)
            });
        }
        awake::spin(&mut self.spin, SPIN_MAX, || is_time(&self.table))
    }

    /// Runs a task that has been begun. False if its worker is to end with it.
    fn run_task(
        &mut self,
        claim: Claim,
        call: &mut Call,
        local: Option<Local<'_>>,
    ) -> Result<bool> {
        let since = thread::ticks();
        let parcel = self.table.parcel(claim.slot);
        call.outgoing = Outgoing::new(Some(Arc::clone(&self.heap)));
        let spare = match std::mem::take(&mut call.input) {
            Input::Bytes(bytes, _) => bytes,
            Input::Block(..) => Vec::new(),
        };
        let handles = self.fetch_handles(claim, parcel)?;
        let arrived = message::read(&self.table, &self.heap, claim.slot, parcel, handles, spare);
        let found = match local {
            Some(_) => None,
            None => self.find(parcel.entry),
        };
        let entry: Option<Local<'_>> = match local {
            Some(local) => Some(local),
            None => found.as_ref().map(|entry| entry as _),
        };
        match (arrived, entry) {
            (Ok(arrived), Some(entry)) => {
                call.input = arrived.input;
                call.incoming = arrived.incoming;
                #[cfg(feature = "tracing")]
                let _task = crate::log::task(claim.ticket);
                entry(call);
            }
            (Err(error), _) => target::fail(call, &Failure::Arguments(error.to_string())),
            (_, None) => target::fail(
                call,
                &Failure::Arguments("the task names no function of this program".into()),
            ),
        }
        // A block that the arguments lay in is not needed any more.
        if let Input::Block(..) = call.input {
            call.input = Input::default();
        }
        call.incoming = Incoming::default();
        self.leave_result(claim, parcel, call)?;
        let took_long = thread::ticks().wrapping_sub(since) > LONG;
        let Some(is_to_ring) = self.table.finish(self.start.number, claim, took_long) else {
            return Ok(false);
        };
        if is_to_ring {
            self.tell(BELL, 0)?;
        }
        Ok(true)
    }

    fn leave_result(&self, claim: Claim, parcel: Parcel, call: &mut Call) -> Result<()> {
        let written = message::write(
            &self.table,
            claim.slot,
            parcel,
            &call.output,
            call.failed,
            &mut call.outgoing,
        );
        if let Err(error) = written {
            target::fail(call, &Failure::Result(error.to_string()));
            message::write(
                &self.table,
                claim.slot,
                parcel,
                &call.output,
                true,
                &mut call.outgoing,
            )?;
        }
        if !call.outgoing.handles.is_empty() {
            message::send_handles(self.socket.as_fd(), claim.ticket, &call.outgoing.handles)
                .map_err(|error| Error::os("send handles to the pool", error))?;
        }
        call.outgoing.sent();
        Ok(())
    }

    fn find(&mut self, place: u64) -> Option<Entry<Call>> {
        match self.entry {
            Some((known, entry)) if known == place => Some(entry),
            _ => {
                let entry = target::find(place)?;
                self.entry = Some((place, entry));
                Some(entry)
            }
        }
    }

    fn fetch_handles(&self, claim: Claim, parcel: Parcel) -> Result<Vec<OwnedFd>> {
        let mut handles = Vec::new();
        if parcel.handles == 0 {
            return Ok(handles);
        }
        self.tell(WANT, claim.ticket)?;
        while handles.len() < parcel.handles as usize {
            let packet = message::receive(self.socket.as_fd(), true)
                .map_err(|error| Error::os("receive handles from the pool", error))?
                .ok_or_else(|| Error::new(ErrorKind::Disconnected, "the pool is gone"))?;
            // Handles of an earlier task, whose worker died before it had them all, are not ours.
            if packet.byte == HANDLES && packet.ticket == claim.ticket {
                handles.extend(packet.handles);
            }
        }
        Ok(handles)
    }

    fn tell(&self, byte: u8, ticket: u32) -> Result<()> {
        message::send(self.socket.as_fd(), byte, ticket, &[], &[], true)
            .map_err(|error| Error::os("tell the pool", error))
    }
}

fn initialize(
    socket: &OwnedFd,
    entry: u64,
    arguments: Vec<u8>,
    handles: Vec<OwnedFd>,
) -> Result<()> {
    let mut call = Call {
        input: Input::Bytes(arguments, 0),
        incoming: Incoming::common(handles),
        is_quiet: true,
        ..Call::default()
    };
    match target::find(entry) {
        Some(entry) => entry(&mut call),
        None => target::fail(
            &mut call,
            &Failure::Arguments("it is no function of this program".into()),
        ),
    }
    if !call.failed {
        return Ok(());
    }
    let why = match decode(&call.output, &mut Incoming::default()) {
        Ok(Failure::Panicked { message, location }) => match location {
            Some(place) => format!("it panicked at {place}: {message}"),
            // `resume_unwind` calls no hook: it is how another language's error comes here.
            None => message,
        },
        Ok(Failure::Arguments(why)) => format!("its arguments did not get there: {why}"),
        Ok(Failure::Result(why)) => format!("its result: {why}"),
        Err(error) => error.to_string(),
    };
    let _ = message::send(socket.as_fd(), FAILED, 0, why.as_bytes(), &[], true);
    Err(Error::new(ErrorKind::Initializer, why))
}
