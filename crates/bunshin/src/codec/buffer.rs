//! A plain array that travels beside a message instead of inside it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use bytemuck::Pod;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::attachments::{Beside, Incoming, Outgoing};
use crate::shm::heap::Block;

/// An array of plain values that crosses to another process at the speed of one copy
/// at most.
///
/// A `Vec<T>` inside a message goes through `serde`, element by element. A buffer from
/// 4 KiB on goes beside the message: its bytes are copied once into shared memory, which the
/// receiver maps. A buffer that was received is shared memory already; sending it
/// back to where it came from, or returning it from a pool's task, copies nothing.
///
/// Reading is by dereferencing to a slice. [`as_mut_slice`](Self::as_mut_slice) writes:
/// in place, unless the memory is still being read by the process it came from; then it
/// is copied first.
///
/// A buffer inside a value that is serialised by something else than this crate, such as
/// to JSON, goes as bytes.
///
/// # Shape and units
/// `T` is plain data without padding (`bytemuck::Pod`); the length is in elements.
///
/// # Source
/// PEP 574 (out-of-band buffers) gives `pickle` the same.
///
/// # Examples
/// ```
/// use bunshin::{Buffer, pipe};
///
/// let (here, there) = pipe::<Buffer<f64>>()?;
/// here.send(Buffer::from(vec![0.5; 100_000]))?;
/// let mut samples = there.recv()?;
/// samples.as_mut_slice()[0] = 1.0;
/// assert_eq!(samples.len(), 100_000);
/// assert_eq!(samples[..2], [1.0, 0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Buffer<T: Pod>(Repr<T>);

enum Repr<T> {
    Own(Vec<T>),
    Shared(Block, PhantomData<T>),
}

impl<T: Pod> Buffer<T> {
    /// Wraps memory that came beside a message.
    pub(crate) fn shared(block: Block) -> Result<Self, &'static str> {
        if size_of::<T>() == 0 || block.len() % size_of::<T>() != 0 {
            return Err("the bytes are no whole number of elements");
        }
        if bytemuck::try_cast_slice::<u8, T>(block.bytes()).is_err() {
            return Err("the bytes are not aligned for the elements");
        }
        if block.is_scarce() {
            // Whoever keeps many buffers must not keep the sender from sending more.
            return Ok(Self(Repr::Own(
                bytemuck::cast_slice(block.bytes()).to_vec(),
            )));
        }
        Ok(Self(Repr::Shared(block, PhantomData)))
    }

    /// Copies bytes that came inside a message.
    fn copied(bytes: &[u8]) -> Result<Self, &'static str> {
        if size_of::<T>() == 0 || bytes.len() % size_of::<T>() != 0 {
            return Err("the bytes are no whole number of elements");
        }
        let mut own = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut(&mut own).copy_from_slice(bytes);
        Ok(Self(Repr::Own(own)))
    }

    /// The elements, to read.
    ///
    /// # Examples
    /// ```
    /// let buffer = bunshin::Buffer::from(vec![1, 2, 3]);
    /// assert_eq!(buffer.as_slice(), [1, 2, 3]);
    /// ```
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        match &self.0 {
            Repr::Own(own) => own,
            Repr::Shared(block, _) => bytemuck::cast_slice(block.bytes()),
        }
    }

    /// The elements, to write.
    ///
    /// Copies them first if the process they came from still holds them.
    ///
    /// # Examples
    /// ```
    /// let mut buffer = bunshin::Buffer::from(vec![1, 2, 3]);
    /// buffer.as_mut_slice()[0] = 7;
    /// assert_eq!(buffer, [7, 2, 3]);
    /// ```
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        if let Repr::Shared(block, _) = &mut self.0 {
            if block.bytes_mut().is_none() {
                self.0 = Repr::Own(self.as_slice().to_vec());
            }
        }
        match &mut self.0 {
            Repr::Own(own) => own,
            Repr::Shared(block, _) => {
                bytemuck::cast_slice_mut(block.bytes_mut().unwrap_or(&mut []))
            }
        }
    }

    /// The elements as a vector; shared memory is copied.
    ///
    /// # Examples
    /// ```
    /// let buffer = bunshin::Buffer::from(vec![1, 2, 3]);
    /// assert_eq!(buffer.into_vec(), vec![1, 2, 3]);
    /// ```
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        match self.0 {
            Repr::Own(own) => own,
            Repr::Shared(block, _) => bytemuck::cast_slice(block.bytes()).to_vec(),
        }
    }

    /// Whether the elements lie in memory that another process can map.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Buffer, channel};
    ///
    /// let (sender, receiver) = channel()?;
    /// let buffer = Buffer::from(vec![0u8; 100_000]);
    /// assert!(!buffer.is_shared());
    /// sender.send(buffer)?;
    /// assert!(receiver.recv()?.is_shared());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Repr::Shared(..))
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Pod> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Pod> From<Vec<T>> for Buffer<T> {
    fn from(own: Vec<T>) -> Self {
        Self(Repr::Own(own))
    }
}

