//! A call of a function in another process, and how it ended.

use serde::{Deserialize, Serialize};

use super::attachments::{Incoming, Outgoing};
use crate::shm::heap::Block;

/// A call: its encoded arguments, and room for its encoded outcome.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) input: Input,
    pub(crate) incoming: Incoming,
    /// A value, or a [`Failure`].
    pub(crate) output: Vec<u8>,
    pub(crate) outgoing: Outgoing,
    pub(crate) failed: bool,
    /// Whether a panic is told to the caller only, and not printed.
    pub(crate) is_quiet: bool,
}

/// Encoded values: bytes or a block, of which so many bytes in front are something else.
#[derive(Debug)]
pub(crate) enum Input {
    Bytes(Vec<u8>, usize),
    Block(Block, usize),
}

impl Default for Input {
    fn default() -> Self {
        Self::Bytes(Vec::new(), 0)
    }
}

impl Input {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes, from) => bytes.get(*from..).unwrap_or(&[]),
            Self::Block(block, from) => block.bytes().get(*from..).unwrap_or(&[]),
        }
    }

    /// Leaves out so many more bytes in front.
    pub(crate) fn skip(mut self, bytes: usize) -> Self {
        let (Self::Bytes(_, from) | Self::Block(_, from)) = &mut self;
        *from += bytes;
        self
    }
}

/// Why a call gave no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// It panicked.
    Panicked {
        message: String,
        location: Option<String>,
    },
    /// Its arguments could not be decoded where it was to run.
    Arguments(String),
    /// Its result could not be encoded.
    Result(String),
}
