//! Bytes that are very long go in pieces, through a pipe of their own.
//!
//! Memory that nobody has used before is what takes the time then, several times as long as
//! copying: so a few pieces of shared memory are used again and again, and one side fills them while
//! the other one empties them. All that is new is what the receiver ends up with.
//!
//! What comes first is an ordinary message: the mark, how many bytes there are and what they are,
//! and beside it the other end of that pipe. A side that gives up, or dies, closes its end, which the
//! other one sees; the connection itself carries on.

use std::sync::Arc;

use bunshin::{Error, ErrorKind};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};

use crate::buffer::{self, Borrowed};
use crate::connection::Link;
use crate::error::{exception, sending};
use crate::payload::{Object, Payload};

/// Bytes from this length on go in pieces. Up to here, all of it is put where the receiver finds it,
/// and nobody waits.
pub(crate) const FROM: usize = 256 << 20;
/// The bytes of a piece.
const PIECE: usize = 1 << 20;
/// How many pieces may be on their way.
const AHEAD: usize = 16;

/// In the place of a pickle, of which none starts with a zero.
const MARK: &[u8] = b"\0pieces";

/// What the bytes are to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bytes = 0,
    Bytearray = 1,
}

/// What an object is, if it is bytes that go in pieces.
pub(crate) fn kind(object: &Bound<'_, PyAny>) -> Option<Kind> {
    let (kind, len) = if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        (Kind::Bytes, bytes.as_bytes().len())
    } else if let Ok(array) = object.cast_exact::<PyByteArray>() {
        (Kind::Bytearray, array.len())
    } else {
        return None;
    };
    (len >= FROM).then_some(kind)
}

/// Sends bytes in pieces; waits until the receiver has taken almost all of them.
pub(crate) fn send(link: &Link, object: &Bound<'_, PyAny>, kind: Kind) -> PyResult<()> {
    let py = object.py();
    let sender = link.sender()?;
    let lent = Borrowed::of(object)?;
    let bytes = lent.bytes();
    let (ours, theirs) = bunshin::pipe::<Payload>().map_err(|error| exception(&error))?;
    let mut head = MARK.to_vec();
    head.push(kind as u8);
    head.extend((bytes.len() as u64).to_le_bytes());
    let announced = Payload::leaving(head, vec![Object::Connection(Arc::new(Link::Both(theirs)))]);
    // With it goes our hold on the receiver's end: only then is it seen to close.
    let sent = py.detach(|| sender.send(announced));
    sent.map_err(|error| sending(&error.into()))?;
    let sent = py.detach(|| -> Result<(), Error> {
        for (turn, piece) in bytes.chunks(PIECE).enumerate() {
            if turn >= AHEAD {
                ours.recv_bytes()?;
            }
            ours.send_bytes(piece)?;
        }
        Ok(())
    });
    sent.map_err(|error| match error.kind() {
        ErrorKind::Disconnected => sending(&error),
        _ => exception(&error),
    })
}

/// How many bytes go in pieces after this message, and what they are; nothing if it is another one.
pub(crate) fn announced(pickle: &[u8]) -> Option<(Kind, u64)> {
    let (kind, len) = pickle.strip_prefix(MARK)?.split_first()?;
    let kind = match kind {
        0 => Kind::Bytes,
        1 => Kind::Bytearray,
        _ => return None,
    };
    Some((kind, u64::from_le_bytes(len.try_into().ok()?)))
}

/// Receives bytes that were announced.
pub(crate) fn receive(py: Python<'_>, link: &Link, kind: Kind, len: u64) -> PyResult<Py<PyAny>> {
    let Link::Both(pieces) = link else {
        return Err(PyOSError::new_err("a long message came without its pieces"));
    };
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    buffer::gathered(py, len, kind == Kind::Bytearray, || {
        let piece = pieces.recv_bytes().map_err(|error| gave_up(error.into()))?;
        left = left.saturating_sub(piece.len());
        // Nobody waits to hear of the last ones. Should the sender be gone, what comes next says so.
        if left.div_ceil(PIECE) >= AHEAD {
            let _ = pieces.send_bytes(&[]);
        }
        Ok(piece)
    })
}

fn gave_up(error: Error) -> PyErr {
    if error.is_disconnected() {
        return PyOSError::new_err("the sender gave up in the middle of a message");
    }
    exception(&error)
}
