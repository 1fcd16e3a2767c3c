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

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{bootstrap, handle, panic, spawn};
use crate::codec::attachments::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::process::{self, Sig, Started};
use crate::sys::server::{Cloner, Note};
use crate::sys::socket::{self, Interest};
use crate::sys::{image, thread};
use crate::transport::{Patience, stream};

const CLONE: u16 = 1;
const CLONED: u16 = 2;
const REFUSED: u16 = 3;
const NOTE: u16 = 4;

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

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// A child that waits for its start message.
pub(crate) struct Waiting {
    pub(crate) started: Started,
    pub(crate) control: OwnedFd,
}

/// Gives a child of the server, the spare one if there is one.
pub(crate) fn take() -> Result<Waiting> {
    let mut slot = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let mut why = Error::new(ErrorKind::Os, "the forkserver's children end at once");
    // The server may have been killed since the last start, or while it started, and so may
    // the spare: some tries, each with a new one.
    for _ in 0..5 {
        let mut server = match slot.take() {
            // A forked child has a copy of the parent's server; it needs one of its own.
            Some(server) if server.generation == thread::generation() => server,
            _ => launch()?,
        };
        let was_ordered = server.ordered.is_some();
        match server.take_child() {
            Ok(Ok(waiting)) => {
                *slot = Some(server);
                if !socket::is_closed(waiting.control.as_fd()) {
                    return Ok(waiting);
                }
                handle::collect_later(waiting.started);
            }
            Ok(Err(error)) => {
                *slot = Some(server);
                // What was refused a while ago may be possible now.
                if !was_ordered {
                    return Err(error);
                }
                why = error;
            }
            Err(error) => {
                server.give_up();
                why = Error::because(ErrorKind::Os, "the forkserver does not answer", error);
            }
        }
    }
    Err(why)
}

/// Orders the next child, if that takes no waiting. If it fails, the next start sees to it.
pub(crate) fn order_next() {
    let mut slot = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = &mut *slot {
        if server.generation == thread::generation() && server.ordered.is_none() {
            let _ = server.order();
        }
    }
}

fn launch() -> Result<Server> {
    let failed = |error| Error::os("start the forkserver", error);
    let (control, theirs) = socket::pair().map_err(failed)?;
    let note = Note::new().map_err(failed)?;
    let mut outgoing = Outgoing::default();
    outgoing
        .handles
        .push(socket::duplicate(note.memory()).map_err(failed)?);
    stream::send(control.as_fd(), NOTE, &[], &mut outgoing)?;
    let process = spawn::start(spawn::SERVER, theirs)?;
    Ok(Server {
        control,
        process,
        note,
        ordered: None,
        generation: thread::generation(),
    })
}

impl Server {
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

    /// Ends a server that does not answer, and the child that it may have made meanwhile.
    fn give_up(self) {
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
}

/// Serves until the parent is gone. Returns in each child, with what it needs; the
/// server itself never returns.
pub(crate) fn serve(control: OwnedFd, parent: u32) -> Cloned {
    process::set_thread_name(NAME);
    let interrupts = process::block_interrupts();
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
        let Ok(child_control) = request.incoming.handle(0) else {
            process::exit_now(1)
        };
        let (kind, number) = match cloner.clone() {
            Ok(None) => {
                // Not only when the child is put to use: a signal that comes right after a
                // start must not be late. An interrupt ends a spare, and another is ordered.
                process::restore_blocked(&interrupts);
                return Cloned {
                    control: child_control,
                    parent,
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
