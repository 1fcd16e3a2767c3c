//! Start method `forkserver`: children copied from a small process that has no threads
//! and nothing of the parent's memory.
//!
//! The server clones itself so that the child is the *parent's* child: the parent waits
//! for it, and the system ends it with the parent.
//!
//! | Message | From, to | Body | Handles |
//! |---|---|---|---|
//! | `NOTE` | parent, server, once | nothing | the memory of the [`Note`] |
//! | `CLONE` | parent, server | nothing | the child's end of its control socket |
//! | `CLONED` | server, parent | the child's pid, four bytes | none |
//! | `REFUSED` | server, parent | the error number, four bytes | none |
//!
//! A clone takes longer than all the rest of a start. So the parent orders one child ahead:
//! after each start it sends `CLONE`, and reads the answer at the next start. The spare child
//! waits for its start message like any other, which is what a start then sends; it looks
//! like the server in `ps` until then.
//!
//! | The spare's fate | What follows |
//! |---|---|
//! | the parent ends | it is killed by the system, as every child |
//! | the server ends | nothing: it needs the server no more |
//! | it is killed, or interrupted with the rest of its group | the next start sees its socket closed, collects it, and orders another |
//! | the server is killed before it could answer | the parent reads the note, and ends it |
//!
//! After the note and before the first clone, a server may be asked once to preload:
//!
//! | Message | From, to | Body | Handles |
//! |---|---|---|---|
//! | `PRELOAD` | parent, server | the program's stamp and the function's place, eight bytes each | none |
//! | `LOADED` | server, parent | nothing | none |
//! | `NOT_LOADED` | server, parent | an encoded failure | none |
//! | `THREADED` | server, parent | how many threads there are now, four bytes | none |

use std::fmt;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::exit::ExitStatus;
use super::footprint::Footprint;
use super::fork::count_threads;
use super::handle::Detached;
use super::target::{self, Target};
use super::{bootstrap, handle, panic, spawn};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::outcome::{Call, Failure};
use crate::codec::serde::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::process::{self, Sig, Started};
use crate::sys::server::{Cloner, Note};
use crate::sys::socket::{self, Interest};
use crate::sys::{image, thread};
use crate::transport::{Patience, channel, stream};

const CLONE: u16 = 1;
const CLONED: u16 = 2;
const REFUSED: u16 = 3;
const NOTE: u16 = 4;
const PRELOAD: u16 = 5;
const LOADED: u16 = 6;
const NOT_LOADED: u16 = 7;
const THREADED: u16 = 8;

/// The server's name in `ps`, and its spare child's.
const NAME: &str = "bunshin-fs";

/// How long the server may take to answer before it is replaced.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

struct Server {
    control: OwnedFd,
    process: Started,
    note: Note,
    /// Our end of the control socket of the child that was ordered and is not in use.
    ordered: Option<OwnedFd>,
    generation: u32,
}

/// The server of this process, and what each is to preload.
#[derive(Default)]
struct Current {
    server: Option<Server>,
    preload: Option<u64>,
}

static CURRENT: ForkMutex<Current> = ForkMutex::new(Current {
    server: None,
    preload: None,
});

/// What a function for [`set_forkserver_preload`] may return: nothing, or a result without a
/// value.
///
/// # Examples
/// ```
/// use bunshin::{ErrorKind, set_forkserver_preload};
///
/// let refused = set_forkserver_preload(|| Err::<(), _>("there is no table"));
/// assert_eq!(refused.unwrap_err().kind(), ErrorKind::Initializer);
/// ```
pub trait PreloadOutcome: sealed::Outcome {}

impl PreloadOutcome for () {}
impl<E: fmt::Display> PreloadOutcome for Result<(), E> {}

mod sealed {
    pub trait Outcome {
        fn outcome(self) -> Result<(), String>;
    }

    impl Outcome for () {
        fn outcome(self) -> Result<(), String> {
            Ok(())
        }
    }

    impl<E: std::fmt::Display> Outcome for Result<(), E> {
        fn outcome(self) -> Result<(), String> {
            self.map_err(|error| error.to_string())
        }
    }
}

