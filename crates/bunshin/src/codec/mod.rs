//! Values to bytes and back, with what travels beside the bytes.
//!
//! - `serde`: the only place that knows the encoding of values.
//! - `attachments`: handles and shared blocks, named by index inside the bytes.
//! - `buffer`: the public [`Buffer`](crate::Buffer), which goes out of band.
//! - `outcome`: how a call in another process ended.

pub(crate) mod attachments;
pub(crate) mod buffer;
pub(crate) mod outcome;
pub(crate) mod serde;
