//! Values to bytes and back, with what travels beside the bytes.
//!
//! - `serde`: values to bytes and back, with what goes beside them.
//! - `format`: what those bytes mean; `writer` and `reader` make and read them, and
//!   `one_byte` sees to it that vectors of bytes are not written number by number.
//! - `attachments`: handles and shared blocks, named by index inside the bytes.
//! - `buffer`: the public [`Buffer`](crate::Buffer), which goes out of band.
//! - `outcome`: how a call in another process ended.

pub(crate) mod attachments;
pub(crate) mod buffer;
pub(crate) mod format;
mod one_byte;
pub(crate) mod outcome;
mod reader;
pub(crate) mod serde;
mod writer;

#[cfg(test)]
mod test;
