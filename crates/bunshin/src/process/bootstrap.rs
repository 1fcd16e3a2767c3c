//! The child's side of a start: from the first instruction to the exit.
//!
//! A start message is `START`; its body is the length of the preparation in four bytes,
//! the encoded [`Preparation`], and the encoded arguments. The answer is `RETURNED` with
//! the encoded result, or `FAILED` with an encoded failure; then the child exits.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use super::current::Identity;
use super::forkserver::Cloned;
use super::handle::join_detached;
use super::{forkserver, panic, spawn, target};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::outcome::{Call, Failure, Input};
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::tracker;
use crate::sys::{image, process, socket};
use crate::transport::{Patience, stream};

pub(crate) const START: u16 = 16;
pub(crate) const RETURNED: u16 = 17;
pub(crate) const FAILED: u16 = 18;

/// What a child needs to know beside its arguments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Preparation {
    /// Which program the place below is in.
    pub(crate) stamp: u64,
    pub(crate) entry: u64,
    pub(crate) identity: Identity,
    /// The parent's working directory, for children whose own may be another.
    /// Its bytes, as it need not be text.
    pub(crate) directory: Option<Vec<u8>>,
    /// From which handle of the message on those for records are, and which levels are wanted;
    /// see `log::for_child`.
    pub(crate) records: Option<(u32, u8)>,
}

#[cfg(feature = "tracing")]
impl Preparation {
    /// Has the child send its records where this process's go, or to this process.
    pub(super) fn with_records(mut self, outgoing: &mut Outgoing) -> Self {
        if let Some((handles, level)) = crate::log::for_child() {
            // After the handles of the arguments, whose places are fixed.
            self.records = Some((outgoing.handles.len() as u32, level));
            outgoing.handles.extend(handles);
        }
        self
    }
}

/// Turns this process into a child if it was started as one; then it does not return.
///
/// This happens by itself before `main` on Linux, so that programs need not call it. It is
/// for programs in which code that runs before `main` is left out, and does nothing a
/// second time.
///
/// # Source
/// CPython's `multiprocessing.freeze_support`.
///
/// # Examples
/// ```
/// bunshin::init();
/// ```
#[doc(alias = "freeze_support")]
pub fn init() {
    if !image::is_program() {
        return;
    }
    let Some((role, control, parent)) = process::take_start_variable() else {
        return;
    };
    if role == tracker::ROLE {
        tracker::serve(control, parent);
    }
    if role == spawn::SERVER {
        leave(run_copy(&forkserver::serve(control, parent)), Exit::Now);
    }
    leave(run(&control, parent, || ()), Exit::Orderly)
}

/// What [`init`] does, in a program that is an interpreter with this crate in a library.
///
/// Gives the exit code, and whether this is a copy of the forkserver; nothing if this process
/// was not started as a child.
pub(crate) fn run_hosted() -> Option<(i32, bool)> {
    let (role, control, parent) = process::take_start_variable()?;
    if role == tracker::ROLE {
        tracker::serve(control, parent);
    }
    if role == spawn::SERVER {
        return Some((run_copy(&forkserver::serve(control, parent)), true));
    }
    Some((run(&control, parent, || ()), false))
}

/// [`run`] in a copy of the server.
fn run_copy(copy: &Cloned) -> i32 {
    let code = run(&copy.control, copy.parent, || copy.get_ready());
    copy.pass_on();
    code
}

/// How a child leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With exit handlers: this program was started for this child alone.
    Orderly,
    /// Without: what is registered belongs to the process that this is a copy of.
    Now,
}

/// Leaves, after what was printed has been written.
pub(crate) fn leave(code: i32, exit: Exit) -> ! {
    let _ = std::io::stdout().flush();
    match exit {
        Exit::Orderly => std::process::exit(code),
        Exit::Now => {
            // An orderly exit waits for them in its exit handler.
            join_detached();
            process::exit_now(code)
        }
    }
}

/// Waits for the start message, with `meanwhile` before, and does what it says; gives the exit code.
fn run(control: &OwnedFd, parent: u32, meanwhile: impl FnOnce()) -> i32 {
    if !process::die_with(parent) {
        process::exit_now(1);
    }
    meanwhile();
    match receive(control) {
        Ok((preparation, call)) => answer(control, &preparation, call),
        Err(error) => {
            // A parent that is gone has nobody to tell.
            if !error.is_disconnected() {
                send_failure(control, &Failure::Arguments(error.to_string()));
            }
            1
        }
    }
}

