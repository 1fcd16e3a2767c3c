//! The atomics of this layer: the standard library's, or loom's under `--cfg loom`.
//!
//! Loom's atomics are larger than the words that they stand for and cannot lie in mapped
//! memory. Under it, `segment` and `system` are models (`loom_segment.rs`,
//! `loom_system.rs`), and everything between them and the tests is the code that runs in
//! earnest.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// Four bytes that nobody uses. A peer may write them all the same.
#[cfg(not(loom))]
pub(crate) type Unused = AtomicU32;
/// Nothing that would have to be modelled.
#[cfg(loom)]
pub(crate) type Unused = u32;
