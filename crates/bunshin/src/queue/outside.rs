//! What belongs to a queue beside its memory: a socket for the handles inside items, and the
//! bell that says to `poll` whether there is an item.
//!
//! Each item with handles is one packet, with the name that its record has too. A packet is
//! looked at before its item is taken, and removed after: a consumer that is killed in between
//! takes nothing along. Packets of other names are of items that never came, or were taken by
//! somebody who died before removing them; they come first and are dropped.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Error, ErrorKind, Result};
use crate::shm::queue::Outside;
use crate::sys::socket;

/// The handles that every process with the queue has, beside that of the memory.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) inlet: OwnedFd,
    pub(super) outlet: OwnedFd,
    pub(super) bell: OwnedFd,
}

impl Ends {
    pub(super) fn new() -> Result<Self> {
        let os = |error| Error::os("make a queue", error);
        let (inlet, outlet) = socket::packet_pair().map_err(os)?;
        let bell = socket::event().map_err(os)?;
        Ok(Self {
            inlet,
            outlet,
            bell,
        })
    }
}

/// The ends during one call, with the handles of its item.
pub(super) struct Call<'a> {
    ends: &'a Ends,
    handles: RefCell<Vec<OwnedFd>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(ends: &'a Ends, handles: Vec<OwnedFd>) -> Self {
        Self {
            ends,
            handles: RefCell::new(handles),
        }
    }

    pub(super) fn into_handles(self) -> Vec<OwnedFd> {
        self.handles.into_inner()
    }
}

impl Outside for Call<'_> {
    fn send_handles(&self, lot: u64) -> Result<()> {
        let handles = self.handles.borrow();
        let handles: Vec<_> = handles.iter().map(AsFd::as_fd).collect();
        socket::send(self.ends.inlet.as_fd(), &lot.to_le_bytes(), &handles, false)
            .map(drop)
            .map_err(|error| Error::os("send the handles of a queue's item", error))
    }

    fn fetch_handles(&self, lot: u64, count: usize) -> Result<()> {
        loop {
            let mut handles = Vec::new();
            let mut name = [0; 8];
            let outlet = self.ends.outlet.as_fd();
            match socket::peek(outlet, &mut name, &mut handles) {
                Ok(8) if name == lot.to_le_bytes() => {
                    if handles.len() != count {
                        return Err(Error::new(
                            ErrorKind::Corrupt,
                            format!("an item has {} handles instead of {count}", handles.len()),
                        ));
                    }
                    self.handles.replace(handles);
                    return Ok(());
                }
                // Of an item that never came, or is gone.
                Ok(_) => self.drop_handles(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "the handles of a queue's item are not there",
                    ));
                }
                // Such as too many open files: the item stays.
                Err(error) => return Err(Error::os("receive the handles of an item", error)),
            }
        }
    }

    fn drop_handles(&self) {
        // That there is no room for these copies is no matter: the packet is gone all the same.
        let _ = socket::receive(
            self.ends.outlet.as_fd(),
            &mut [0; 8],
            &mut Vec::new(),
            false,
        );
    }

    fn light(&self) {
        socket::event_set(self.ends.bell.as_fd());
    }

    fn darken(&self) {
        socket::event_clear(self.ends.bell.as_fd());
    }
}