impl<T: Pod> From<&[T]> for Buffer<T> {
    fn from(elements: &[T]) -> Self {
        Self(Repr::Own(elements.to_vec()))
    }
}

impl<T: Pod> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Self(Repr::Own(elements.into_iter().collect()))
    }
}

impl<T: Pod> Default for Buffer<T> {
    fn default() -> Self {
        Self(Repr::Own(Vec::new()))
    }
}

impl<T: Pod> Clone for Buffer<T> {
    /// Copies the elements into memory of this process.
    fn clone(&self) -> Self {
        Self(Repr::Own(self.as_slice().to_vec()))
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl<T: Pod + PartialEq, S: AsRef<[T]> + ?Sized> PartialEq<S> for Buffer<T> {
    fn eq(&self, other: &S) -> bool {
        self.as_slice() == other.as_ref()
    }
}

/// Bytes of somebody else's that are sent as a [`Buffer`] of bytes is.
#[derive(Clone, Copy, Debug)]
pub struct BufferRef<'a>(pub &'a [u8]);

impl Serialize for BufferRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !Outgoing::is_collecting() {
            return serializer.serialize_bytes(self.0);
        }
        if Outgoing::keeps_inside(self.0.len()) {
            return Form::Inside(Inside(self.0.into())).serialize(serializer);
        }
        let beside =
            Outgoing::put(self.0).map_err(|error| S::Error::custom(Outgoing::fail(error)))?;
        Form::Beside(beside).serialize(serializer)
    }
}

/// The form of a buffer inside a message.
#[derive(Serialize, Deserialize)]
enum Form<'a> {
    #[serde(rename = "i", borrow)]
    Inside(Inside<'a>),
    #[serde(rename = "o")]
    Beside(Beside),
}

/// Bytes as one run.
struct Inside<'a>(std::borrow::Cow<'a, [u8]>);

impl Serialize for Inside<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Inside<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes)
            }
        }
        deserializer
            .deserialize_bytes(Bytes)
            .map(|bytes| Self(bytes.into()))
    }
}

impl<T: Pod> Serialize for Buffer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: &[u8] = bytemuck::cast_slice(self.as_slice());
        if !Outgoing::is_collecting() {
            return serializer.serialize_bytes(bytes);
        }
        if Outgoing::keeps_inside(bytes.len()) {
            return Form::Inside(Inside(bytes.into())).serialize(serializer);
        }
        let passed = match &self.0 {
            Repr::Shared(block, _) => {
                Outgoing::pass_on(block).map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            }
            Repr::Own(_) => None,
        };
        let beside = match passed {
            Some(beside) => beside,
            None => {
                Outgoing::put(bytes).map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            }
        };
        Form::Beside(beside).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Buffer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !Incoming::is_providing() {
            let Inside(bytes) = Inside::deserialize(deserializer)?;
            return Self::copied(&bytes).map_err(D::Error::custom);
        }
        match Form::deserialize(deserializer)? {
            Form::Inside(Inside(bytes)) => Self::copied(&bytes),
            Form::Beside(beside) => Self::shared(Incoming::get(beside).map_err(D::Error::custom)?),
        }
        .map_err(D::Error::custom)
    }
}
