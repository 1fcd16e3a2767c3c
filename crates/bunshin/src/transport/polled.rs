//! The descriptor of a receiving end for `select`, `poll` and event loops.
//!
//! It is readable while there is a message. Where one process has the end, it says by an event of
//! its own what it knows to be left. Where several have it, what all of them see is the
//! bell's byte in the socket, which stays there as long as there is a message: an event would tell
//! one process only, and go on to do so after another one has taken the message.
//!
//! All of this happens under the receiving side's lock, which the processes share.

use std::io::ErrorKind::{ConnectionReset, WouldBlock};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Patience;
use super::channel::{BELL, Failure, HANDLES};
use super::heirs::Watched;
use super::receiver::{Receiver, State};
use crate::error::{Error, ErrorKind};
use crate::shm::ring::End;
use crate::sys::socket;
use crate::sys::thread;

/// How long to wait for a sender that is about to ring. It takes longer only if it was stopped.
const ABOUT_TO_RING: Duration = Duration::from_secs(1);

/// How long to wait for somebody who receives, unless they wait themselves.
const ABOUT_TO_END: Duration = Duration::from_millis(20);

/// The handle that says by itself whether there is a message.
#[derive(Debug)]
pub(super) struct Polled {
    /// Readable while any of the socket and `known` is: the handle that users get.
    set: OwnedFd,
    /// Set by this end while it knows of messages that the socket does not tell of.
    known: OwnedFd,
}

