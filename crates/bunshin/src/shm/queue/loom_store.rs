//! Under loom: chunks whose bytes are cells that loom watches, and no memory behind them.

use super::super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Store;

impl Store {
    pub(super) fn put(&mut self, segment: &Segment, at: u64, bytes: &[u8]) -> Result<()> {
        segment.copy_in(at as usize, bytes);
        Ok(())
    }

    pub(super) fn get(&mut self, segment: &Segment, at: u64, bytes: &mut [u8]) -> Result<()> {
        segment.copy_out(at as usize, bytes);
        Ok(())
    }

    pub(super) fn append(
        &mut self,
        segment: &Segment,
        at: u64,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let start = bytes.len();
        bytes.resize(start + len, 0);
        self.get(segment, at, &mut bytes[start..])
    }
}

pub(super) fn reserve(_segment: &Segment, _chunk: u64) -> Result<()> {
    Ok(())
}

pub(super) fn write(segment: &Segment, mut at: u64, parts: &[&[u8]]) -> Result<()> {
    for part in parts {
        segment.copy_in(at as usize, part);
        at += part.len() as u64;
    }
    Ok(())
}

pub(super) fn read(segment: &Segment, at: u64, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
    Store.append(segment, at, len as usize, bytes)
}

pub(super) fn release(_segment: &Segment, _at: u64, _len: u64) {}

pub(super) fn release_from(_segment: &Segment, _at: u64) {}

pub(super) fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
