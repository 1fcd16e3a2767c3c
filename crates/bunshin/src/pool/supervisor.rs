//! Starting, watching and replacing workers.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dispatcher::Core;
use super::message::{self, BELL, FAILED, HANDLES, READY, WANT};
use super::state::Action;
use super::worker::{self, WorkerStart};
use crate::codec::attachments::Outgoing;
use crate::codec::serde::encode;
use crate::error::{Error, Result};
use crate::process::last_words::{self, LastWords};
use crate::process::{
    Child, ExitStatus, Process, StartMethod, WorkerLost, scarcity, start_entry, target,
};
use crate::shm::heap::Heap;
use crate::shm::table::{Held, Table};
use crate::sys::process::Sig;
use crate::sys::socket::{self, Interest};
use crate::transport::Patience;

/// How long a worker that was asked to end may take.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// How workers are started.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) method: StartMethod,
    /// What the workers' names begin with, and the number that the first one's ends with.
    pub(crate) prefix: String,
    pub(crate) first: usize,
    pub(crate) tasks: Option<usize>,
    pub(crate) initializer: Option<Initializer>,
    /// The place of a function that each worker runs last.
    pub(crate) exit: Option<u64>,
    /// Whether workers that are not ready when the pool is terminated are not let become so.
    pub(crate) ends_starting: bool,
    /// Whether others than this crate's processes are the workers: forked closures, which
    /// only who has the closure can start.
    pub(crate) is_external: bool,
}

/// A function that each worker runs first, with its encoded arguments.
#[derive(Debug)]
pub(crate) struct Initializer {
    pub(crate) entry: u64,
    pub(crate) arguments: Vec<u8>,
    pub(crate) handles: Vec<OwnedFd>,
}

/// A worker, as the parent sees it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) child: Arc<Child>,
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) words: LastWords,
    /// Handles of results that have not been read yet, by ticket.
    pub(crate) handles: HashMap<u32, Vec<OwnedFd>>,
}

impl Recipe {
    /// Starts worker `number`.
    pub(crate) fn start(&self, table: &Table, number: usize) -> Result<Worker> {
        let os = |error| Error::os("start a worker", error);
        let (socket, theirs) = socket::packet_pair().map_err(os)?;
        let mut outgoing = Outgoing::default();
        outgoing
            .handles
            .push(socket::duplicate(table.segment().as_fd()).map_err(os)?);
        outgoing.handles.push(theirs);
        let (words, their_words) = LastWords::new()?;
        outgoing.handles.push(their_words);
        let mut initializer = None;
        let mut handles = 0;
        if let Some(Initializer {
            entry,
            arguments,
            handles: own,
        }) = &self.initializer
        {
            for handle in own {
                outgoing
                    .handles
                    .push(socket::duplicate(handle.as_fd()).map_err(os)?);
            }
            handles = own.len();
            initializer = Some((*entry, arguments.clone()));
        }
        let start = WorkerStart {
            number,
            member: member(number),
            tasks: self.tasks,
            initializer,
            handles,
            exit: self.exit,
        };
        let mut arguments = Vec::new();
        encode(&start, &mut arguments, &mut Outgoing::default())?;
        let builder = Process::builder()
            .name(format!("{}{}", self.prefix, self.first + number))
            .daemon(true)
            .start_method(self.method);
        let entry = target::locate_entry(worker::run)?;
        let (child, _control) = start_entry(builder, entry, arguments, outgoing)?;
        Ok(Worker {
            child,
            socket: Arc::new(socket),
            words,
            handles: HashMap::new(),
        })
    }
}

/// The number of a worker among the users of the pool's heap; the parent is 0.
pub(crate) fn member(number: usize) -> u32 {
    u32::try_from(number + 1).unwrap_or(u32::MAX)
}

impl Core {
    /// Starts a worker, and says so.
    pub(crate) fn hire(&mut self, number: usize) -> Result<()> {
        self.table.reset_worker(number);
        self.state.starting(number);
        if self.recipe.is_external {
            self.vacant.push(number);
            return Ok(());
        }
        match self.recipe.start(&self.table, number) {
            Ok(worker) => {
                self.workers[number] = Some(worker);
                Ok(())
            }
            Err(error) => {
                self.workers[number] = None;
                let _ = self.state.ended(number, &[], 0, "no start");
                Err(error)
            }
        }
    }