impl Receiver {
    /// A handle that is readable exactly while there is a message, or the sender is gone.
    pub(crate) fn fileno(&self) -> Result<BorrowedFd<'_>, Failure> {
        if self.polled.get().is_none() {
            let os = |error| Failure::Other(Error::os("make a handle to watch a pipe by", error));
            let known = socket::event().map_err(os)?;
            let set = socket::any_of(&[self.side.socket(), known.as_fd()]).map_err(os)?;
            // If another thread was quicker, its handle is as good.
            let _ = self.polled.set(Polled { set, known });
            let ring = &self.side.ring;
            ring.watch(End::Receiver);
            ring.arm(End::Receiver);
            if !ring.is_rung(End::Receiver) {
                ring.note_untold();
            }
            let settled = self
                .side
                .exclusively(Patience::within(ABOUT_TO_END), |taken| {
                    let mut state = self.lock(taken);
                    self.settle(&mut state);
                    Ok(())
                });
            match settled {
                // Who waits for a message settles when it has come.
                Ok(()) | Err(Failure::NotYet) => {}
                Err(failure) => return Err(failure),
            }
        }
        match self.polled.get() {
            Some(polled) => Ok(polled.set.as_fd()),
            None => Err(Failure::Other(Error::new(
                ErrorKind::Os,
                "make a handle to watch a pipe by",
            ))),
        }
    }

    /// Whether other processes may watch this end's socket, or receive from it while this one does.
    pub(super) fn is_watched_by_many(&self) -> bool {
        self.side.ring.is_watched(End::Receiver) && self.is_copied()
    }

    /// Makes the handles that users watch say whether there is a message.
    #[inline]
    pub(super) fn settle(&self, state: &mut State) {
        if self.side.ring.is_watched(End::Receiver) {
            self.settle_watched(state);
        }
    }

    #[cold]
    fn settle_watched(&self, state: &mut State) {
        let ring = &self.side.ring;
        let is_for_many = self.is_copied();
        if !ring.has_data() && ring.is_rung(End::Receiver) {
            if is_for_many {
                self.answer_for_many(state);
            } else {
                // The byte of a message that has been received already: it is there, or about to be.
                self.wait_for_sender(|| ring.has_data());
                let _ = self.read_socket(state, false);
            }
        }
        if is_for_many || !ring.has_data() {
            ring.arm(End::Receiver);
        }
        let Some(polled) = self.polled.get() else {
            return;
        };
        let is_told = is_for_many && (ring.is_rung(End::Receiver) || !ring.is_untold());
        let is_left = ring.has_data() && !is_told;
        if is_left || ring.is_closed(End::Sender) || state.is_over {
            socket::event_set(polled.known.as_fd());
        } else {
            socket::event_clear(polled.known.as_fd());
        }
    }

    /// Has whoever sends from now on ring. What is there already has no byte, or is about to lose it.
    pub(super) fn arm_for_many(&self) {
        let ring = &self.side.ring;
        ring.arm_again(End::Receiver);
        ring.note_untold();
    }

    /// Reads the byte that the bell was rung with, unless there is something for it to stand for,
    /// and what else has no meaning.
    pub(super) fn answer_for_many(&self, state: &mut State) {
        let ring = &self.side.ring;
        let mut is_owed = ring.is_rung(End::Receiver);
        if is_owed {
            // Whoever has sent what was taken may not have looked at the bell yet, and is not to ring
            // it once it has been armed again.
            self.wait_for_sender(|| ring.has_data());
            if ring.has_data() {
                return;
            }
        }
        ring.arm_again(End::Receiver);
        if is_owed && ring.has_data() && ring.keep_rung(End::Receiver) {
            return;
        }
        loop {
            let mut byte = [0];
            match socket::glance(self.side.socket(), &mut byte, false) {
                Ok(0) => state.is_over = true,
                // Where nobody has rung since: of a sender that was killed, whose successor has rung
                // again.
                Ok(_) if byte[0] == BELL && (is_owed || !ring.is_rung(End::Receiver)) => {
                    is_owed = false;
                    let none = &mut Vec::new();
                    if socket::receive(self.side.socket(), &mut byte, none, false).is_ok() {
                        continue;
                    }
                }
                // Handles of a frame that never comes.
                Ok(_)
                    if byte[0] == HANDLES
                        && ring.lock(End::Sender).is_free()
                        && !ring.has_data()
                        && self.drop_handles(state).is_ok_and(|dropped| dropped) =>
                {
                    continue;
                }
                Err(error) if error.kind() == ConnectionReset => state.is_over = true,
                _ => {}
            }
            return;
        }
    }

    /// Waits for the sender to ring for the message that is about to be taken, where its byte would
    /// tell others that there is one afterwards.
    #[inline]
    pub(super) fn expect_byte(&self) {
        if self.side.ring.is_watched(End::Receiver) {
            self.expect_byte_for_many();
        }
    }

    #[cold]
    fn expect_byte_for_many(&self) {
        let ring = &self.side.ring;
        if !self.is_copied() {
            return;
        }
        ring.arm(End::Receiver);
        self.wait_for_sender(|| ring.is_rung(End::Receiver) || ring.is_untold());
    }

    /// Waits until nobody is sending, or there is nothing to wait for.
    fn wait_for_sender(&self, is_enough: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_enough()
            && !self.side.ring.lock(End::Sender).is_free()
            && since.elapsed() < ABOUT_TO_RING
        {
            thread::give_way();
        }
    }

    /// Waits for something on the socket. Leaves the bell's byte there if it stands for a message.
    pub(super) fn be_rung_with_others(&self, state: &mut State) -> Result<(), Failure> {
        let ring = &self.side.ring;
        match socket::glance(self.side.socket(), &mut [0], true) {
            Ok(0) => state.is_over = true,
            Ok(_) => {}
            Err(error) if error.kind() == ConnectionReset => state.is_over = true,
            Err(error) if error.kind() == WouldBlock => return Ok(()),
            Err(error) => {
                return Err(Failure::Other(Error::os(
                    "receive handles over a pipe",
                    error,
                )));
            }
        }
        if state.is_over || ring.has_data() {
            return Ok(());
        }
        if ring.is_rung(End::Receiver) {
            self.answer_for_many(state);
        } else if !self.read_bells(state, false).map_err(Failure::Other)? {
            // Handles whose frame is about to be there: nothing rings until it is.
            thread::pause();
        }
        Ok(())
    }

    /// Asks to be woken through the socket; true if there is something already.
    pub(crate) fn begin_watch(&self) -> bool {
        let ring = &self.side.ring;
        ring.arm(End::Receiver);
        ring.has_data() || ring.is_closed(End::Sender) || self.is_forsaken()
    }

    /// Whether the socket may not tell that the sender is gone.
    pub(crate) fn may_end_unheard(&self) -> bool {
        !self.side.is_told_by_socket()
    }

    fn is_forsaken(&self) -> bool {
        self.side.is_forsaken(&mut Watched::default())
    }

    /// Ends what `begin_watch` began; true if there is something.
    pub(crate) fn end_watch(&self) -> Result<bool, Failure> {
        let ring = &self.side.ring;
        let ended = self.side.exclusively(Patience::Never, |taken| {
            let mut state = self.lock(taken);
            if self.is_watched_by_many() && !socket::is_closed(self.side.socket()) {
                // While there is a message its byte stays, for the others.
                if !ring.has_data() {
                    self.answer_for_many(&mut state);
                }
            } else {
                while !state.is_over
                    && self
                        .read_socket(&mut state, false)
                        .map_err(Failure::Other)?
                {}
            }
            self.disarm();
            self.settle(&mut state);
            Ok(state.is_over || self.side.is_forsaken(&mut state.watched))
        });
        match ended {
            Ok(is_over) => Ok(ring.has_data() || ring.is_closed(End::Sender) || is_over),
            // Somebody else receives from this end, and answers its bell.
            Err(Failure::NotYet) => Ok(ring.has_data() || ring.is_closed(End::Sender)),
            Err(failure) => Err(failure),
        }
    }
}
