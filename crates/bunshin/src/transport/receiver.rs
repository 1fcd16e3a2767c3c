//! The receiving end of a channel.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{MutexGuard, OnceLock};

use super::Patience;
use super::channel::{BELL, Failure, HANDLES, SPIN_START, Side, Woken};
use super::frame::{self, Header};
use super::heirs::Watched;
use super::polled::Polled;
use crate::codec::attachments::{Beside, Incoming};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::{Block, Descriptor};
use crate::shm::layout::RING;
use crate::shm::lock::Taken;
use crate::shm::ring::{End, Known};
use crate::sys::mutex::ForkMutex;
use crate::sys::socket;
use crate::sys::thread;

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) side: Side,
    pub(super) state: ForkMutex<State>,
    pub(super) polled: OnceLock<Polled>,
    /// Handles that have come ahead of their frames, and which frames those are. Locked for moments
    /// only: this end may be given away while a thread waits at it.
    ahead: ForkMutex<VecDeque<(u64, OwnedFd)>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// What was last seen of the sender's position.
    tail: u64,
    spin: u64,
    /// How much of the ring's memory is there.
    known: Known,
    /// A sender's process, where the socket may not tell.
    pub(super) watched: Watched,
    pub(super) is_over: bool,
    /// Why this end can give nothing any more.
    broken: Option<String>,
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) tag: u32,
    body: Body,
    pub(crate) incoming: Incoming,
}

#[derive(Debug)]
enum Body {
    Copied(Vec<u8>),
    Block(Block),
}

impl Message {
    /// One that did not come through a ring.
    pub(crate) fn of_bytes(tag: u32, bytes: Vec<u8>) -> Self {
        Self {
            tag,
            body: Body::Copied(bytes),
            incoming: Incoming::default(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Copied(bytes) => bytes,
            Body::Block(block) => block.bytes(),
        }
    }

    /// The bytes, and where they already lie in shared memory, that memory.
    pub(crate) fn into_body(mut self) -> Result<Block, Vec<u8>> {
        match std::mem::replace(&mut self.body, Body::Copied(Vec::new())) {
            Body::Copied(bytes) => Err(bytes),
            Body::Block(block) => Ok(block),
        }
    }
}

thread_local! {
    /// The last small body's memory, for the next one.
    static SPARE: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Body::Copied(bytes) = &mut self.body {
            if (1..=RING).contains(&bytes.capacity()) {
                SPARE.set(std::mem::take(bytes));
            }
        }
    }
}

/// A peer says that it has sent what lies in memory that is not there.
#[cold]
fn missing() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "a pipe's positions name memory that nobody has written to",
    )
}

#[cold]
fn carries(byte: u8) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a pipe's socket carries byte {byte}"),
    )
}

impl Default for State {
    fn default() -> Self {
        Self {
            tail: 0,
            spin: SPIN_START,
            known: Known::default(),
            watched: Watched::default(),
            is_over: false,
            broken: None,
        }
    }
}

impl Receiver {
    pub(crate) fn new(side: Side, handles: VecDeque<(u64, OwnedFd)>) -> Self {
        Self {
            side,
            state: ForkMutex::new(State::default()),
            polled: OnceLock::new(),
            ahead: ForkMutex::new(handles),
        }
    }

    /// Takes the next message.
    ///
    /// A call that runs out of time has taken nothing.
    pub(crate) fn receive(&self, patience: Patience) -> Result<Message, Failure> {
        self.side.exclusively(patience, |taken| {
            let mut state = self.lock(taken);
            let message = match self.find(&mut state, patience) {
                Ok(()) => {
                    self.expect_byte();
                    self.take(&mut state)
                }
                Err(failure) => Err(failure),
            };
            self.settle(&mut state);
            message
        })
    }