fn receive(control: &OwnedFd) -> Result<(Preparation, Call)> {
    let message = stream::receive(control.as_fd(), Patience::Forever)?
        .ok_or_else(|| Error::new(ErrorKind::Disconnected, "the parent is gone"))?;
    if message.kind != START {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("a start message has kind {}", message.kind),
        ));
    }
    let (incoming, body) = message.into_parts();
    let short = || Error::new(ErrorKind::Corrupt, "a start message is too short");
    let bytes = body.as_bytes();
    let len = u32::from_le_bytes(
        bytes
            .get(..4)
            .and_then(|len| len.try_into().ok())
            .ok_or_else(short)?,
    ) as usize;
    let preparation = bytes.get(4..4 + len).ok_or_else(short)?;
    let preparation: Preparation = decode(preparation, &mut Incoming::default())?;
    let input = body.skip(4 + len);
    Ok((
        preparation,
        Call {
            input,
            incoming,
            ..Call::default()
        },
    ))
}

/// Starts a call that does nothing, over a socket to itself.
///
/// What is done for the first time takes longer: the loader looks functions up, thread-locals
/// are registered, pages are mapped. Whoever is about to be copied does it for its copies.
pub(super) fn rehearse() {
    let Ok((here, there)) = socket::pair() else {
        return;
    };
    let preparation = Preparation {
        stamp: image::stamp(),
        entry: 0,
        identity: Identity::of_rehearsal(),
        directory: Some(b"/".to_vec()),
        records: None,
    };
    let mut arguments = Vec::new();
    // The result is in nobody's interest; nor is why there is none.
    let _ = encode(&(0u64,), &mut arguments, &mut Outgoing::default());
    let Ok(body) = start_body(&preparation, &arguments) else {
        return;
    };
    if stream::send(here.as_fd(), START, &body, &mut Outgoing::default()).is_err() {
        return;
    }
    if let Ok((preparation, mut call)) = receive(&there) {
        std::hint::black_box(preparation);
        target::rehearse(&mut call);
        send(&there, &mut call);
    }
}

/// Runs the target and sends its outcome; gives the exit code.
fn answer(control: &OwnedFd, preparation: &Preparation, mut call: Call) -> i32 {
    if let Some(directory) = &preparation.directory {
        // As in a copy of the parent, whose directory may be gone too.
        let _ = std::env::set_current_dir(OsStr::from_bytes(directory));
    }
    let entry = if preparation.stamp == image::stamp() {
        target::find(preparation.entry)
    } else {
        None
    };
    let Some(entry) = entry else {
        send_failure(
            control,
            &Failure::Arguments("the child runs another program than its parent".into()),
        );
        return 1;
    };
    #[cfg(feature = "tracing")]
    let level = preparation.records.and_then(|(first, level)| {
        let mut handle = |index| call.incoming.handle(index).ok();
        crate::log::arrive(handle(first)?, handle(first.checked_add(1)?)?).then_some(level)
    });
    #[cfg(not(feature = "tracing"))]
    let level = None;
    settle_in(preparation.identity.clone(), level);
    entry(&mut call);
    send(control, &mut call)
}

/// Gives this process its identity as a child; `level` is of the records that it is to send.
pub(crate) fn settle_in(identity: Identity, level: Option<u8>) {
    process::set_thread_name(&identity.name);
    #[cfg(feature = "tracing")]
    crate::log::settle(&identity.name, level);
    #[cfg(not(feature = "tracing"))]
    let _ = level;
    identity.adopt();
    super::start_method::reset_start_method();
    panic::install_hook();
}

/// Sends the outcome of a call; gives the exit code.
pub(crate) fn send(control: &OwnedFd, call: &mut Call) -> i32 {
    let kind = if call.failed { FAILED } else { RETURNED };
    let _ = std::io::stdout().flush();
    match stream::send(control.as_fd(), kind, &call.output, &mut call.outgoing) {
        Ok(()) => i32::from(call.failed),
        // A parent that does not want the result any more has closed its end.
        Err(error) if error.is_disconnected() => i32::from(call.failed),
        Err(error) => {
            send_failure(control, &Failure::Result(error.to_string()));
            1
        }
    }
}

fn send_failure(control: &OwnedFd, failure: &Failure) {
    let mut bytes = Vec::new();
    let mut outgoing = Outgoing::default();
    if encode(failure, &mut bytes, &mut outgoing).is_ok() {
        let _ = stream::send(control.as_fd(), FAILED, &bytes, &mut outgoing);
    }
}

/// The body of a start message: a preparation and arguments.
pub(crate) fn start_body(preparation: &Preparation, arguments: &[u8]) -> Result<Vec<u8>> {
    let mut body = vec![0; 4];
    encode(preparation, &mut body, &mut Outgoing::default())?;
    let len = (body.len() - 4) as u32;
    body[..4].copy_from_slice(&len.to_le_bytes());
    body.extend_from_slice(arguments);
    Ok(body)
}

/// What [`receive`] gets from [`start_body`], in a forked child that needs no message.
pub(crate) fn forked_call(arguments: Vec<u8>, handles: Vec<OwnedFd>) -> Call {
    Call {
        input: Input::Bytes(arguments, 0),
        incoming: Incoming::new(handles, Vec::new()),
        ..Call::default()
    }
}
