//! A region: what one part of a map holds, in one extent of the arena.
//!
//! | Words of a region | What |
//! |---|---|
//! | 0 | words in use, from the region's start |
//! | 1 | slots that are not empty |
//! | 2 | the binary logarithm of the number of slots |
//! | 3..8 | unused |
//! | 8.. | slots |
//! | after those | entries, one after the other |
//!
//! A slot is 0 while it is empty, 1 after its entry was removed, and otherwise the position
//! of an entry (bits 0..32, in words) and the upper half of the hash (bits 32..64). A key is
//! looked for from the slot that the lower half says, one after the other, up to an empty one.
//! An entry is never changed once a slot names it:
//!
//! | Words of an entry | What |
//! |---|---|
//! | 0 | the hash |
//! | 1 | bytes of the key (bits 0..32) and of the value (bits 32..64) |
//! | 2.. | the key, then the value, each filled up to whole words |

use super::atomic::{AtomicU64, Ordering, fence};
use crate::error::{Error, ErrorKind, Result};

/// Words of a region before its slots.
pub(super) const REGION_HEAD: usize = 8;
pub(super) const USED: usize = 0;
pub(super) const FILLED: usize = 1;
pub(super) const SLOT_BITS: usize = 2;

pub(super) const EMPTY: u64 = 0;
pub(super) const REMOVED: u64 = 1;
/// Words of an entry before its key.
pub(super) const ENTRY_HEAD: usize = 2;
/// The fewest slots of a region, as a power of two.
pub(super) const SLOT_BITS_MIN: u32 = if cfg!(loom) { 2 } else { 4 };

/// A key: its bytes, and what else tells it from others.
pub(crate) struct Key<'a> {
    pub(crate) hash: u64,
    pub(crate) bytes: &'a [u8],
    /// Whether other bytes, of the same hash, mean the same key.
    pub(crate) is_same: &'a dyn Fn(&[u8]) -> Result<bool>,
}

#[cold]
pub(super) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a shared map: {what}"))
}

/// What a part's extent holds.
pub(super) struct Region<'a> {
    pub(super) words: &'a [AtomicU64],
    pub(super) slots: &'a [AtomicU64],
}

/// An entry: nobody changes it, unless the region is put to other use.
pub(super) struct Entry<'a> {
    pub(super) hash: u64,
    pub(super) key_len: usize,
    pub(super) key: &'a [AtomicU64],
    pub(super) value_len: usize,
    pub(super) value: &'a [AtomicU64],
}

impl Entry<'_> {
    pub(super) fn words(&self) -> usize {
        ENTRY_HEAD + self.key.len() + self.value.len()
    }
}

/// Where a key is, and the first slot that it could be put into.
pub(super) type Found<'a> = (Option<(usize, Entry<'a>)>, Option<usize>);

impl<'a> Region<'a> {
    pub(super) fn of(words: &'a [AtomicU64]) -> Result<Self> {
        let bits = words
            .get(SLOT_BITS)
            .map_or(u64::MAX, |bits| bits.load(Ordering::Relaxed));
        let slots = if bits < 32 {
            words.get(REGION_HEAD..REGION_HEAD + (1 << bits))
        } else {
            None
        };
        let slots = slots.ok_or_else(|| corrupt("more slots than room"))?;
        Ok(Self { words, slots })
    }

