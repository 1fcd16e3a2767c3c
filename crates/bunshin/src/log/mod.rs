//! Records of `tracing` from children, in the parent.
//!
//! [`forward`] has children that are started from then on send their events to this process,
//! where they are events of `tracing` again: with their own level, target, file, line and
//! fields, and with these fields added:
//!
//! | Field | What |
//! |---|---|
//! | `process` | the name of the process: `Process-1`, `Worker-2` |
//! | `pid` | its process id |
//! | `task` | in a pool's worker, the task that it ran: its number in the pool, counted from 1 |
//! | `spans` | the spans that the event was in, with their fields: `outer{job=7}:inner` |
//!
//! A panic in a child is an event of level error with the target `panic`. Children of children
//! send theirs to the same place. Children have a subscriber for that before their target runs,
//! so that a target that sets a global one of its own is refused.
//!
//! # What it costs
//!
//! Nothing where nobody has asked for it, or where this process has no subscriber. Children
//! make only the events of levels that this process's subscriber wants, when they are
//! started. A child writes each event to a pipe of 1 MiB at once, or drops it: it never
//! waits. How many were dropped is reported, by [`Forward::lost`] and by an event with the target
//! `bunshin::log` and the field `lost`. An event of more than about 4 KB is cut.
//!
//! A thread called `bunshin-log` reads them here, from the first start of a child on. It is
//! ended for the moment of a fork, so that it stands in no fork's way.
//!
//! # When the other side dies
//!
//! What a child has written before it was killed arrives. When this process ends, its children
//! do; events that it has not read then are gone, which [`Forward`] prevents where it is dropped
//! at the end of `main`.

mod capture;
mod emit;
mod record;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tracing_core::{Dispatch, LevelFilter, dispatcher};

use self::capture::Forwarder;
use self::record::{Record, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::cell::SharedCell;
use crate::sys::socket::{self, Interest};
use crate::sys::{pipe, thread};

pub(crate) use self::capture::task;

/// Bytes read at a time.
const READ: usize = 64 << 10;
/// Reads in one go: some more than the pipe holds, so that what was there is read, and a child
/// that never stops writing does not hold up who reads.
const READS: usize = 32;

/// Has children that are started from now on send their events here, for as long as the
/// guard lives.
///
/// They go to the subscriber that is the default of this thread now, or, if there is none yet,
/// to the global one. In a child whose events go to its parent already, this changes nothing:
/// events of its children go there too.
///
/// Under the start method `fork`, a child's copy of the subscriber gets no events of the child's
/// main thread, and those of threads that the child starts itself.
///
/// # Errors
/// `Busy` if there is another guard in this process; `Os` if the system gives no pipe.
///
/// # Source
/// CPython's `multiprocessing.get_logger` and `log_to_stderr`, and the "queue handler" of its
/// logging cookbook.
///
/// # Examples
/// ```
/// use bunshin::Process;
///
/// fn work(number: u32) {
///     tracing::info!(number, "working");
/// }
///
/// tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
/// let records = bunshin::log::forward()?;
/// let child = Process::builder().name("worker").start(work, (7,))?;
/// assert!(child.join()?.success());
/// // Prints: INFO doc: working number=7 process="worker" pid=…
/// records.flush();
/// assert_eq!(records.lost(), 0);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[doc(alias = "log_to_stderr")]
#[doc(alias = "get_logger")]
pub fn forward() -> Result<Forward> {
    let mut way = way();
    let generation = thread::generation();
    match &*way {
        Some(Way::Here(reader)) if reader.generation == generation => {
            return Err(Error::new(
                ErrorKind::Busy,
                "events of children are forwarded to this process already",
            ));
        }
        Some(_) => return Ok(Forward { reader: None }),
        None => {}
    }
    let pipe = pipe::open().map_err(|error| Error::os("make a pipe for records", error))?;
    let reader = Arc::new(Reader {
        wire: Arc::new(Wire {
            pipe,
            lost: SharedCell::create(size_of::<u64>())?,
        }),
        progress: Mutex::default(),
        to: dispatcher::get_default(Dispatch::clone),
        generation,
    });
    *way = Some(Way::Here(Arc::clone(&reader)));
    Ok(Forward {
        reader: Some(reader),
    })
}

/// While this lives, events of children arrive; see [`forward`].
///
/// Dropping it emits what has been sent up to then. Children that run on write theirs to a
/// pipe that nobody reads, which does not disturb them.
///
/// # Examples
/// ```
/// let records = bunshin::log::forward()?;
/// assert!(bunshin::log::forward().is_err(), "there is one already");
/// drop(records);
/// assert!(bunshin::log::forward().is_ok());
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "events arrive as long as this lives"]
pub struct Forward {
    reader: Option<Arc<Reader>>,
}

