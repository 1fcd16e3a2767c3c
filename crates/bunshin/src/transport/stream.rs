//! Whole messages over a plain stream socket: what starts processes and brings their
//! results back. Large payloads go in memory of their own, so that no message is
//! longer than what the socket holds and a writer never waits for its reader.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Patience;
use crate::codec::attachments::{Beside, Incoming, Outgoing};
use crate::codec::outcome::Input;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::{self, Interest};

/// Starts each message: "bns" and the protocol's version.
const MAGIC: u32 = u32::from_le_bytes(*b"bns\x01");
const HEADER: usize = 16;
/// The longest body that goes over the socket itself.
const INSIDE_MAX: usize = 32 << 10;
/// Bytes that the first read of a message takes at most.
const FIRST_READ: usize = 1024;
/// The most handles beside one message.
const HANDLES_MAX: usize = 8192;

/// A message over a stream.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: u16,
    body: Input,
    pub(crate) incoming: Incoming,
}

impl Received {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.body.as_bytes()
    }

    pub(crate) fn into_parts(self) -> (Incoming, Input) {
        (self.incoming, self.body)
    }
}

/// Sends one message; what went beside it is gone from `outgoing` afterwards.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    kind: u16,
    bytes: &[u8],
    outgoing: &mut Outgoing,
) -> Result<()> {
    let mut length = bytes.len() as u64;
    let mut body = bytes;
    let beside = bytes.len() > INSIDE_MAX;
    if beside {
        // Streams have no heap, so that this makes a handle, the last one.
        outgoing.place(bytes)?;
        body = &[];
        length |= 1 << 63;
    }
    if outgoing.handles.len() > HANDLES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a message holds {} handles; {HANDLES_MAX} fit",
                outgoing.handles.len()
            ),
        ));
    }
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&MAGIC.to_le_bytes());
    message.extend_from_slice(&kind.to_le_bytes());
    message.extend_from_slice(&(outgoing.handles.len() as u16).to_le_bytes());
    message.extend_from_slice(&length.to_le_bytes());
    message.extend_from_slice(body);
    let handles: Vec<BorrowedFd<'_>> = outgoing.handles.iter().map(AsFd::as_fd).collect();
    let failed = |error| Error::os("send to another process", error);
    // All handles but the last lot go with one header byte each; HEADER bytes are enough.
    let mut lots: Vec<&[BorrowedFd<'_>]> = handles.chunks(socket::HANDLES_AT_ONCE).collect();
    let last = lots.pop().unwrap_or(&[]);
    let mut rest = &message[..];
    for lot in lots {
        // A byte of its own for each further lot, told from the header by its value.
        socket::send(fd, &[LOT], lot, true).map_err(failed)?;
    }
    let mut first = last;
    while !rest.is_empty() {
        let sent = socket::send(fd, rest, first, true).map_err(failed)?;
        first = &[];
        rest = &rest[sent..];
    }
    outgoing.sent();
    Ok(())
}

/// A byte that only carries handles of the message that follows.
const LOT: u8 = b'+';

/// Receives one message; `None` once the other side is gone.
pub(crate) fn receive(fd: BorrowedFd<'_>, patience: Patience) -> Result<Option<Received>> {
    let mut handles = Vec::new();
    // Most messages are short, and come whole with the first read.
    let mut start = [0; FIRST_READ];
    let mut got = 0;
    while got < HEADER {
        let count = read(fd, &mut start[got..], &mut handles, patience)?;
        if count == 0 {
            return if got == 0 {
                Ok(None)
            } else {
                Err(corrupt("it ends inside a header"))
            };
        }
        // Bytes that carry further handles come before the header, one a read.
        let lots = if got == 0 {
            start[..count]
                .iter()
                .take_while(|byte| **byte == LOT)
                .count()
        } else {
            0
        };
        if lots > 0 {
            start.copy_within(lots..count, 0);
        }
        got += count - lots;
    }
    let number =
        |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    if number(0) != MAGIC {
        return Err(corrupt("it does not start as one"));
    }
    let kind = number(4) as u16;
    let n_handles = (number(4) >> 16) as usize;
    let length = u64::from(number(8)) | u64::from(number(12)) << 32;
    let (beside, length) = (length >> 63 == 1, length & !(1 << 63));
    if n_handles > HANDLES_MAX || (!beside && length > INSIDE_MAX as u64) {
        return Err(corrupt("it is longer than messages are"));
    }
    // The other side waits for an answer, or is done: nothing follows the body.
    let inside = if beside { 0 } else { length as usize };
    if got - HEADER > inside {
        return Err(corrupt("it is longer than it says"));
    }
    let mut body = vec![0; inside];
    body[..got - HEADER].copy_from_slice(&start[HEADER..got]);
    let mut got = got - HEADER;
    while got < body.len() {
        let count = read(fd, &mut body[got..], &mut handles, patience)?;
        if count == 0 {
            return Err(corrupt("it ends inside its body"));
        }
        got += count;
    }
    if handles.len() != n_handles {
        return Err(corrupt("its handles did not come with it"));
    }
    let mut incoming = Incoming::new(handles, Vec::new());
    let body = if beside {
        Input::Block(
            incoming.take(Beside::Handle((n_handles as u32).wrapping_sub(1), length))?,
            0,
        )
    } else {
        Input::Bytes(body, 0)
    };
    Ok(Some(Received {
        kind,
        body,
        incoming,
    }))
}

/// Whether a message is there wholly, so that receiving it takes no waiting. Short ones only:
/// of others it says no.
#[cfg(feature = "tokio")]
pub(crate) fn has_whole_message(fd: BorrowedFd<'_>) -> bool {
    let mut start = [0; FIRST_READ];
    let Ok(count) = socket::peek(fd, &mut start, &mut Vec::new()) else {
        return false;
    };
    if count < HEADER || start[0] == LOT {
        // The end takes no waiting either.
        return count == 0;
    }
    let mut length = [0; 8];
    length.copy_from_slice(&start[8..16]);
    let length = u64::from_le_bytes(length);
    let is_beside = length >> 63 == 1;
    is_beside || length <= (count - HEADER) as u64
}

fn read(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    patience: Patience,
) -> Result<usize> {
    if patience != Patience::Forever {
        let mut ready = Vec::new();
        let count = socket::poll(&[(fd, Interest::Readable)], patience.deadline(), &mut ready)
            .map_err(|error| Error::os("wait for another process", error))?;
        if count == 0 {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "another process does not answer",
            ));
        }
    }
    match socket::receive(fd, bytes, handles, true) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
        other => other.map_err(|error| Error::os("receive from another process", error)),
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a message from another process is corrupt: {why}"),
    )
}
