//! The sending end of a channel.

use std::os::fd::{AsFd, BorrowedFd};

use super::Patience;
use super::channel::{Failure, HANDLES, SPIN_START, Side, Woken};
use super::frame::{self, Header};
use super::heirs::Watched;
use crate::codec::attachments::{Beside, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::Descriptor;
use crate::shm::lock::Taken;
use crate::shm::ring::{End, Known};
use crate::sys::mutex::ForkMutex;
use crate::sys::socket::{self, Interest};
use crate::sys::thread;

/// Ticks between two looks at whether the receiver is still there.
const LOOK_EVERY: u64 = 100_000;

/// What asking for room has come to.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room.
    There,
    /// There is none. Once there is, the receiver writes to the socket, or has its end closed.
    Asked,
    /// Somebody else is sending by this end.
    InUse,
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) side: Side,
    state: ForkMutex<State>,
}

#[derive(Debug)]
struct State {
    /// What was last seen of the receiver's position.
    head: u64,
    /// When the receiver was last seen alive.
    looked: u64,
    spin: u64,
    /// How much of the ring's memory is there.
    known: Known,
    /// A receiver's process, where the socket may not tell.
    watched: Watched,
}

impl Default for State {
    fn default() -> Self {
        Self {
            head: 0,
            looked: 0,
            spin: SPIN_START,
            known: Known::default(),
            watched: Watched::default(),
        }
    }
}

impl Sender {
    pub(crate) fn new(side: Side) -> Self {
        Self {
            side,
            state: ForkMutex::new(State::default()),
        }
    }

    /// Sends one message: the bytes, and what goes beside them.
    ///
    /// Either all of it is sent, or nothing.
    pub(crate) fn send(
        &self,
        tag: u32,
        bytes: &[u8],
        outgoing: &mut Outgoing,
        patience: Patience,
    ) -> Result<(), Failure> {
        self.send_spanning(tag, bytes, outgoing, patience, &mut 0)
    }

    /// As [`send`](Self::send); says how many bytes of the ring the message takes.
    pub(crate) fn send_spanning(
        &self,
        tag: u32,
        bytes: &[u8],
        outgoing: &mut Outgoing,
        patience: Patience,
        span: &mut usize,
    ) -> Result<(), Failure> {
        let sent = self.try_to_send(tag, bytes, outgoing, patience, span);
        match sent {
            Ok(()) => outgoing.sent(),
            Err(_) => outgoing.discard(),
        }
        sent
    }