impl Forward {
    /// Emits all events that have been sent before this call, in this thread.
    ///
    /// Does not wait for children: join those first whose last events are wanted.
    ///
    /// # Examples
    /// ```
    /// tracing_subscriber::fmt().with_writer(std::io::sink).init();
    /// let records = bunshin::log::forward()?;
    /// let child = bunshin::Process::start(|| tracing::warn!("over there"), ())?;
    /// child.join()?;
    /// // What the child has said is in the hands of the subscriber after this.
    /// records.flush();
    /// assert_eq!(records.lost(), 0);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn flush(&self) {
        if let Some(reader) = self.own() {
            reader.drain();
        }
    }

    /// How many events were dropped so far, those of processes included that have ended in any
    /// way.
    ///
    /// # Examples
    /// ```
    /// let records = bunshin::log::forward()?;
    /// assert_eq!(records.lost(), 0);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.own()
            .map_or(0, |reader| reader.wire.lost().load(Ordering::Relaxed))
    }

    /// The reader, unless this is a copy that a fork has made.
    fn own(&self) -> Option<&Arc<Reader>> {
        let generation = thread::generation();
        self.reader
            .as_ref()
            .filter(|reader| reader.generation == generation)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(reader) = self.own() {
            *way() = None;
            pause();
            reader.drain();
        }
    }
}

/// What events are sent by.
#[derive(Debug)]
struct Wire {
    pipe: OwnedFd,
    /// How many found no room: one number, which all processes count up.
    lost: SharedCell,
}

impl Wire {
    fn lost(&self) -> &AtomicU64 {
        self.lost.atomic_u64(0)
    }
}

/// Where events of children go.
#[derive(Debug)]
enum Way {
    /// To this process; or, in a copy that a fork has made, to the one that it is a copy of.
    Here(Arc<Reader>),
    /// To a process above this one.
    Up(Arc<Wire>),
}

static WAY: Mutex<Option<Way>> = Mutex::new(None);

fn way() -> std::sync::MutexGuard<'static, Option<Way>> {
    WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way {
    fn wire(&self) -> &Arc<Wire> {
        match self {
            Self::Here(reader) => &reader.wire,
            Self::Up(wire) => wire,
        }
    }
}

/// What reads the pipe.
#[derive(Debug)]
struct Reader {
    wire: Arc<Wire>,
    progress: Mutex<Progress>,
    to: Dispatch,
    generation: u32,
}

/// What is kept from one read to the next.
#[derive(Debug, Default)]
struct Progress {
    /// The beginning of a frame, if a read ended inside of one.
    rest: Vec<u8>,
    /// Lost events that were reported.
    told: u64,
}

impl Reader {
    /// Emits what is in the pipe.
    fn drain(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let Progress { rest, told } = &mut *progress;
        let mut bytes = vec![0; READ];
        for _ in 0..READS {
            let count = pipe::read(self.wire.pipe.as_fd(), &mut bytes).unwrap_or(0);
            if count == 0 {
                break;
            }
            rest.extend_from_slice(&bytes[..count]);
            let taken = record::each(rest, |record, fields| {
                // The subscriber is the user's code; a panic of its must not end the reading.
                let emitted =
                    catch_unwind(AssertUnwindSafe(|| emit::emit(&self.to, record, fields)));
                if matches!(emitted, Ok(false)) {
                    self.wire.lost().fetch_add(1, Ordering::Relaxed);
                }
            });
            rest.drain(..taken);
        }
        let _ = catch_unwind(AssertUnwindSafe(|| self.report_lost(told)));
    }

    /// Says how many events were lost since it was last said.
    fn report_lost(&self, told: &mut u64) {
        let lost = self.wire.lost().load(Ordering::Relaxed);
        let more = lost.saturating_sub(*told);
        if more == 0 {
            return;
        }
        *told = lost;
        let about = Record {
            level: 2,
            name: "lost",
            target: "bunshin::log",
            process: "MainProcess",
            pid: std::process::id(),
            ..Record::default()
        };
        let message = "events of children were lost, as they came faster than they were read";
        let fields = [
            ("message", Value::Shown(message)),
            ("lost", Value::Uint(more)),
        ];
        emit::emit(&self.to, &about, &fields);
    }
}

