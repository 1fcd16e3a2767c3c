#![doc = include_str!("LAYOUT.md")]
#![allow(unsafe_code)]

pub(crate) mod arena;
mod atomic;
pub(crate) mod barrier;
pub(crate) mod cell;
pub(crate) mod condition;
pub(crate) mod event;
pub(crate) mod gate;
pub(crate) mod heap;
pub(crate) mod holders;
pub(crate) mod layout;
pub(crate) mod linger;
pub(crate) mod lock;
pub(crate) mod map;
pub(crate) mod memory;
pub(crate) mod owned;
pub(crate) mod pinned;
pub(crate) mod queue;
pub(crate) mod reentrant;
mod region;
pub(crate) mod ring;
#[cfg(not(loom))]
pub(crate) mod segment;
#[cfg(loom)]
#[path = "loom_segment.rs"]
pub(crate) mod segment;
pub(crate) mod semaphore;
pub(crate) mod side;
pub(crate) mod table;
pub(crate) mod tracker;

#[cfg(not(loom))]
use crate::sys::thread as system;
#[cfg(loom)]
#[path = "loom_system.rs"]
mod system;

/// A place at which a model's thread can be killed, or another one go on. Any is, in earnest.
#[inline]
fn step() {
    #[cfg(loom)]
    system::step();
}

#[cfg(all(test, loom))]
mod loom_tests;
