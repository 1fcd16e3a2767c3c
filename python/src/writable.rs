//! Buffers that are read-only where they come from, and are to be writable where they arrive.
//!
//! What arrives is a copy of the receiver's own: that an array cannot be written to here says nothing
//! of it. Up to CPython 3.13, `multiprocessing` pickles with a protocol that knows no buffers, so that
//! arrays always arrive writable, and programs change their arguments. Protocol 5 writes beside
//! each buffer whether it is read-only, and that mark is what is taken out here.
//!
//! Buffers of bytes keep it: they mean what bytes mean.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::buffer::Borrowed;

/// Buffers of so many bytes go within the pickle; `bunshin.reduction` has the same number for
/// those that are writable.
const WITHIN: usize = 4096;

const FRAME: u8 = 0x95;
const BYTEARRAY8: u8 = 0x96;
const NEXT_BUFFER: u8 = 0x97;
const READONLY_BUFFER: u8 = 0x98;

/// Whether a view's memory is that of a bytes object.
pub(crate) fn is_of_bytes(view: &Bound<'_, PyAny>) -> PyResult<bool> {
    let mut lender = view.clone();
    while lender.is_instance_of::<PyMemoryView>() {
        lender = lender.getattr(crate::once::intern!(view.py(), "obj"))?;
    }
    Ok(lender.is_instance_of::<PyBytes>())
}

/// The pickle with which the buffers that `frozen` counts arrive writable. Those of them that are
/// small go within it.
///
/// A pickle that is not understood is left as it is.
pub(crate) fn thawed(pickle: Vec<u8>, buffers: &mut Vec<Borrowed>, frozen: &[usize]) -> Vec<u8> {
    let small = |at: usize| {
        let bytes = buffers.get(at)?.bytes();
        (bytes.len() <= WITHIN).then_some(bytes)
    };
    let Some(rewritten) = rewritten(&pickle, frozen, small) else {
        return pickle;
    };
    let mut at = 0;
    buffers.retain(|buffer| {
        let is_within = frozen.contains(&at) && buffer.bytes().len() <= WITHIN;
        at += 1;
        !is_within
    });
    rewritten
}

/// The pickle without the marks of the buffers that `frozen` counts, in ascending order, and with
/// the bytes of those that `small` gives.
fn rewritten<'a>(
    pickle: &[u8],
    frozen: &[usize],
    small: impl Fn(usize) -> Option<&'a [u8]>,
) -> Option<Vec<u8>> {
    let mut made = Vec::with_capacity(pickle.len());
    let mut frozen = frozen.iter().copied().peekable();
    let (mut at, mut n_buffers) = (0, 0);
    while let Some(&next) = frozen.peek() {
        let end = at + instruction(pickle.get(at..)?)?;
        match pickle[at] {
            // It says how many bytes follow, which would no longer be right, for those who read a file.
            FRAME => {}
            NEXT_BUFFER if n_buffers == next => {
                if pickle.get(end) != Some(&READONLY_BUFFER) {
                    return None;
                }
                match small(next) {
                    Some(bytes) => {
                        made.push(BYTEARRAY8);
                        made.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
                        made.extend_from_slice(bytes);
                    }
                    None => made.push(NEXT_BUFFER),
                }
                frozen.next();
                n_buffers += 1;
                at = end + 1;
                continue;
            }
            code => {
                n_buffers += usize::from(code == NEXT_BUFFER);
                made.extend_from_slice(&pickle[at..end]);
            }
        }
        at = end;
    }
    made.extend_from_slice(pickle.get(at..)?);
    Some(made)
}

/// How long the first instruction is, of those that protocol 5 is written with.
fn instruction(rest: &[u8]) -> Option<usize> {
    let (&code, rest) = rest.split_first()?;
    let counted = |width: usize| {
        let count = rest.get(..width)?;
        let count = count.iter().rev().try_fold(0usize, |sum, &byte| {
            sum.checked_mul(256)?.checked_add(usize::from(byte))
        })?;
        count.checked_add(width)
    };
    let operands = match code {
        b'(' | b'.' | b'0' | b'1' | b'2' | b'N' | b'Q' | b'R' | b'a' | b'b' | b'd' | b'e'
        | b'l' | b'o' | b's' | b't' | b'u' | b')' | b']' | b'}' => 0,
        0x81 | 0x85..=0x89 | 0x8f..=0x94 | NEXT_BUFFER | READONLY_BUFFER => 0,
        b'K' | b'h' | b'q' | 0x80 | 0x82 => 1,
        b'M' | 0x83 => 2,
        b'J' | b'j' | b'r' | 0x84 => 4,
        b'G' | FRAME => 8,
        b'C' | b'U' | 0x8a | 0x8c => counted(1)?,
        b'B' | b'T' | b'X' | 0x8b => counted(4)?,
        0x8d | 0x8e | BYTEARRAY8 => counted(8)?,
        _ => return None,
    };
    (operands <= rest.len()).then_some(operands + 1)
}
