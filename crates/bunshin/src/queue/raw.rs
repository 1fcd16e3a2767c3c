//! Items of either kind, for fronts: bytes as they are, or a value.
//!
//! Small items of a front cost more to encode as values than to carry, and large ones should
//! not be copied to be encoded. Both go as bytes behind one that no value begins with.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::typed::Queue;
use super::untyped::{Taken, Untyped, keep_spare};
use crate::connection::{RecvTimeoutError, TryRecvError, TrySendError};
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// What an item was: bytes, or a value.
#[derive(Debug)]
pub enum Item<T> {
    /// What was sent as bytes.
    Bytes(ItemBytes),
    /// What was sent as a value.
    Value(T),
}

/// The bytes that an item was.
#[derive(Debug)]
pub struct ItemBytes {
    bytes: Vec<u8>,
    from: usize,
}

impl ItemBytes {
    pub(super) fn new(bytes: Vec<u8>, from: usize) -> Self {
        Self { bytes, from }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.from..).unwrap_or(&[])
    }
}

impl Drop for ItemBytes {
    fn drop(&mut self) {
        keep_spare(std::mem::take(&mut self.bytes));
    }
}

impl<T> Queue<T> {
    fn bytes(&self, parts: [&[u8]; 2], patience: Patience) -> Result<(), TrySendError<()>> {
        let sent = Untyped::send_bytes(&self.inner, parts, patience);
        sent.map_err(|failure| TrySendError::new((), failure))
    }

    /// Sends bytes that lie in two places, one behind the other, if there is room for an item.
    ///
    /// # Errors
    /// As for `try_send`.
    pub fn try_send_bytes(&self, parts: [&[u8]; 2]) -> Result<(), TrySendError<()>> {
        self.bytes(parts, Patience::Never)
    }

    /// As [`try_send_bytes`](Self::try_send_bytes), waiting for room for so long at most.
    ///
    /// # Errors
    /// As for `send_timeout`.
    pub fn send_bytes_timeout(
        &self,
        parts: [&[u8]; 2],
        timeout: Duration,
    ) -> Result<(), TrySendError<()>> {
        self.bytes(parts, Patience::within(timeout))
    }
}

impl<T: DeserializeOwned> Queue<T> {
    fn either(&self, patience: Patience) -> Result<Item<T>, Failure> {
        Ok(match self.inner.recv_either(patience)? {
            Taken::Bytes(bytes) => Item::Bytes(bytes),
            Taken::Value(value) => Item::Value(value),
        })
    }

    /// Takes an item, whatever it is, if there is one.
    ///
    /// # Errors
    /// As for `try_recv`.
    pub fn try_recv_either(&self) -> Result<Item<T>, TryRecvError> {
        self.either(Patience::Never).map_err(TryRecvError::from)
    }

    /// As [`try_recv_either`](Self::try_recv_either), waiting for one for so long at most.
    ///
    /// # Errors
    /// As for `recv_timeout`.
    pub fn recv_either_timeout(&self, timeout: Duration) -> Result<Item<T>, RecvTimeoutError> {
        self.either(Patience::within(timeout))
            .map_err(RecvTimeoutError::from)
    }
}
