//! The bytes that a value becomes: a self-describing form, so that types which look before
//! they decide (untagged, internally tagged, flattened) arrive as they were sent.
//!
//! Each value starts with a byte that says what it is. Numbers are little-endian, with as
//! many bytes as they need; a length is in groups of seven bits, the lowest first, with the
//! highest bit set in all but the last byte (LEB128).
//!
//! | First byte | Value | Follows |
//! |---|---|---|
//! | `00..7f` | the number itself | |
//! | `80` | unit | |
//! | `81` | none | |
//! | `82` | some | the value |
//! | `83`, `84` | false, true | |
//! | `85..89` | a number from 0 on | 1, 2, 4, 8 or 16 bytes |
//! | `8a..8e` | a number below 0 | 1, 2, 4, 8 or 16 bytes, two's complement |
//! | `8f`, `90` | floating point | 4 or 8 bytes |
//! | `91` | a character | 4 bytes |
//! | `92` | text | its length, the bytes |
//! | `93` | bytes | their length, the bytes |
//! | `94` | a sequence of numbers below 256 | its length, a byte for each |
//! | `95` | a sequence | its length, the values |
//! | `96` | a map, or a struct with its field names | its length, each key and its value |
//! | `97` | a sequence of unknown length | the values, `99` |
//! | `98` | a map of unknown length | each key and its value, `99` |
//! | `9a` | a variant that holds something | its name as text, what it holds |
//! | `a0..bf` | text of up to 31 bytes | the bytes |
//! | `c0..cf` | a sequence of up to 15 values | the values |
//! | `d0..df` | a map of up to 15 entries | each key and its value |
//! | `ff` | none: what is no value begins so | |
//!
//! A variant that holds nothing is its name as text. A newtype is what is inside it.

use std::fmt;

pub(super) const UNIT: u8 = 0x80;
pub(super) const NONE: u8 = 0x81;
pub(super) const SOME: u8 = 0x82;
pub(super) const FALSE: u8 = 0x83;
pub(super) const TRUE: u8 = 0x84;
pub(super) const U8: u8 = 0x85;
pub(super) const U16: u8 = 0x86;
pub(super) const U32: u8 = 0x87;
pub(super) const U64: u8 = 0x88;
pub(super) const U128: u8 = 0x89;
pub(super) const I8: u8 = 0x8a;
pub(super) const I16: u8 = 0x8b;
pub(super) const I32: u8 = 0x8c;
pub(super) const I64: u8 = 0x8d;
pub(super) const I128: u8 = 0x8e;
pub(super) const F32: u8 = 0x8f;
pub(super) const F64: u8 = 0x90;
pub(super) const CHAR: u8 = 0x91;
pub(super) const TEXT: u8 = 0x92;
pub(super) const BYTES: u8 = 0x93;
pub(super) const RUN: u8 = 0x94;
pub(super) const SEQ: u8 = 0x95;
pub(super) const MAP: u8 = 0x96;
pub(super) const OPEN_SEQ: u8 = 0x97;
pub(super) const OPEN_MAP: u8 = 0x98;
pub(super) const END: u8 = 0x99;
pub(super) const VARIANT: u8 = 0x9a;
pub(super) const SHORT_TEXT: u8 = 0xa0;
pub(super) const SHORT_SEQ: u8 = 0xc0;
pub(super) const SHORT_MAP: u8 = 0xd0;
/// What bytes begin with that are sent where values are, and are none.
pub(crate) const NO_VALUE: u8 = 0xff;

/// The longest text and the most values that the first byte has room for.
pub(super) const SHORT_TEXT_MAX: usize = 31;
pub(super) const SHORT_MAX: usize = 15;

/// Why a value could not be written or read.
///
/// One word, so that results of numbers are returned in registers.
#[derive(Debug)]
#[allow(clippy::box_collection, reason = "a string is three words")]
pub(crate) struct Fault(Box<String>);

impl Fault {
    #[cold]
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(Box::new(why.into()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl serde::ser::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self::new(why.to_string())
    }
}

impl serde::de::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self::new(why.to_string())
    }
}

/// Appends a length.
#[inline]
pub(super) fn put_length(bytes: &mut Vec<u8>, length: usize) {
    let mut rest = length as u64;
    while rest > 0x7f {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

/// Takes a length from the front of `bytes`.
#[inline]
pub(super) fn take_length(bytes: &mut &[u8]) -> Result<usize, Fault> {
    let mut length = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((first, rest)) = bytes.split_first() else {
            return Err(Fault::new("it ends inside a length"));
        };
        *bytes = rest;
        let part = u64::from(first & 0x7f);
        if part << shift >> shift != part {
            break;
        }
        length |= part << shift;
        if first & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| Fault::new("a length is too large"));
        }
    }
    Err(Fault::new("a length is too large"))
}