    /// What to wait for: each worker's socket and end.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let workers = self.workers.iter().enumerate();
        workers
            .filter_map(|(number, worker)| {
                let worker = worker.as_ref()?;
                Some(Watched {
                    number,
                    child: Arc::clone(&worker.child),
                    socket: Arc::clone(&worker.socket),
                })
            })
            .collect()
    }

    /// Reads what a worker has sent.
    pub(crate) fn read_packets(&mut self, number: usize) {
        let mut actions = Vec::new();
        let mut any = false;
        while let Some(worker) = &mut self.workers[number] {
            let packet = match message::receive(worker.socket.as_fd(), false) {
                Ok(Some(packet)) => packet,
                // That it is gone is told by its end.
                Ok(None) | Err(_) => break,
            };
            any = true;
            match packet.byte {
                BELL => {}
                READY => self.state.ready(number),
                FAILED => {
                    actions.extend(
                        self.state
                            .initializer_failed(&String::from_utf8_lossy(&packet.rest)),
                    );
                }
                WANT => {
                    if let Some(handles) = self.task_handles.get(&packet.ticket) {
                        // A worker that is gone needs none.
                        let _ =
                            message::send_handles(worker.socket.as_fd(), packet.ticket, handles);
                    }
                }
                HANDLES => worker
                    .handles
                    .entry(packet.ticket)
                    .or_default()
                    .extend(packet.handles),
                _ => {}
            }
        }
        self.act(actions);
        if any && self.is_watched {
            // It was rung for another thread, which finds nothing more to read and sleeps on.
            socket::event_set(self.kick.as_fd());
        }
    }

    /// Deals with the ends of workers that have ended.
    pub(crate) fn bury_dead(&mut self) {
        let mut dead = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            let Some(worker) = worker else {
                continue;
            };
            let status = match worker.child.wait(Patience::Never) {
                Ok(None) => continue,
                Ok(status) => status,
                // Collected behind our back: gone, in an unknown way.
                Err(_) => None,
            };
            dead.push((number, status, worker.child.peak_memory()));
        }
        let is_killed = |status: &Option<ExitStatus>| status.is_some_and(|status| status.is_kill());
        let n_killed = dead.iter().filter(|(_, status, _)| is_killed(status));
        let mut n_killed = match n_killed.count() {
            0 => 0,
            n_killed => scarcity::blame(n_killed),
        };
        if n_killed > 0 {
            // The system kills those first that have most.
            dead.sort_by_key(|(_, _, peak)| std::cmp::Reverse(*peak));
        }
        for (number, status, _) in dead {
            let out_of_memory = n_killed > 0 && is_killed(&status);
            n_killed -= usize::from(out_of_memory);
            self.bury(number, status, out_of_memory);
        }
    }

    fn bury(&mut self, number: usize, status: Option<ExitStatus>, out_of_memory: bool) {
        self.read_packets(number);
        self.collect();
        let held = self.table.held_by(number);
        let mut is_lost = false;
        for (slot, ticket, held) in &held {
            match held {
                Held::Claimed => {}
                // Its blocks are about to be let go: what has not been read is read now.
                Held::Done => self.read_early(*slot),
                Held::Running => {
                    is_lost = true;
                    for block in self.forget_task(*ticket) {
                        self.heap.recall(block);
                    }
                }
            }
        }
        let mut how =
            status.map_or_else(|| "an unknown end".to_owned(), |status| status.to_string());
        let mut key = 0;
        if let Some(worker) = self.workers[number].take() {
            let end = WorkerLost {
                name: worker.child.name().to_owned(),
                pid: worker.child.pid(),
                task: None,
                status,
                out_of_memory,
                peak_memory: worker.child.peak_memory(),
                last_words: worker.words.read(),
            };
            how.push_str(&last_words::clause(&end.last_words));
            if is_lost {
                key = self.note_end(end);
            }
        }
        self.heap.bury(member(number));
        let actions = self.state.ended(number, &held, key, &how);
        self.act(actions);
        // Somebody else may have to do what it would have done.
        self.wake_workers(true);
    }

    /// Ends a worker at once.
    pub(crate) fn kill(&self, worker: usize) {
        if let Some(worker) = &self.workers[worker] {
            let _ = worker.child.signal(Sig::KILL);
        }
    }

    pub(crate) fn act(&mut self, actions: Vec<Action>) {
        let mut queue: std::collections::VecDeque<_> = actions.into();
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Requeue { slot, old, ticket } => {
                    // What goes beside the task is asked for by its ticket.
                    if let Some(handles) = self.task_handles.remove(&old) {
                        self.task_handles.insert(ticket, handles);
                    }
                    if let Some(blocks) = self.task_blocks.remove(&old) {
                        self.task_blocks.insert(ticket, blocks);
                    }
                    self.push(slot, ticket);
                }
                Action::Discard { slot } => self.discard(slot),
                Action::Forget { key } => self.forget_kept(key),
                Action::Replace { worker } if self.recipe.is_external => {
                    self.vacant.push(worker);
                }
                Action::Replace { worker } => {
                    if let Err(error) = self.hire(worker) {
                        queue.extend(self.state.not_replaced(&error.to_string()));
                    }
                }
            }
        }
        if !self.state.has_tasks() {
            self.forget_all_tasks();
        }
    }

    /// Rings as many sleeping workers as there are tasks for; see [`Table::sleepers`].
    pub(crate) fn wake_workers(&self, doubtful: bool) {
        let mut wake = Vec::new();
        self.table.sleepers(doubtful, &mut wake);
        for number in wake {
            if let Some(worker) = &self.workers[number] {
                // One that is gone is replaced.
                let _ = message::send(worker.socket.as_fd(), BELL, 0, &[], &[], false);
            }
        }
    }

    /// Asks the workers to end that have not said that they are ready: others are not to wait until
    /// they have begun, for nothing.
    fn end_starting(&mut self) {
        for number in 0..self.workers.len() {
            // It may have said so just now.
            self.read_packets(number);
            if self.state.is_starting(number) {
                if let Some(worker) = &self.workers[number] {
                    let _ = worker.child.signal(Sig::TERM);
                }
            }
        }
    }

    /// Has all workers end: at once if `now`, or when there is nothing left to do.
    pub(crate) fn dismiss(&mut self, now: bool) {
        self.table.close();
        for worker in self.workers.iter().flatten() {
            let _ = message::send(worker.socket.as_fd(), BELL, 0, &[], &[], false);
        }
        if !now {
            return;
        }
        if self.recipe.ends_starting {
            self.end_starting();
        }
        if self.recipe.exit.is_some() {
            // Those that are idle run what they are to run last.
            let deadline = Instant::now() + GRACE / 2;
            for worker in self.workers.iter().flatten() {
                let _ = worker.child.wait(Patience::Until(deadline));
            }
        }
        for worker in self.workers.iter().flatten() {
            let _ = worker.child.signal(Sig::TERM);
        }
        let deadline = Instant::now() + GRACE;
        for worker in self.workers.iter().flatten() {
            if !matches!(worker.child.wait(Patience::Until(deadline)), Ok(Some(_))) {
                worker.child.destroy();
            }
        }
    }
}