/// Has the forkserver run a function once before it makes children, so that each child begins
/// with what it has loaded: tables, caches, parsed files.
///
/// The server is started, or replaced by one that has run this function instead of an earlier
/// one; children that run already are not affected. A server that has died is replaced by one
/// that runs the function again. Returns when the function has, however long that takes; that
/// the server is killed meanwhile is an error. What the function prints is printed once.
///
/// Shared values and locks that it makes are shared by all children. Pipe ends are not
/// inherited; they go to a child as its arguments. Children of other start methods do not have
/// what was loaded.
///
/// # Errors
/// `Initializer` if the function panicked, returned an error, or ended the server; `Threads` if it
/// left threads behind, whose locks would stay locked in every child. An earlier function is
/// then kept. `Os` if the server cannot be started.
///
/// # Source
/// CPython's `multiprocessing.set_forkserver_preload`, which takes names of modules.
///
/// # Examples
/// ```
/// use bunshin::{Process, StartMethod, set_forkserver_preload};
/// use std::sync::OnceLock;
///
/// static SQUARES: OnceLock<Vec<u64>> = OnceLock::new();
///
/// fn load() {
///     SQUARES.get_or_init(|| (0..1000).map(|n| n * n).collect());
/// }
///
/// set_forkserver_preload(load)?;
/// let child = Process::builder()
///     .start_method(StartMethod::Forkserver)
///     .start(|| SQUARES.get().map(|squares| squares[12]), ())?;
/// assert_eq!(child.result()?, Some(144));
/// assert!(SQUARES.get().is_none(), "it was loaded there, not here");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set_forkserver_preload<F>(function: F) -> Result<()>
where
    F: Target<()>,
    F::Output: PreloadOutcome,
{
    let _ = function;
    let entry = target::locate_entry(preload::<F>)?;
    // Not under the lock: other threads go on starting children meanwhile.
    let server = launch(Some(entry))?;
    let mut current = CURRENT.lock();
    current.preload = Some(entry);
    if let Some(before) = current.server.replace(server) {
        before.end();
    }
    Ok(())
}

fn preload<F>(call: &mut Call)
where
    F: Target<()>,
    F::Output: PreloadOutcome,
{
    let function = image::conjure::<F>();
    match panic::catch(call.is_quiet, || {
        sealed::Outcome::outcome(function.call(()))
    }) {
        Ok(Ok(())) => target::finish(call, &()),
        Ok(Err(why)) => target::fail(call, &Failure::Result(why)),
        Err(failure) => target::fail(call, &failure),
    }
}

/// A child that waits for its start message.
pub(crate) struct Waiting {
    pub(crate) started: Started,
    pub(crate) control: OwnedFd,
}

/// Gives a child of the server, the spare one if there is one.
pub(crate) fn take() -> Result<Waiting> {
    let mut current = CURRENT.lock();
    let mut why = Error::new(ErrorKind::Os, "the forkserver's children end at once");
    // The server may have been killed since the last start, or while it started, and so may
    // the spare: some tries, each with a new one.
    for _ in 0..5 {
        let mut server = match current.server.take() {
            // A forked child has a copy of the parent's server; it needs one of its own.
            Some(server) if server.generation == thread::generation() => server,
            _ => launch(current.preload)?,
        };
        let was_ordered = server.ordered.is_some();
        match server.take_child() {
            Ok(Ok(waiting)) => {
                current.server = Some(server);
                if !socket::is_closed(waiting.control.as_fd()) {
                    return Ok(waiting);
                }
                handle::collect_later(Detached::new(NAME.to_owned(), waiting.started));
            }
            Ok(Err(error)) => {
                current.server = Some(server);
                // What was refused a while ago may be possible now.
                if !was_ordered {
                    return Err(error);
                }
                why = error;
            }
            Err(error) => {
                server.end();
                why = Error::because(ErrorKind::Os, "the forkserver does not answer", error);
            }
        }
    }
    Err(why)
}

/// Orders the next child, if that takes no waiting. If it fails, the next start sees to it.
pub(crate) fn order_next() {
    let mut current = CURRENT.lock();
    if let Some(server) = &mut current.server {
        if server.generation == thread::generation() && server.ordered.is_none() {
            let _ = server.order();
        }
    }
}

