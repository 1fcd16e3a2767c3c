//! Start method `forkserver`: children copied from a small process that has no threads
//! and nothing of the parent's memory.
//!
//! The server clones itself so that the child is the *parent's* child: the parent waits
//! for it, and the system ends it with the parent. One exchange starts a child:
//!
//! | Message | From, to | Body | Handles |
//! |---|---|---|---|
//! | `CLONE` | parent, server | nothing | the child's end of its control socket |
//! | `CLONED` | server, parent | the child's pid, four bytes | the child's pidfd |
//! | `REFUSED` | server, parent | the error number, four bytes | none |

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{panic, spawn};
use crate::codec::attachments::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::process::{self, Sig, Started};
use crate::sys::server::Cloner;
use crate::sys::socket::{self, Interest};
use crate::sys::{image, thread};
use crate::transport::{Patience, stream};

const CLONE: u16 = 1;
const CLONED: u16 = 2;
const REFUSED: u16 = 3;

/// The server's name in `ps`.
const NAME: &str = "bunshin-fs";

/// How long the server may take to answer before it is replaced.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

struct Server {
    control: OwnedFd,
    process: Started,
    generation: u32,
}

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// Has the server make a child that reads from `control`.
pub(crate) fn start(control: &OwnedFd) -> Result<Started> {
    let mut slot = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    // The server may have been killed since the last start, or while it started: some more
    // tries, each with a new one.
    for is_last in [false, false, false, false, true] {
        let server = match slot.take() {
            // A forked child has a copy of the parent's server; it needs one of its own.
            Some(server) if server.generation == thread::generation() => server,
            _ => launch()?,
        };
        match server.clone_child(control) {
            Ok(started) => {
                *slot = Some(server);
                return started;
            }
            Err(error) if is_last => {
                return Err(Error::because(
                    ErrorKind::Os,
                    "the forkserver does not answer",
                    error,
                ));
            }
            Err(_) => {
                let _ = process::signal(server.process.pidfd.as_fd(), Sig::KILL);
                let _ = process::wait(server.process.pidfd.as_fd(), true);
            }
        }
    }
    Err(Error::new(ErrorKind::Os, "the forkserver does not answer"))
}

fn launch() -> Result<Server> {
    let (control, theirs) =
        socket::pair().map_err(|error| Error::os("start the forkserver", error))?;
    let process = spawn::start(spawn::SERVER, theirs)?;
    Ok(Server {
        control,
        process,
        generation: thread::generation(),
    })
}

impl Server {
    /// The outer result says whether the server answers, the inner one what.
    fn clone_child(&self, control: &OwnedFd) -> Result<Result<Started>> {
        let mut outgoing = Outgoing::default();
        outgoing.handles.push(
            socket::duplicate(control.as_fd())
                .map_err(|error| Error::os("start a process", error))?,
        );
        stream::send(self.control.as_fd(), CLONE, &[], &mut outgoing)?;
        let answer = stream::receive(self.control.as_fd(), Patience::within(ANSWER_WITHIN))?;
        let Some(mut answer) = answer else {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "the forkserver has ended",
            ));
        };
        let number = <[u8; 4]>::try_from(answer.bytes()).map(u32::from_le_bytes);
        let number = number
            .map_err(|_| Error::new(ErrorKind::Corrupt, "the forkserver's answer is no number"))?;
        match answer.kind {
            CLONED => Ok(answer
                .incoming
                .handle(0)
                .map(|pidfd| Started { pid: number, pidfd })),
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
    let interrupts = process::ignore_interrupts();
    // What every child will want is made once, here.
    image::stamp();
    panic::install_hook();
    let _ = std::io::stdout().flush();
    let (Ok(cloner), Ok(parent_end)) = (Cloner::new(), process::watch(parent)) else {
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
        let mut outgoing = Outgoing::default();
        let (kind, number) = match cloner.clone() {
            Ok(None) => {
                process::restore_interrupts(interrupts);
                return Cloned {
                    control: child_control,
                    parent,
                };
            }
            Ok(Some(started)) => {
                outgoing.handles.push(started.pidfd);
                (CLONED, started.pid)
            }
            Err(error) => (REFUSED, error.raw_os_error().unwrap_or(0) as u32),
        };
        if stream::send(control.as_fd(), kind, &number.to_le_bytes(), &mut outgoing).is_err() {
            process::exit_now(0);
        }
    }
}
