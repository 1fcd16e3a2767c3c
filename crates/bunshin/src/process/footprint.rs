//! The pages that a child writes to, so that the next one can have copies of them ahead.
//!
//! The children of a forkserver are copies of the same memory and begin alike; most of what they
//! cost is the copies of pages that they write to. So one that has done its work notes, in memory
//! that it shares with the server and all who come after, which pages it has come to have for
//! itself; and a spare child has these copied while it waits for its start.
//!
//! | State | Who makes it so |
//! |---|---|
//! | `UNKNOWN` | the server |
//! | `BEING_NOTED` | the first child that is done; it stays so if that is killed meanwhile, or has more to tell than there is room for |
//! | `KNOWN` | that child |
//!
//! What stands there is a hint. To copy a page changes nothing that a program could see, and
//! whoever reads the hint copies a limited number of them, wherever they may be.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::sys::memory::PAGE;
use crate::sys::pages::{self, Run, Words};
use crate::sys::socket::{self, Interest};

const UNKNOWN: u64 = 0;
const BEING_NOTED: u64 = 1;
const KNOWN: u64 = 2;

/// A child that has more pages for itself than these 4 MiB has done more than others will.
const MOST_PAGES: usize = 1024;

/// How many pages a spare copies, of some microseconds each, before it looks whether it is wanted.
const AT_ONCE: usize = 16;

/// Pages of memory for the words: the state, how many runs there are, and a word for each.
const MEMORY: usize = 2;

/// The part of a run's word that says how many pages it has; the rest is the address.
const COUNT: u64 = PAGE as u64 - 1;

/// What the children of one server know of the pages that they write to.
pub(super) struct Footprint(Words);

impl Footprint {
    /// To be made in the server.
    pub(super) fn new() -> std::io::Result<Self> {
        Words::new(MEMORY).map(Self)
    }

    /// In a child that is done: notes what it has written to, unless that is known.
    pub(super) fn note(&self) {
        let [state, count, runs @ ..] = self.0.all() else {
            return;
        };
        let begun =
            state.compare_exchange(UNKNOWN, BEING_NOTED, Ordering::Relaxed, Ordering::Relaxed);
        if begun.is_err() {
            return;
        }
        match pages::own(MOST_PAGES) {
            Ok(Some(own)) if own.len() <= runs.len() => {
                for (word, run) in runs.iter().zip(&own) {
                    word.store(run.start as u64 | run.pages as u64, Ordering::Relaxed);
                }
                count.store(own.len() as u64, Ordering::Relaxed);
                state.store(KNOWN, Ordering::Release);
            }
            // Another one may have less to tell.
            Ok(_) => state.store(UNKNOWN, Ordering::Relaxed),
            // The system does not say.
            Err(_) => {}
        }
    }

    /// In a child that waits for its start message: copies what it is going to write to, until
    /// that comes.
    pub(super) fn take_ahead(&self, control: &OwnedFd) {
        let [state, count, runs @ ..] = self.0.all() else {
            return;
        };
        if state.load(Ordering::Acquire) != KNOWN {
            return;
        }
        let count = usize::try_from(count.load(Ordering::Relaxed)).unwrap_or(0);
        let runs = runs.iter().take(count).map(|word| {
            let word = word.load(Ordering::Relaxed);
            Run {
                start: (word & !COUNT) as usize,
                pages: (word & COUNT) as usize,
            }
        });
        let (mut taken, mut looked_at) = (0, 0);
        let mut ready = Vec::with_capacity(1);
        pages::take(runs, |run| {
            taken += run.pages;
            if taken < looked_at + AT_ONCE {
                return false;
            }
            looked_at = taken;
            let watched = [(control.as_fd(), Interest::Readable)];
            let wanted = socket::poll(&watched, Some(Instant::now()), &mut ready);
            taken > MOST_PAGES || !matches!(wanted, Ok(0))
        });
    }
}