    fn try_to_send(
        &self,
        tag: u32,
        payload: &[u8],
        outgoing: &mut Outgoing,
        patience: Patience,
        span: &mut usize,
    ) -> Result<(), Failure> {
        let mut flags = 0;
        if payload.len() > frame::INSIDE_MAX {
            match outgoing.place(payload)? {
                // The receiver looks for the body in the last one.
                Beside::Block(_) => flags = frame::BODY_IN_BLOCK,
                Beside::Handle(..) => flags = frame::BODY_IN_HANDLE,
            }
        }
        let length = (payload.len() as u64).to_le_bytes();
        let bytes = if flags == 0 { payload } else { &length[..] };
        if outgoing.blocks.len() > frame::BLOCKS_MAX || outgoing.handles.len() > frame::HANDLES_MAX
        {
            return Err(Failure::Other(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a message holds {} large buffers and {} handles; {} and {} fit",
                    outgoing.blocks.len(),
                    outgoing.handles.len(),
                    frame::BLOCKS_MAX,
                    frame::HANDLES_MAX
                ),
            )));
        }
        let lot = if outgoing.handles.is_empty() {
            0
        } else {
            frame::LOT
        };
        let header = Header {
            len: (lot + outgoing.blocks.len() * Descriptor::SIZE + bytes.len()) as u32,
            tag,
            handles: outgoing.handles.len() as u16,
            blocks: outgoing.blocks.len() as u16,
            flags,
        };
        *span = header.span();
        self.side.exclusively(patience, |taken| {
            self.write(header, bytes, outgoing, taken, patience)
        })
    }

    /// Puts right what a sender has left that died at it.
    fn mend(&self) -> Result<(), Failure> {
        let ring = &self.side.ring;
        // It may have died after it moved the receiver's bell and before it rang it, or after
        // it read its own bell's byte and before it said so.
        self.drain(&mut Vec::new());
        ring.answered(End::Sender);
        ring.ring_anyway(End::Receiver);
        self.side.ring_peer()
    }

    /// Looks whether there is room for so many bytes, and asks to be rung if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn ask_for_room(&self, span: usize) -> Result<Room, Failure> {
        let asked = self.side.exclusively(Patience::Never, |taken| {
            let mut state = self.state.lock();
            let ring = &self.side.ring;
            if taken == Taken::Abandoned {
                self.mend()?;
            }
            if !self.drain(&mut Vec::new()) {
                return Err(Failure::Disconnected);
            }
            ring.arm(End::Sender);
            if ring.room(&mut state.head, span).1 >= span {
                ring.disarm(End::Sender);
                Ok(Room::There)
            } else if ring.is_closed(End::Receiver) {
                Err(Failure::Disconnected)
            } else {
                Ok(Room::Asked)
            }
        });
        match asked {
            Err(Failure::NotYet) => Ok(Room::InUse),
            asked => asked,
        }
    }

    fn write(
        &self,
        header: Header,
        bytes: &[u8],
        outgoing: &Outgoing,
        taken: Taken,
        patience: Patience,
    ) -> Result<(), Failure> {
        let mut state = self.state.lock();
        let ring = &self.side.ring;
        if taken == Taken::Abandoned {
            self.mend()?;
        }
        if ring.is_closed(End::Receiver) {
            return Err(Failure::Disconnected);
        }
        let now = thread::ticks();
        if now.wrapping_sub(state.looked) > LOOK_EVERY {
            if socket::is_closed(self.side.socket()) || self.side.is_forsaken(&mut state.watched) {
                return Err(Failure::Disconnected);
            }
            state.looked = now;
        }
        let span = header.span();
        let (tail, mut free) = ring.room(&mut state.head, span);
        while free < span {
            self.wait_for_room(&mut state, span, patience)?;
            (_, free) = ring.room(&mut state.head, span);
        }
        // Before anything of the message can be seen: without memory for it, nothing is sent.
        let known = ring.reserve(state.known, tail, span)?;
        // Tells these handles from those of a frame that never came, as its sender ran out of
        // time, or died, in between.
        let lot = thread::ticks().to_le_bytes();
        if !outgoing.handles.is_empty() {
            let handles: Vec<BorrowedFd<'_>> = outgoing.handles.iter().map(AsFd::as_fd).collect();
            let mut mark = [HANDLES; 1 + frame::LOT];
            mark[1..].copy_from_slice(&lot);
            for chunk in handles.chunks(socket::HANDLES_AT_ONCE) {
                self.push_handles(&mark, chunk, patience)?;
            }
        }
        ring.put(tail, &header.to_bytes());
        let mut at = tail + frame::HEADER as u64;
        if header.handles != 0 {
            ring.put(at, &lot);
            at += frame::LOT as u64;
        }
        for descriptor in &outgoing.blocks {
            ring.put(at, &descriptor.to_bytes());
            at += Descriptor::SIZE as u64;
        }
        ring.put(at, bytes);
        state.known = known;
        let end = tail + span as u64;
        // The processor number costs a few nanoseconds: now and then is enough.
        if tail == 0 || (tail ^ end) & !1023 != 0 {
            ring.set_cpu(End::Sender, thread::cpu());
        }
        if ring.publish(end) {
            self.side.ring_peer()
        } else {
            Ok(())
        }
    }

    /// Writes to the socket what handles go with, waiting for room there.
    fn push_handles(
        &self,
        mark: &[u8],
        handles: &[BorrowedFd<'_>],
        patience: Patience,
    ) -> Result<(), Failure> {
        loop {
            match socket::send(self.side.socket(), mark, handles, false) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if patience.is_over() {
                        return Err(Failure::NotYet);
                    }
                    let mut ready = Vec::new();
                    socket::poll(
                        &[(self.side.socket(), Interest::Any)],
                        patience.deadline(),
                        &mut ready,
                    )
                    .map_err(|error| {
                        Failure::Other(Error::os("wait for room for handles", error))
                    })?;
                    // The receiver's bells would be read as ready for ever.
                    self.drain(&mut Vec::new());
                }
                Err(error) => return Err(Error::os("send handles over a pipe", error).into()),
            }
        }
    }

    /// Reads what the receiver has rung; false once it is gone.
    fn drain(&self, dropped: &mut Vec<std::os::fd::OwnedFd>) -> bool {
        let mut bytes = [0; 64];
        match socket::receive(self.side.socket(), &mut bytes, dropped, false) {
            Ok(0) => false,
            Ok(_) => {
                self.side.ring.answered(End::Sender);
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn wait_for_room(
        &self,
        state: &mut State,
        span: usize,
        patience: Patience,
    ) -> Result<(), Failure> {
        let ring = &self.side.ring;
        let mut head = state.head;
        let has_room = |head: &mut u64| ring.room(head, span).1 >= span;
        if patience == Patience::Never {
            let is_gone =
                socket::is_closed(self.side.socket()) || self.side.is_forsaken(&mut state.watched);
            return Err(if is_gone {
                Failure::Disconnected
            } else {
                Failure::NotYet
            });
        }
        if self
            .side
            .linger(&mut state.spin, || has_room(&mut { head }))
        {
            return Ok(());
        }
        loop {
            ring.arm(End::Sender);
            if has_room(&mut head) {
                ring.disarm(End::Sender);
                state.head = head;
                return Ok(());
            }
            if ring.is_closed(End::Receiver) {
                return Err(Failure::Disconnected);
            }
            match self.side.sleep(&mut state.watched, patience)? {
                Woken::Rung => {}
                Woken::TooLate => {
                    ring.disarm(End::Sender);
                    return Err(Failure::NotYet);
                }
                Woken::PeerEnded => return Err(Failure::Disconnected),
            }
            if !self.drain(&mut Vec::new()) {
                return Err(Failure::Disconnected);
            }
        }
    }

    /// Whether the receiving end is gone.
    pub(crate) fn is_disconnected(&self) -> bool {
        self.side.ring.is_closed(End::Receiver)
            || socket::is_closed(self.side.socket())
            || self.side.is_forsaken(&mut Watched::default())
    }
}