fn launch(preload: Option<u64>) -> Result<Server> {
    let failed = |error| Error::os("start the forkserver", error);
    let (control, theirs) = socket::pair().map_err(failed)?;
    let note = Note::new().map_err(failed)?;
    let mut outgoing = Outgoing::default();
    outgoing
        .handles
        .push(socket::duplicate(note.memory()).map_err(failed)?);
    stream::send(control.as_fd(), NOTE, &[], &mut outgoing)?;
    let process = spawn::start(spawn::SERVER, theirs)?;
    let server = Server {
        control,
        process,
        note,
        ordered: None,
        generation: thread::generation(),
    };
    if let Some(entry) = preload {
        if let Err(error) = server.preload(entry) {
            server.end();
            return Err(error);
        }
    }
    Ok(server)
}

impl Server {
    /// Has the server run a function before it serves.
    fn preload(&self, entry: u64) -> Result<()> {
        let failed = |why: String| {
            Error::new(
                ErrorKind::Initializer,
                format!("the forkserver could not preload: {why}"),
            )
        };
        let body = [image::stamp().to_le_bytes(), entry.to_le_bytes()].concat();
        stream::send(
            self.control.as_fd(),
            PRELOAD,
            &body,
            &mut Outgoing::default(),
        )?;
        // As long as it takes. A server that ends meanwhile closes its end.
        let answer = match stream::receive(self.control.as_fd(), Patience::Forever) {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                let status = process::wait(self.process.pidfd.as_fd(), true);
                return Err(failed(match status.ok().flatten().map(ExitStatus::from) {
                    Some(status) => format!("it ended with {status}"),
                    None => "it ended in an unknown way".to_owned(),
                }));
            }
            Err(error) => return Err(error),
        };
        match answer.kind {
            LOADED => Ok(()),
            NOT_LOADED => Err(failed(
                match decode(answer.bytes(), &mut Incoming::default()) {
                    Ok(failure) => target::said(failure),
                    Err(error) => error.to_string(),
                },
            )),
            THREADED => {
                let count = <[u8; 4]>::try_from(answer.bytes()).map_or(0, u32::from_le_bytes);
                Err(Error::new(
                    ErrorKind::Threads,
                    format!(
                        "what the forkserver preloaded left it with {count} threads: locks that the \
                         others hold would stay locked in every child"
                    ),
                ))
            }
            kind => Err(failed(format!("it answers with kind {kind}"))),
        }
    }

    /// Asks for a child. The outer result says whether the server is there, the inner one
    /// whether this process has room for another child.
    fn order(&mut self) -> Result<Result<()>> {
        let (control, theirs) = match socket::pair() {
            Ok(pair) => pair,
            Err(error) => return Ok(Err(Error::os("start a process", error))),
        };
        self.note.clear();
        let mut outgoing = Outgoing::default();
        outgoing.handles.push(theirs);
        stream::send(self.control.as_fd(), CLONE, &[], &mut outgoing)?;
        self.ordered = Some(control);
        Ok(Ok(()))
    }

    /// The outer result says whether the server answers, the inner one what.
    fn take_child(&mut self) -> Result<Result<Waiting>> {
        if self.ordered.is_none() {
            if let Err(error) = self.order()? {
                return Ok(Err(error));
            }
        }
        let answer = stream::receive(self.control.as_fd(), Patience::within(ANSWER_WITHIN))?;
        let (Some(answer), Some(control)) = (answer, self.ordered.take()) else {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "the forkserver has ended",
            ));
        };
        let number = <[u8; 4]>::try_from(answer.bytes()).map(u32::from_le_bytes);
        let number = number
            .map_err(|_| Error::new(ErrorKind::Corrupt, "the forkserver's answer is no number"))?;
        match answer.kind {
            CLONED => {
                // From here on the child has an owner.
                self.note.clear();
                Ok(process::adopt(number)
                    .map(|started| Waiting { started, control })
                    .map_err(|error| Error::os("start a process", error)))
            }
            REFUSED => Ok(Err(Error::os(
                "start a process",
                std::io::Error::from_raw_os_error(number as i32),
            ))),
            kind => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the forkserver answers with kind {kind}"),
            )),
        }
    }

    /// Ends the server, and the child that it has made, or may have made, for nobody yet. Those
    /// in use are this process's, and go on.
    fn end(self) {
        // A forked child has a copy of its parent's.
        if self.generation != thread::generation() {
            return;
        }
        let _ = process::signal(self.process.pidfd.as_fd(), Sig::KILL);
        let _ = process::wait(self.process.pidfd.as_fd(), true);
        // The server is dead: the kernel writes nothing there any more.
        if let Some(pid) = self.note.pid() {
            process::end_unused(pid);
        }
    }
}

