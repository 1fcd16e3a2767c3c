//! The work that every peer does alike: what is sent, done and checked.
//!
//! - `link.rs`: messages between two processes (round trips, one way).
//! - `start.rs`: starting a process for one result.
//! - `pool.rs`: many trivial tasks.
//! - `arrays.rs`: a map over large arrays.
//! - `locks.rs`: locks, and signals that wake a process.
//! - `queue.rs`: many producers and consumers on one queue.

pub mod arrays;
pub mod link;
pub mod locks;
pub mod pool;
pub mod queue;
pub mod start;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::measure::{self, Result};

/// Which way the messages of a link go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// There and back, one message at a time. Measures seconds a round trip.
    RoundTrip,
    /// One way, as many as the peer takes. Measures seconds a message.
    OneWay,
}

/// The size and shape of a row's work. Fields a row does not use are zero.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Work {
    pub pattern: Pattern,
    /// Bytes of a message, or of an array.
    pub size_bytes: usize,
    /// Arrays in a map.
    pub n_arrays: usize,
    /// Bytes of heap that the parent has touched before it starts processes.
    pub heap_bytes: usize,
    /// Both processes share one core.
    pub one_core: bool,
    /// Arrays come back changed; otherwise their sums come back.
    pub changed: bool,
    /// The first run counts, and no other.
    pub cold: bool,
    /// Time to spend on samples.
    pub budget: Duration,
}

impl Work {
    /// No work; rows set the fields they need.
    pub const NONE: Work = Work {
        pattern: Pattern::RoundTrip,
        size_bytes: 0,
        n_arrays: 0,
        heap_bytes: 0,
        one_core: false,
        changed: false,
        cold: false,
        budget: Duration::ZERO,
    };

    /// The core of the measuring process and the core of its child.
    pub fn cores(&self) -> Result<(usize, usize)> {
        if self.one_core {
            measure::one_core()
        } else {
            measure::two_cores()
        }
    }

    /// Bytes of what the child sends back.
    pub fn reply_bytes(&self) -> usize {
        match self.pattern {
            Pattern::RoundTrip => self.size_bytes,
            Pattern::OneWay => link::HEADER_BYTES,
        }
    }
}

/// Workers in the pool and map rows.
pub const N_WORKERS: usize = 2;
