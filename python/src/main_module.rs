//! What the main module has, where children have another: in a notebook, at a prompt, under `-c`.
//!
//! There pickle names functions and classes that only this process can find. While that is so,
//! each pickle is looked through for such names, and made again by value if it has one.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

/// Whether children were started that have another main module.
static IS_PRIVATE: AtomicBool = AtomicBool::new(false);

/// Says whether children that are no copies of this process can import its main module.
#[pyfunction]
pub(crate) fn set_main_is_private(is_private: bool) {
    IS_PRIVATE.store(is_private, Ordering::Relaxed);
}

/// Whether a pickle names what others would not find.
#[inline]
pub(crate) fn is_needed(pickle: &[u8]) -> bool {
    IS_PRIVATE.load(Ordering::Relaxed) && names_main(pickle)
}

const NAME: &[u8] = b"__main__";

/// Whether a text of the pickle is the name of the main module. It may be no more than a text:
/// then the object is pickled twice. Of what is no pickle of protocol 4 or 5 it is assumed.
fn names_main(mut rest: &[u8]) -> bool {
    while let Some((&code, after)) = rest.split_first() {
        rest = after;
        // How many bytes follow: as many as it says, or as the number says that comes first.
        let (fixed, prefix) = match code {
            b'('
            | b'.'
            | b'0'
            | b'1'
            | b'2'
            | b'a'
            | b'b'
            | b'd'
            | b'e'
            | b'l'
            | b'o'
            | b's'
            | b't'
            | b'u'
            | b'N'
            | b'Q'
            | b'R'
            | b')'
            | b']'
            | b'}'
            | 0x81
            | 0x85..=0x89
            | 0x8f..=0x94
            | 0x97
            | 0x98 => (0, 0),
            b'K' | b'h' | b'q' | 0x80 | 0x82 => (1, 0),
            b'M' | 0x83 => (2, 0),
            b'J' | b'j' | b'r' | 0x84 => (4, 0),
            b'G' | 0x95 => (8, 0),
            b'C' | b'U' | 0x8a | 0x8c => (0, 1),
            b'B' | b'T' | b'X' | 0x8b => (0, 4),
            0x8d | 0x8e | 0x96 => (0, 8),
            _ => return true,
        };
        let Some((length, after)) = rest.split_at_checked(prefix) else {
            return true;
        };
        let length = length
            .iter()
            .rev()
            .fold(fixed as u64, |sum, byte| sum << 8 | u64::from(*byte));
        let Some((content, after)) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
        else {
            return true;
        };
        if content == NAME && matches!(code, 0x8c | b'X' | 0x8d) {
            return true;
        }
        rest = after;
    }
    false
}