/// A worker that is waited for.
pub(crate) struct Watched {
    pub(crate) number: usize,
    child: Arc<Child>,
    socket: Arc<OwnedFd>,
}

/// Waits until a worker has sent something or ended; gives the numbers of those that have
/// sent, and whether any has ended. Returns early, and with nothing, if it is kicked.
pub(crate) fn watch(
    watched: &[Watched],
    kick: &OwnedFd,
    deadline: Option<Instant>,
) -> Result<(Vec<usize>, bool)> {
    let fds: Vec<_> = watched
        .iter()
        .flat_map(|worker| [worker.socket.as_fd(), worker.child.pidfd()])
        .chain([kick.as_fd()])
        .map(|fd| (fd, Interest::Readable))
        .collect();
    let mut ready = Vec::new();
    socket::poll(&fds, deadline, &mut ready)
        .map_err(|error| Error::os("wait for the workers of a pool", error))?;
    if ready.last() == Some(&true) {
        socket::event_clear(kick.as_fd());
    }
    let mut sent = Vec::new();
    let mut any_ended = false;
    for (worker, ready) in watched.iter().zip(ready.chunks(2)) {
        if ready[0] {
            sent.push(worker.number);
        }
        any_ended |= ready[1];
    }
    Ok((sent, any_ended))
}

/// The heap as the parent of a pool uses it.
pub(crate) fn parent_heap(table: &Table) -> Arc<Heap> {
    Heap::new(Arc::clone(table.segment()), Table::HEAP, 0)
}
