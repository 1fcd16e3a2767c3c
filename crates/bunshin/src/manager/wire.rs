//! A connection between a client and a server, on either side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::message::TAG;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::{decode, encode};
use crate::connection::{Connection, duplex};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::Heap;
use crate::sys::socket;
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::link::Link;
use crate::transport::receiver::{Message, Receiver};

/// What the frames of a manager's connection hold is not `serde`'s.
pub(super) enum Frame {}

/// One end of a connection.
pub(super) enum Wire {
    /// Through shared memory.
    Near(Box<Connection<Frame, Frame>>),
    /// Over a socket, also to another machine: bytes alone.
    Far(Arc<Link>),
}

impl Wire {
    /// Makes a connection: this process's end, and the other's as a message tells it.
    pub(super) fn open() -> Result<(Self, Vec<u8>, Vec<OwnedFd>)> {
        let (ours, theirs) = duplex()?;
        let mut form = Vec::new();
        let mut outgoing = Outgoing::default();
        encode(&theirs, &mut form, &mut outgoing)?;
        let handles = std::mem::take(&mut outgoing.handles);
        Ok((Self::Near(Box::new(ours)), form, handles))
    }

    /// The other end, in the process that was told.
    pub(super) fn arrive(form: &[u8], handles: Vec<OwnedFd>) -> Result<Self> {
        let mut incoming = Incoming::new(handles, Vec::new());
        Ok(Self::Near(Box::new(decode(form, &mut incoming)?)))
    }

    /// The receiving end, if it is a ring.
    #[inline]
    pub(super) fn receiver(&self) -> Option<&Receiver> {
        match self {
            Self::Near(connection) => Some(connection.receiver().untyped()),
            Self::Far(_) => None,
        }
    }

    /// Where values can lie beside messages.
    pub(super) fn heap(&self) -> Option<Arc<Heap>> {
        match self {
            Self::Near(connection) => Some(Arc::clone(&connection.sender().memory().heap)),
            Self::Far(_) => None,
        }
    }

    pub(super) fn is_far(&self) -> bool {
        matches!(self, Self::Far(_))
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::Near(connection) => connection.receiver().untyped().side.socket(),
            Self::Far(link) => link.wire().socket(),
        }
    }

    /// Whether a message, or the end, is there.
    pub(super) fn has_message(&self) -> bool {
        match self {
            Self::Near(connection) => connection.receiver().untyped().side.ring.has_data(),
            Self::Far(link) => link.poll(Patience::Never).unwrap_or(true),
        }
    }

    #[inline]
    pub(super) fn send(
        &self,
        bytes: &[u8],
        outgoing: &mut Outgoing,
        patience: Patience,
    ) -> Result<(), Failure> {
        match self {
            Self::Near(connection) => {
                let sender = connection.sender().untyped();
                sender.send(TAG, bytes, outgoing, patience)
            }
            // What was to go beside it has been refused when it was encoded, but not what a
            // server keeps for others.
            Self::Far(_) if !outgoing.handles.is_empty() => {
                outgoing.discard();
                Err(Failure::Other(Error::new(
                    ErrorKind::Unsupported,
                    "the value holds handles of the server's machine (a connection, a queue, \
                     a lock, or shared memory), which cannot leave it",
                )))
            }
            Self::Far(link) => link.send(bytes, patience),
        }
    }

    #[inline]
    pub(super) fn receive(&self, patience: Patience) -> Result<Message, Failure> {
        let message = match self {
            Self::Near(connection) => connection.receiver().untyped().receive(patience)?,
            Self::Far(link) => return Ok(Message::of_bytes(TAG, link.receive(patience)?)),
        };
        if message.tag == TAG {
            return Ok(message);
        }
        Err(Failure::Other(Error::new(
            ErrorKind::Corrupt,
            "a frame of a manager's connection has another tag",
        )))
    }
}

/// A handle inside a message.
#[derive(Debug)]
pub(super) struct Handle(pub(super) OwnedFd);

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        socket::duplicate(self.0.as_fd())
            .map_err(|error| Error::os("copy a handle", error))
            .and_then(Outgoing::attach)
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        Incoming::detach(index).map(Self).map_err(D::Error::custom)
    }
}
