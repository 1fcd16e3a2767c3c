//! Values, arrays, bytes, lists and maps in shared memory.
//!
//! - `value`: [`Value`](crate::Value) and [`RawValue`](crate::RawValue).
//! - `array`: [`Array`](crate::Array) and [`RawArray`](crate::RawArray).
//! - `memory`: [`SharedMemory`](crate::SharedMemory) in messages, and its integers.
//! - `map`: [`SharedMap`](crate::SharedMap).
//! - `list`: [`ShareableList`](crate::ShareableList).
//! - `nd`: arrays in several dimensions, with the feature `ndarray`.
//! - `atomic`: which types can be changed without a lock.

mod array;
mod atomic;
mod list;
mod map;
mod memory;
#[cfg(feature = "ndarray")]
mod nd;
mod value;

pub use array::{Array, ArrayGuard, RawArray};
pub use atomic::Atomic;
pub use list::{ListItem, ShareableList};
pub use map::SharedMap;
pub use memory::{SharedAtomic, SharedMemory};
pub use value::{RawValue, Value, ValueGuard};

use serde::{Deserialize, Serialize};

use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::tag;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::cell::SharedCell;
use crate::sys::socket;

/// Shared data on its trip.
#[derive(Serialize, Deserialize)]
struct Form {
    tag: u32,
    len: u64,
    memory: u32,
}

impl Form {
    /// For `len` elements of `T`, as the type `Whole` has them.
    fn depart<Whole>(cell: &SharedCell, len: usize) -> Result<Self> {
        let fd =
            socket::duplicate(cell.fd()).map_err(|error| Error::os("send shared data", error))?;
        Ok(Self {
            tag: tag::<Whole>(),
            len: len as u64,
            memory: Outgoing::attach(fd)?,
        })
    }

    fn arrive<Whole, T>(&self) -> Result<(SharedCell, usize)> {
        let name = std::any::type_name::<Whole>();
        if self.tag != tag::<Whole>() {
            return Err(Error::new(
                ErrorKind::TypeMismatch,
                format!("shared data of another type arrived as {name}"),
            ));
        }
        let len = usize::try_from(self.len).ok();
        let bytes = len.and_then(|len| len.checked_mul(size_of::<T>()));
        let (Some(len), Some(bytes)) = (len, bytes) else {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a {name} of {} elements arrived", self.len),
            ));
        };
        Ok((
            SharedCell::attach(Incoming::detach(self.memory)?, bytes)?,
            len,
        ))
    }
}

/// Implements sending and receiving for a type made of a cell and a length.
macro_rules! travels {
    ($type:ident, $len:expr, $make:expr) => {
        impl<T: bytemuck::Pod> serde::Serialize for $type<T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::Error as _;
                let form = super::Form::depart::<Self>(&self.cell, $len(self));
                form.map_err(|error| {
                    S::Error::custom(crate::codec::attachments::Outgoing::fail(error))
                })?
                .serialize(serializer)
            }
        }

        impl<'de, T: bytemuck::Pod> serde::Deserialize<'de> for $type<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                let form = super::Form::deserialize(deserializer)?;
                let (cell, len) = form.arrive::<Self, T>().map_err(D::Error::custom)?;
                Ok($make(cell, len))
            }
        }
    };
}

use travels;
