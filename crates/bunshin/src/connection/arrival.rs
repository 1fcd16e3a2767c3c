//! Messages of either kind, for fronts: bytes as they are, or a value.
//!
//! Small messages of a front cost more to encode as values than to carry. They go as bytes,
//! and their receiver, who cannot know what comes next, takes whatever it is.

use serde::de::DeserializeOwned;

use super::outcome::{TryRecvError, TrySendError};
use super::receiver::Receiver;
use super::sender::Sender;
use crate::codec::buffer::Buffer;
use crate::codec::serde::decode;
use crate::error::{Error, ErrorKind};
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::frame::RAW;
use crate::transport::receiver::Message;

/// What was received: bytes, or a value.
#[derive(Debug)]
pub enum Arrival<T> {
    /// What was sent as bytes.
    Bytes(Bytes),
    /// What was sent as a value.
    Value(T),
}

/// Bytes that were received, where they lie.
#[derive(Debug)]
pub struct Bytes(Message);

impl Bytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to be kept.
    ///
    /// # Errors
    /// `Corrupt` if they came in memory that cannot hold them.
    pub fn into_buffer(self) -> Result<Buffer<u8>, Error> {
        match self.0.into_body() {
            Ok(block) => Buffer::shared(block).map_err(|why| Error::new(ErrorKind::Corrupt, why)),
            Err(bytes) => Ok(Buffer::from(bytes)),
        }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives the next message, whatever it is; waits for one if `wait` says so.
    ///
    /// # Errors
    /// `Empty` if there is none and it does not wait; else as for `recv`.
    pub fn recv_either(&self, wait: bool) -> Result<Arrival<T>, TryRecvError> {
        let patience = if wait {
            Patience::Forever
        } else {
            Patience::Never
        };
        self.either(patience).map_err(TryRecvError::from)
    }

    fn either(&self, patience: Patience) -> Result<Arrival<T>, Failure> {
        let mut message = self.untyped().receive(patience)?;
        if message.tag == RAW {
            return Ok(Arrival::Bytes(Bytes(message)));
        }
        if message.tag != self.tag() {
            return Err(Failure::Other(Error::new(
                ErrorKind::TypeMismatch,
                format!(
                    "receive a value of type {}: the message is of another type",
                    std::any::type_name::<T>()
                ),
            )));
        }
        let mut incoming = std::mem::take(&mut message.incoming);
        decode(message.bytes(), &mut incoming)
            .map(Arrival::Value)
            .map_err(Failure::Other)
    }

    /// Whether a message lies there; a look at memory, and no more.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.untyped().side.ring.has_data()
    }
}

impl<T> Sender<T> {
    /// Sends bytes if there is room for them now.
    ///
    /// # Errors
    /// `Full` if there is none; else as for `send_bytes`.
    pub fn try_send_bytes(&self, bytes: &[u8]) -> Result<(), TrySendError<()>> {
        self.bytes(bytes, Patience::Never)
            .map_err(|failure| TrySendError::new((), failure))
    }
}