    /// Waits for a message, and leaves it.
    pub(crate) fn poll(&self, patience: Patience) -> Result<bool, Failure> {
        let found = self.side.exclusively(patience, |taken| {
            let mut state = self.lock(taken);
            let found = self.find(&mut state, patience);
            self.settle(&mut state);
            found
        });
        match found {
            Ok(()) => Ok(true),
            Err(Failure::NotYet) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The state, mended if the process that used this end before has died at it.
    pub(super) fn lock(&self, taken: Taken) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if taken == Taken::Abandoned {
            if self.is_watched_by_many() {
                // It has armed the bell before it has read the byte.
                if !self.side.ring.has_data() {
                    self.answer_for_many(&mut state);
                }
                return state;
            }
            // It may have read the bell's byte without saying so: then nobody would ring again.
            let _ = self.read_socket(&mut state, false);
            self.side.ring.answered(End::Receiver);
        }
        state
    }

    fn find(&self, state: &mut State, patience: Patience) -> Result<(), Failure> {
        // By the tail that was seen last, as long as there is something before it: the sender is
        // about to write to that line again.
        if self.side.ring.filled(&mut state.tail).1 != 0 {
            Ok(())
        } else {
            self.wait_for_data(state, patience)
        }
    }

    /// Takes the frame that is there.
    fn take(&self, state: &mut State) -> Result<Message, Failure> {
        let ring = &self.side.ring;
        if let Some(why) = &state.broken {
            return Err(Failure::Other(Error::new(ErrorKind::Corrupt, why.clone())));
        }
        let (head, filled) = ring.filled(&mut state.tail);
        let header = if !(frame::HEADER..=RING).contains(&filled) {
            Err(Error::new(
                ErrorKind::Corrupt,
                "a pipe's positions make no sense",
            ))
        } else if !ring.is_there(&mut state.known, head, frame::HEADER) {
            Err(missing())
        } else {
            let mut bytes = [0; frame::HEADER];
            ring.take(head, &mut bytes);
            let header = Header::from_bytes(&bytes, filled - frame::HEADER);
            header.and_then(|header| {
                let len = frame::HEADER + header.len as usize;
                if ring.is_there(&mut state.known, head, len) {
                    Ok(header)
                } else {
                    Err(missing())
                }
            })
        };
        let header = match header {
            Ok(header) => header,
            Err(error) => {
                // Where the next frame starts is not known any more.
                state.broken = Some(error.to_string());
                return Err(Failure::Other(error));
            }
        };
        let mut at = head + frame::HEADER as u64;
        let mut lot = [0; frame::LOT];
        let mut named = usize::from(header.blocks) * Descriptor::SIZE;
        if header.handles != 0 {
            ring.take(at, &mut lot);
            at += frame::LOT as u64;
            named += frame::LOT;
        }
        let mut blocks = Vec::new();
        let mut bad = None;
        for _ in 0..header.blocks {
            let mut bytes = [0; Descriptor::SIZE];
            ring.take(at, &mut bytes);
            at += Descriptor::SIZE as u64;
            match self.side.heap.claim(Descriptor::from_bytes(&bytes)) {
                Ok(block) => blocks.push(block),
                Err(error) => bad = Some(error),
            }
        }
        let mut body = SPARE.take();
        let len = header.len as usize - named;
        // `resize` alone would fill again what is about to be overwritten.
        if body.len() < len {
            body.resize(len, 0);
        }
        body.truncate(len);
        ring.take(at, &mut body);
        let next = head + header.span() as u64;
        let ring_sender = ring.consume(head, next);
        let handles =
            self.collect_handles(state, u64::from_le_bytes(lot), usize::from(header.handles));
        if ring_sender {
            // If the sender is gone there is no one to wake.
            let _ = self.side.ring_peer();
        }
        let handles = handles?;
        if let Some(error) = bad {
            return Err(Failure::Other(error));
        }
        Ok(Self::message(header, body, blocks, handles)?)
    }

    fn message(
        header: Header,
        body: Vec<u8>,
        mut blocks: Vec<Block>,
        handles: Vec<OwnedFd>,
    ) -> Result<Message> {
        let body = match header.flags {
            0 => Body::Copied(body),
            frame::BODY_IN_BLOCK => match blocks.pop() {
                Some(block) => Body::Block(block),
                None => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "a frame's body should be in a block, and there is none",
                    ));
                }
            },
            frame::BODY_IN_HANDLE => {
                let len = body.try_into().map(u64::from_le_bytes);
                let len = len
                    .map_err(|_| Error::new(ErrorKind::Corrupt, "a frame's length is no number"))?;
                let last = (handles.len() as u32).wrapping_sub(1);
                let mut incoming = Incoming::new(handles, Vec::new());
                let block = incoming.take(Beside::Handle(last, len))?;
                let incoming = incoming.with_blocks(blocks);
                return Ok(Message {
                    tag: header.tag,
                    body: Body::Block(block),
                    incoming,
                });
            }
            flags => {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("a frame has flags {flags:#x}, which mean nothing"),
                ));
            }
        };
        Ok(Message {
            tag: header.tag,
            body,
            incoming: Incoming::new(handles, blocks),
        })
    }

    /// Takes the handles of a frame. They were sent before the frame was published.
    fn collect_handles(
        &self,
        state: &mut State,
        lot: u64,
        count: usize,
    ) -> Result<Vec<OwnedFd>, Failure> {
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let next = self.ahead.lock().pop_front();
            match next {
                Some((of, handle)) if of == lot => found.push(handle),
                // Of a frame that never came.
                Some(_) => {}
                None => {
                    let more = if self.is_copied() {
                        self.take_handles(state)
                    } else {
                        self.read_socket(state, false)
                    };
                    if !more.map_err(Failure::Other)? {
                        return Err(Failure::Other(Error::new(
                            ErrorKind::Corrupt,
                            "the handles of a message never came",
                        )));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether other processes may receive from this end as well. Then handles stay in the socket
    /// until their frame is taken, as another process may be the one that takes it.
    pub(super) fn is_copied(&self) -> bool {
        self.side.ring.is_copied(End::Receiver)
    }

    /// Looks at the socket, and reads the bells that come next. Says which byte comes after
    /// them, if any, and whether there were some.
    fn answer(&self, state: &mut State, wait: bool) -> Result<(Option<u8>, bool)> {
        let failed = |error| Error::os("receive handles over a pipe", error);
        let mut bytes = [0; 64];
        let count = match socket::glance(self.side.socket(), &mut bytes, wait) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Ok((None, false));
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(failed(error)),
        };
        if count == 0 {
            state.is_over = true;
            return Ok((None, false));
        }
        let bells = bytes[..count].iter().take_while(|byte| **byte == BELL);
        let bells = bells.count();
        if bells > 0 {
            let is_for_many = self.is_watched_by_many();
            if is_for_many {
                self.arm_for_many();
            }
            let read = &mut bytes[..bells];
            socket::receive(self.side.socket(), read, &mut Vec::new(), false).map_err(failed)?;
            if !is_for_many {
                self.side.ring.answered(End::Receiver);
            }
        }
        Ok((bytes[bells..count].first().copied(), bells > 0))
    }

    /// Reads one mark with its handles, which come next; false if there is none.
    ///
    /// In one call to the system: a process that is killed leaves a whole mark or none.
    pub(super) fn take_handles(&self, state: &mut State) -> Result<bool> {
        let next = loop {
            match self.answer(state, false)? {
                (None, true) => {}
                (None, false) => return Ok(false),
                (Some(next), _) => break next,
            }
        };
        let mut mark = [0; 1 + frame::LOT];
        let mut handles = Vec::new();
        let count = socket::receive(self.side.socket(), &mut mark, &mut handles, false)
            .map_err(|error| Error::os("receive handles over a pipe", error))?;
        if next != HANDLES || count != mark.len() {
            return Err(carries(next));
        }
        let lot = mark[1..].try_into().map_or(0, u64::from_le_bytes);
        let handles = handles.into_iter().map(|handle| (lot, handle));
        self.ahead.lock().extend(handles);
        Ok(true)
    }

    /// Drops handles of a frame that will never come, which are next in the socket.
    pub(super) fn drop_handles(&self, state: &mut State) -> Result<bool> {
        let were_there = self.take_handles(state)?;
        self.ahead.lock().clear();
        Ok(were_there)
    }

    /// Reads bells, and drops the handles of a frame that will never come; false if there was
    /// neither.
    pub(super) fn read_bells(&self, state: &mut State, wait: bool) -> Result<bool> {
        let ring = &self.side.ring;
        let (next, was_rung) = self.answer(state, wait)?;
        if was_rung || next.is_none() {
            return Ok(was_rung);
        }
        // Handles, ahead of their frame. Nobody who is sending, and no frame: it never comes.
        let is_stale = ring.lock(End::Sender).is_free() && !ring.has_data();
        if is_stale {
            self.drop_handles(state)?;
        }
        Ok(is_stale)
    }

    /// Reads bells and handles; false if there was nothing, or the sender is gone.
    pub(super) fn read_socket(&self, state: &mut State, wait: bool) -> Result<bool> {
        // Nobody gives this end away between the look at that and the end of the reading.
        let mut ahead = (!wait).then(|| self.ahead.lock());
        if self.is_copied() {
            drop(ahead);
            return self.read_bells(state, wait);
        }
        let mut handles = Vec::new();
        // While this waits, it may be given away: no more is read then than what ends the sleep.
        let mut bytes = [0; 64];
        let bytes = &mut bytes[..if wait { 1 } else { 64 }];
        let count = match socket::receive(self.side.socket(), bytes, &mut handles, wait) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(Error::os("receive handles over a pipe", error)),
        };
        if count == 0 {
            state.is_over = true;
            return Ok(false);
        }
        let mut next = &bytes[..count];
        while let Some((byte, rest)) = next.split_first() {
            match *byte {
                BELL => {
                    self.side.ring.answered(End::Receiver);
                    next = rest;
                }
                HANDLES => {
                    let mut lot = [0; frame::LOT];
                    let here = rest.len().min(lot.len());
                    lot[..here].copy_from_slice(&rest[..here]);
                    self.read_rest(&mut lot[here..])?;
                    // The kernel gives the handles of one mark at a time.
                    let lot = u64::from_le_bytes(lot);
                    let handles = handles.drain(..).map(|handle| (lot, handle));
                    ahead
                        .get_or_insert_with(|| self.ahead.lock())
                        .extend(handles);
                    next = &rest[here..];
                }
                other => return Err(carries(other)),
            }
        }
        Ok(true)
    }

    /// Reads the rest of a mark, which was written in one piece.
    fn read_rest(&self, rest: &mut [u8]) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        match socket::receive(self.side.socket(), rest, &mut Vec::new(), false) {
            Ok(count) if count == rest.len() => Ok(()),
            Ok(_) => Err(carries(HANDLES)),
            Err(error) => Err(Error::os("receive handles over a pipe", error)),
        }
    }

    fn wait_for_data(&self, state: &mut State, patience: Patience) -> Result<(), Failure> {
        let ring = &self.side.ring;
        if patience == Patience::Never {
            return Err(if self.is_finished(state)? {
                Failure::Disconnected
            } else {
                Failure::NotYet
            });
        }
        if ring.is_closed(End::Sender) || state.is_over {
            return if ring.has_data() {
                Ok(())
            } else {
                Err(Failure::Disconnected)
            };
        }
        if self.side.stay(&mut state.spin, || ring.has_data()) {
            return Ok(());
        }
        loop {
            ring.arm(End::Receiver);
            if ring.has_data() {
                self.disarm();
                return Ok(());
            }
            if ring.is_closed(End::Sender) || state.is_over {
                // The sender may have sent between the two looks.
                return if ring.has_data() {
                    Ok(())
                } else {
                    Err(Failure::Disconnected)
                };
            }
            if patience == Patience::Forever && self.side.is_told_by_socket() {
                // Reading is the sleep.
                self.be_rung(state)?;
                continue;
            }
            match self.side.sleep(&mut state.watched, patience)? {
                Woken::Rung => {
                    self.be_rung(state)?;
                    if patience.is_over() && !ring.has_data() {
                        self.disarm();
                        return Err(Failure::NotYet);
                    }
                }
                Woken::TooLate => {
                    self.disarm();
                    return Err(Failure::NotYet);
                }
                Woken::PeerEnded => {
                    self.disarm();
                    // What it sent before is still taken. Another sender may be forked later.
                    return if ring.has_data() {
                        Ok(())
                    } else {
                        Err(Failure::Disconnected)
                    };
                }
            }
        }
    }

    /// Reads what has come on the socket, or comes.
    fn be_rung(&self, state: &mut State) -> Result<(), Failure> {
        if self.is_watched_by_many() {
            return self.be_rung_with_others(state);
        }
        let was_read = self.read_socket(state, true).map_err(Failure::Other)?;
        if !was_read && !state.is_over {
            // Handles whose frame is about to be there: nothing rings until it is.
            thread::pause();
        }
        Ok(())
    }

    pub(super) fn disarm(&self) {
        // While users watch the socket, the bell stays armed.
        if !self.side.ring.is_watched(End::Receiver) {
            self.side.ring.disarm(End::Receiver);
        }
    }

    /// Whether the sender is gone and nothing is left to receive.
    fn is_finished(&self, state: &mut State) -> Result<bool, Failure> {
        let ring = &self.side.ring;
        let mut over = ring.is_closed(End::Sender) || state.is_over;
        if !over && socket::is_closed(self.side.socket()) {
            // Bells and handles that came before the end are read first.
            while !state.is_over && self.read_socket(state, false).map_err(Failure::Other)? {}
            over = true;
        }
        let over = over || self.side.is_forsaken(&mut state.watched);
        Ok(over && !ring.has_data())
    }

    /// Copies of handles that have come ahead of their frames, for the trip of this end.
    pub(crate) fn copy_pending(&self) -> Result<Vec<(u64, OwnedFd)>> {
        self.ahead
            .lock()
            .iter()
            .map(|(lot, handle)| Ok((*lot, socket::duplicate(handle.as_fd())?)))
            .collect::<std::io::Result<_>>()
            .map_err(|error| Error::os("duplicate a handle", error))
    }
}
