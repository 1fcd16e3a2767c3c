//! The header of a frame in a ring, as PROTOCOL.md gives it.

use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::Descriptor;
use crate::shm::layout::RING;

/// Frames start at multiples of this.
pub(crate) const ALIGN: usize = 16;
/// Bytes of a header.
pub(crate) const HEADER: usize = 16;
/// Bytes that say which handles are a frame's.
pub(crate) const LOT: usize = 8;
/// The longest body that goes inside a ring; a frame takes a quarter of it at most.
pub(crate) const BODY_MAX: usize = RING / 4 - HEADER;
/// The longest encoded value or raw payload that goes inside a ring.
pub(crate) const INSIDE_MAX: usize = 8 << 10;
/// Blocks beside one message that are named in its frame.
pub(crate) const BLOCKS_MAX: usize = (BODY_MAX - INSIDE_MAX - LOT) / Descriptor::SIZE;
/// Handles beside one message.
pub(crate) const HANDLES_MAX: usize = 8192;

/// The body is the first memory that came beside the message: block 0, or handle 0.
pub(crate) const BODY_IN_BLOCK: u16 = 1;
/// See [`BODY_IN_BLOCK`].
pub(crate) const BODY_IN_HANDLE: u16 = 2;

/// The tag of raw bytes; every type has another one.
pub(crate) const RAW: u32 = 0;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes that follow the header: descriptors of blocks, then the encoded value.
    pub(crate) len: u32,
    /// Which type the value has.
    pub(crate) tag: u32,
    pub(crate) handles: u16,
    pub(crate) blocks: u16,
    pub(crate) flags: u16,
}

impl Header {
    #[inline]
    fn check(&self) -> u16 {
        let mixed = (u64::from(self.len) << 32 | u64::from(self.tag))
            ^ (u64::from(self.handles) << 40
                | u64::from(self.blocks) << 20
                | u64::from(self.flags));
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
    }

    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.handles.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.check().to_le_bytes());
        bytes
    }

    /// Reads a header of which a peer says that it is followed by `left` bytes at most.
    #[inline]
    pub(crate) fn from_bytes(bytes: &[u8; HEADER], left: usize) -> Result<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let header = Self {
            len: long(0),
            tag: long(4),
            handles: short(8),
            blocks: short(10),
            flags: short(12),
        };
        if short(14) != header.check() {
            return Err(corrupt("its check does not match"));
        }
        let len = header.len as usize;
        if len > BODY_MAX || len > left {
            return Err(corrupt("it is longer than what was sent"));
        }
        let lot = if header.handles == 0 { 0 } else { LOT };
        if lot + header.blocks as usize * Descriptor::SIZE > len
            || header.handles as usize > HANDLES_MAX
        {
            return Err(corrupt("it names more than it holds"));
        }
        Ok(header)
    }

    /// Bytes that the frame takes in the ring.
    #[inline]
    pub(crate) fn span(&self) -> usize {
        (HEADER + self.len as usize).next_multiple_of(ALIGN)
    }
}

#[cold]
fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a frame is corrupt: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            len: 40,
            tag: 7,
            handles: 2,
            blocks: 1,
            flags: BODY_IN_BLOCK,
        }
    }

    #[test]
    fn a_header_survives_the_trip() {
        assert_eq!(
            Header::from_bytes(&header().to_bytes(), 40).unwrap(),
            header()
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = header().to_bytes();
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = Header::from_bytes(&bad, 1 << 20);
            assert!(read.is_err(), "bit {bit} went unnoticed: {read:?}");
        }
    }

    #[test]
    fn a_body_longer_than_what_was_sent_is_refused() {
        assert!(Header::from_bytes(&header().to_bytes(), 39).is_err());
    }

    #[test]
    fn more_blocks_than_fit_the_body_are_refused() {
        let header = Header {
            len: 15,
            blocks: 1,
            ..header()
        };
        assert!(Header::from_bytes(&header.to_bytes(), 1 << 20).is_err());
    }
}
