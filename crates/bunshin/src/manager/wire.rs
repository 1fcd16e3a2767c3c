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
use crate::transport::receiver::{Message, Receiver};
use crate::transport::sender::Sender;

/// What the frames of a manager's connection hold is not `serde`'s.
enum Frame {}

/// One end of a connection.
pub(super) struct Wire(Connection<Frame, Frame>);

impl Wire {
    /// Makes a connection: this process's end, and the other's as a message tells it.
    pub(super) fn open() -> Result<(Self, Vec<u8>, Vec<OwnedFd>)> {
        let (ours, theirs) = duplex()?;
        let mut form = Vec::new();
        let mut outgoing = Outgoing::default();
        encode(&theirs, &mut form, &mut outgoing)?;
        let handles = std::mem::take(&mut outgoing.handles);
        Ok((Self(ours), form, handles))
    }

    /// The other end, in the process that was told.
    pub(super) fn arrive(form: &[u8], handles: Vec<OwnedFd>) -> Result<Self> {
        let mut incoming = Incoming::new(handles, Vec::new());
        Ok(Self(decode(form, &mut incoming)?))
    }

    #[inline]
    pub(super) fn sender(&self) -> &Sender {
        self.0.sender().untyped()
    }

    #[inline]
    pub(super) fn receiver(&self) -> &Receiver {
        self.0.receiver().untyped()
    }

    pub(super) fn heap(&self) -> Arc<Heap> {
        Arc::clone(&self.0.sender().memory().heap)
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.receiver().side.socket()
    }

    pub(super) fn send(
        &self,
        bytes: &[u8],
        outgoing: &mut Outgoing,
        patience: Patience,
    ) -> Result<(), Failure> {
        self.sender().send(TAG, bytes, outgoing, patience)
    }

    pub(super) fn receive(&self, patience: Patience) -> Result<Message, Failure> {
        let message = self.receiver().receive(patience)?;
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