    pub(super) fn find(&self, key: &Key<'_>) -> Result<Found<'a>> {
        let mask = self.slots.len() - 1;
        let mut free = None;
        for step in 0..self.slots.len() {
            let at = (key.hash as usize).wrapping_add(step) & mask;
            let slot = self.slots[at].load(Ordering::Acquire);
            if slot == EMPTY {
                return Ok((None, free.or(Some(at))));
            }
            if slot == REMOVED {
                free = free.or(Some(at));
            } else if slot >> 32 == key.hash >> 32 {
                if let Some(entry) = self.entry(slot)? {
                    if entry.hash == key.hash && is_key(&entry, key)? {
                        return Ok((Some((at, entry)), free));
                    }
                }
            }
        }
        Ok((None, free))
    }

    /// The entry that a slot names, if any.
    #[inline]
    pub(super) fn entry(&self, slot: u64) -> Result<Option<Entry<'a>>> {
        if slot == EMPTY || slot == REMOVED {
            return Ok(None);
        }
        let at = slot as u32 as usize;
        let words = self.words.get(at..).unwrap_or(&[]);
        let Some(([hash, lens], rest)) = words.split_first_chunk() else {
            return Err(corrupt("an entry outside of its region"));
        };
        let lens = lens.load(Ordering::Relaxed);
        let (key_len, value_len) = (lens as u32 as usize, (lens >> 32) as usize);
        let (key_words, value_words) = (key_len.div_ceil(8), value_len.div_ceil(8));
        let (Some(key), Some(value)) = (
            rest.get(..key_words),
            rest.get(key_words..key_words + value_words),
        ) else {
            return Err(corrupt("an entry longer than its region"));
        };
        Ok(Some(Entry {
            hash: hash.load(Ordering::Relaxed),
            key_len,
            key,
            value_len,
            value,
        }))
    }
}

/// Up to eight bytes as a word, filled up with zeros.
pub(super) fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

fn is_key(entry: &Entry<'_>, key: &Key<'_>) -> Result<bool> {
    let is_equal = entry.key_len == key.bytes.len()
        && entry
            .key
            .iter()
            .zip(key.bytes.chunks(8))
            .all(|(word, bytes)| word.load(Ordering::Relaxed) == word_of(bytes));
    if is_equal {
        return Ok(true);
    }
    // All 64 bits of a keyed hash agree: most likely the same key, written differently.
    let mut bytes = Vec::new();
    copy_out(entry.key, entry.key_len, &mut bytes);
    (key.is_same)(&bytes)
}

pub(super) fn copy_out(words: &[AtomicU64], len: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.resize(words.len() * 8, 0);
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        super::step();
        to.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    bytes.truncate(len);
}

pub(super) fn copy_in(words: &[AtomicU64], bytes: &[u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks(8)) {
        word.store(word_of(bytes), Ordering::Relaxed);
    }
}

/// Writes a region: its head, empty slots, and the entries of the old one.
pub(super) fn fill(new: &[AtomicU64], bits: u32, old: Option<&Region<'_>>) -> Result<()> {
    // A reader that still takes these words for those of a region before, and sees any that is
    // stored here, then sees as well that the part has got another region.
    fence(Ordering::Release);
    let slots = 1usize << bits;
    for slot in &new[REGION_HEAD..REGION_HEAD + slots] {
        slot.store(EMPTY, Ordering::Relaxed);
    }
    super::step();
    let mut used = REGION_HEAD + slots;
    let mut filled = 0;
    for slot in old.map_or(&[][..], |old| old.slots) {
        let seen = slot.load(Ordering::Relaxed);
        let Some(entry) = old.map_or(Ok(None), |old| old.entry(seen))? else {
            continue;
        };
        let words = entry.words();
        let room = new.get(used..used + words);
        let free = (0..slots)
            .map(|step| REGION_HEAD + ((entry.hash as usize).wrapping_add(step) & (slots - 1)))
            .find(|at| new[*at].load(Ordering::Relaxed) == EMPTY);
        let (Some(room), Some(free)) = (room, free) else {
            return Err(corrupt("entries that grow"));
        };
        let lens = entry.key_len as u64 | (entry.value_len as u64) << 32;
        room[0].store(entry.hash, Ordering::Relaxed);
        room[1].store(lens, Ordering::Relaxed);
        for (to, from) in room[ENTRY_HEAD..]
            .iter()
            .zip(entry.key.iter().chain(entry.value))
        {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            super::step();
        }
        new[free].store(used as u64 | entry.hash >> 32 << 32, Ordering::Relaxed);
        used += words;
        filled += 1;
    }
    new[USED].store(used as u64, Ordering::Relaxed);
    new[FILLED].store(filled, Ordering::Relaxed);
    new[SLOT_BITS].store(u64::from(bits), Ordering::Relaxed);
    Ok(())
}
