//! Values to bytes and back through `serde`, in the form that [`format`](super::format)
//! describes.
//!
//! Named fields take flattened, untagged and internally tagged types, and optional
//! fields that are left out; sequences of bytes go as one run, not byte by byte.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attachments::{Incoming, Outgoing};
use super::reader::Reader;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};

/// Values nested deeper than this are refused: they could overflow the stack of who decodes
/// them.
const DEPTH_MAX: usize = 256;

/// Appends a value to `bytes` that stays where it is: nothing can go beside it.
pub(crate) fn encode_alone<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<()> {
    let mut serializer = Writer::new(bytes, DEPTH_MAX);
    value.serialize(&mut serializer).map_err(|error| {
        Error::because(
            ErrorKind::Encode,
            format!("encode a value of type {}", std::any::type_name::<T>()),
            error,
        )
    })
}

/// Makes a value of what [`encode_alone`] made of it.
pub(crate) fn decode_alone<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = Reader::new(bytes, DEPTH_MAX);
    T::deserialize(&mut deserializer).map_err(|error| {
        Error::because(
            ErrorKind::Decode,
            format!("decode a value of type {}", std::any::type_name::<T>()),
            error,
        )
    })
}

/// Appends a value to `bytes`; what goes beside them ends up in `outgoing`.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    bytes: &mut Vec<u8>,
    outgoing: &mut Outgoing,
) -> Result<()> {
    outgoing.collect(|| encode_alone(value, bytes))
}

/// Makes a value of bytes and of what came beside them.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], incoming: &mut Incoming) -> Result<T> {
    incoming.provide(|| decode_alone(bytes))
}

/// The bytes of a value for another program: nothing can go beside them.
pub(crate) fn encode_for_others<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    Outgoing::none(|| {
        let mut bytes = Vec::new();
        encode_alone(value, &mut bytes)?;
        Ok(bytes)
    })
}

/// Makes a value of bytes of another program, which nothing came beside.
pub(crate) fn decode_of_others<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    Incoming::none(|| decode_alone(bytes))
}

/// Tells types apart in messages: two processes of the same binary agree on it.
pub(crate) fn tag<T: ?Sized>() -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in std::any::type_name::<T>().bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    // 0 is for raw bytes.
    hash.max(1)
}