/// What a process that the server cloned goes on with.
pub(crate) struct Cloned {
    pub(crate) control: OwnedFd,
    pub(crate) parent: u32,
    footprint: Option<Footprint>,
}

impl Cloned {
    /// Does what can be done before the start message is here.
    pub(super) fn get_ready(&self) {
        if let Some(footprint) = &self.footprint {
            footprint.take_ahead(&self.control);
        }
    }

    /// Has those after this one, which has done its work, be ready earlier.
    pub(super) fn pass_on(&self) {
        if let Some(footprint) = &self.footprint {
            footprint.note();
        }
    }
}

/// Serves until the parent is gone. Returns in each child, with what it needs; the
/// server itself never returns.
pub(crate) fn serve(control: OwnedFd, parent: u32) -> Cloned {
    process::set_thread_name(NAME);
    // An interpreter has begun with them blocked, which its copies do not wait for.
    let interrupts = process::block_interrupts().without_interrupts();
    // What every child will want is made once, here.
    image::stamp();
    panic::install_hook();
    bootstrap::rehearse();
    let _ = std::io::stdout().flush();
    let Ok(Some(mut first)) = stream::receive(control.as_fd(), Patience::Forever) else {
        process::exit_now(0)
    };
    let note = first.incoming.handle(0).ok().map(Note::attach);
    let (Some(Ok(note)), Ok(parent_end)) = (note, process::watch(parent)) else {
        process::exit_now(1)
    };
    let Ok(cloner) = Cloner::new(note) else {
        process::exit_now(1)
    };
    if !process::die_with(parent) {
        process::exit_now(0);
    }
    // Without it starts take longer, and that is all.
    let footprint = Footprint::new().ok();
    let mut has_loaded = false;
    loop {
        let mut ready = Vec::new();
        let watched = [
            (control.as_fd(), Interest::Readable),
            (parent_end.as_fd(), Interest::Readable),
        ];
        let polled = socket::poll(&watched, None, &mut ready);
        if polled.is_err() || ready.get(1) == Some(&true) {
            process::exit_now(0);
        }
        let Ok(Some(mut request)) = stream::receive(control.as_fd(), Patience::Forever) else {
            process::exit_now(0)
        };
        if request.kind == PRELOAD {
            has_loaded = true;
            if !load(&control, request.bytes()) {
                process::exit_now(1);
            }
            continue;
        }
        let Ok(child_control) = request.incoming.handle(0) else {
            process::exit_now(1)
        };
        let (kind, number) = match cloner.clone() {
            Ok(None) => {
                // Not only when the child is put to use: a signal that comes right after a
                // start must not be late. An interrupt ends a spare, and another is ordered.
                process::restore_blocked(&interrupts);
                if has_loaded {
                    channel::abandon_inherited();
                }
                return Cloned {
                    control: child_control,
                    parent,
                    footprint,
                };
            }
            Ok(Some(pid)) => (CLONED, pid),
            Err(error) => (REFUSED, error.raw_os_error().unwrap_or(0) as u32),
        };
        let number = number.to_le_bytes();
        if stream::send(control.as_fd(), kind, &number, &mut Outgoing::default()).is_err() {
            process::exit_now(0);
        }
    }
}

/// Runs what is to be preloaded, and answers. False if the server is of no more use.
fn load(control: &OwnedFd, body: &[u8]) -> bool {
    let number = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let entry = match (number(0), number(8)) {
        (Some(stamp), Some(entry)) if stamp == image::stamp() => target::find(entry),
        _ => None,
    };
    let mut call = Call {
        is_quiet: true,
        ..Call::default()
    };
    match entry {
        Some(entry) => entry(&mut call),
        None => target::fail(
            &mut call,
            &Failure::Arguments("it runs another program than its parent".into()),
        ),
    }
    // Or else each child would print what is still in the buffer.
    let _ = std::io::stdout().flush();
    let threads = count_threads().unwrap_or(0);
    let (kind, body) = if call.failed {
        (NOT_LOADED, call.output)
    } else if threads != 1 {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        (THREADED, threads.to_le_bytes().to_vec())
    } else {
        (LOADED, Vec::new())
    };
    let sent = stream::send(control.as_fd(), kind, &body, &mut Outgoing::default());
    sent.is_ok() && kind == LOADED
}
