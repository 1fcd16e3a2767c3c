//! Keys of dicts that came before.
//!
//! To look a key up takes less than to make a string, hash it, and free it, and many dicts with
//! the same keys share them, as they do in one pickle. As many are kept as there are places, each
//! in one of two for its hash: whoever sends names that fall onto the same ones makes them useless
//! for itself, and that is all.

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::object;

/// Longer ones are not kept.
const NAME_BYTES: usize = 40;
/// A power of two.
const PLACES: usize = 256;

/// A string, and what tells it from most others: its length and its first and last bytes. Those are
/// all of its bytes, if there are no more than [`EXACT`].
struct Known {
    len: usize,
    ends: [u64; 2],
    name: Py<PyString>,
}

const EXACT: usize = 16;

/// The names that this thread knows.
pub(super) struct Names {
    places: Vec<[Option<Known>; 2]>,
}

thread_local! {
    static NAMES: Cell<Option<Names>> = const { Cell::new(None) };
}

impl Names {
    /// This thread's, which has none until they are put back.
    pub(super) fn take() -> Self {
        let known = NAMES.try_with(Cell::take).ok().flatten();
        known.unwrap_or_else(|| Self { places: Vec::new() })
    }

    pub(super) fn put_back(self) {
        // Not possible while the thread ends: they go with it.
        let _ = NAMES.try_with(|names| names.set(Some(self)));
    }

    /// The string of these bytes in UTF-8; nothing if that is not what they are.
    #[inline]
    pub(super) fn get<'a, 'py>(
        &'a mut self,
        py: Python<'py>,
        bytes: &[u8],
    ) -> Option<&'a Bound<'py, PyString>> {
        let ends = ends(bytes);
        let at = place(bytes, ends);
        let is_known = |known: &Option<Known>| {
            known.as_ref().is_some_and(|known| {
                known.len == bytes.len()
                    && known.ends == ends
                    && (bytes.len() <= EXACT || is_name(known.name.bind(py), bytes))
            })
        };
        let found = match self.places.get(at) {
            Some([first, _]) if is_known(first) => 0,
            Some([_, second]) if is_known(second) => 1,
            _ => self.learn(py, at, bytes, ends)?,
        };
        let known = self.places.get(at)?.get(found)?.as_ref()?;
        Some(known.name.bind(py))
    }

    /// Makes the string, and has it known instead of the elder one in that place.
    #[cold]
    fn learn(&mut self, py: Python<'_>, at: usize, bytes: &[u8], ends: [u64; 2]) -> Option<usize> {
        let name = object::string(py, bytes)?.cast_into::<PyString>().ok()?;
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || [None, None]);
        }
        let [first, second] = self.places.get_mut(at)?;
        let known = Known {
            len: bytes.len(),
            ends,
            name: name.unbind(),
        };
        *second = first.replace(known);
        Some(0)
    }
}

/// Whether a string of this length is one that may be known.
#[inline]
pub(super) fn is_short(bytes: &[u8]) -> bool {
    bytes.len() <= NAME_BYTES
}

#[cold]
fn is_name(name: &Bound<'_, PyString>, bytes: &[u8]) -> bool {
    name.to_str().is_ok_and(|name| name.as_bytes() == bytes)
}

/// The first and the last eight bytes, or less, which overlap where there are not as many.
#[inline]
fn ends(bytes: &[u8]) -> [u64; 2] {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        return [u64::from_le_bytes(*first), u64::from_le_bytes(*last)];
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return [*first, *last].map(|part| u32::from_le_bytes(part).into());
    }
    match bytes {
        [] => [0, 0],
        [one] => [u64::from(*one), 0],
        [first, .., last] => {
            let middle = bytes[bytes.len() / 2];
            [u64::from(u32::from_le_bytes([*first, middle, *last, 0])), 0]
        }
    }
}

/// A hash that is good enough for a table in which a collision costs time only.
#[inline]
fn place(bytes: &[u8], [first, last]: [u64; 2]) -> usize {
    let (mut first, mut last) = (
        first ^ 0x9e37_79b9_7f4a_7c15,
        last ^ 0xd1b5_4a32_d192_ed03 ^ bytes.len() as u64,
    );
    if let Some(inner) = bytes.get(8..bytes.len().saturating_sub(8)) {
        for part in inner.chunks_exact(8) {
            let part = part
                .first_chunk()
                .map_or(0, |part| u64::from_le_bytes(*part));
            first = (first ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            last ^= first >> 32;
        }
    }
    let product = u128::from(first) * u128::from(last);
    ((product >> 64) as u64 ^ product as u64) as usize % PLACES
}