// -- the thread

struct Reading {
    thread: JoinHandle<()>,
    stop: Arc<OwnedFd>,
    generation: u32,
}

static READING: Mutex<Option<Reading>> = Mutex::new(None);

/// Sees that a thread reads what children send, if this process has asked for it.
pub(crate) fn resume() {
    let reader = match &*way() {
        Some(Way::Here(reader)) if reader.generation == thread::generation() => Arc::clone(reader),
        _ => return,
    };
    let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    if reading
        .as_ref()
        .is_some_and(|reading| reading.generation == reader.generation)
    {
        return;
    }
    let generation = reader.generation;
    // Without a thread, what is flushed arrives all the same.
    let Ok(stop) = socket::event().map(Arc::new) else {
        return;
    };
    let stopped = Arc::clone(&stop);
    let run = move || {
        let watched = [
            (reader.wire.pipe.as_fd(), Interest::Readable),
            (stopped.as_fd(), Interest::Readable),
        ];
        let mut ready = Vec::new();
        while socket::poll(&watched, None, &mut ready).is_ok() && ready.get(1) != Some(&true) {
            reader.drain();
        }
    };
    let builder = std::thread::Builder::new().name("bunshin-log".into());
    if let Ok(thread) = builder.spawn(run) {
        *reading = Some(Reading {
            thread,
            stop,
            generation,
        });
    }
}

/// Ends the thread, for a fork or for good; [`resume`] starts another.
pub(crate) fn pause() {
    let reading = READING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(reading) = reading else { return };
    // A forked child has no such thread, whatever it has inherited.
    if reading.generation != thread::generation() {
        std::mem::forget(reading);
        return;
    }
    // A subscriber that starts a process is called by this very thread.
    if reading.thread.thread().id() == std::thread::current().id() {
        return;
    }
    socket::event_set(reading.stop.as_fd());
    let _ = reading.thread.join();
}

// -- processes

/// What a child that is about to be started has to be given: two handles, and the levels that
/// are wanted, 1 error to 5 trace.
pub(crate) fn for_child() -> Option<([OwnedFd; 2], u8)> {
    let way = way();
    let wire = way.as_ref()?.wire();
    let level = wanted()?;
    // Without further handles the child is no worse off than without records.
    let pipe = socket::duplicate(wire.pipe.as_fd()).ok()?;
    let lost = socket::duplicate(wire.lost.fd()).ok()?;
    Some(([pipe, lost], level))
}

/// The levels that this process's subscriber wants, if any.
fn wanted() -> Option<u8> {
    LevelFilter::current().into_level().map(capture::number)
}

/// Takes what [`for_child`] gave the parent of this process; false if it is not that.
pub(crate) fn arrive(pipe: OwnedFd, lost: OwnedFd) -> bool {
    let Ok(lost) = SharedCell::attach(lost, size_of::<u64>()) else {
        return false;
    };
    *way() = Some(Way::Up(Arc::new(Wire { pipe, lost })));
    true
}

/// Begins a child of that name: its events go up, if they are wanted there. `level` is what
/// came from the parent; a copy of the parent finds out for itself.
pub(crate) fn settle(name: &str, level: Option<u8>) {
    let wire = match &*way() {
        Some(way) => Arc::clone(way.wire()),
        None => return,
    };
    let is_copy = level.is_none();
    let Some(level) = level.or_else(wanted) else {
        return;
    };
    capture::begin(name);
    *way() = Some(Way::Up(Arc::clone(&wire)));
    let level = match level {
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let forwarder = Dispatch::new(Forwarder::new(wire, level));
    let _ = dispatcher::set_global_default(forwarder.clone());
    if is_copy {
        // The parent's global subscriber cannot be replaced in a copy of it; in this thread
        // it can be hidden, for as long as the thread lives.
        std::mem::forget(dispatcher::set_default(&forwarder));
    }
}

/// Tells of a panic in a child.
pub(crate) fn panicked(info: &PanicHookInfo<'_>) {
    // A panic may come from anywhere: nothing is waited for.
    let wire = match WAY.try_lock().as_deref() {
        Ok(Some(Way::Up(wire))) => Arc::clone(wire),
        _ => return,
    };
    capture::panicked(&wire, info);
}
