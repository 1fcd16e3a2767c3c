//! A hash map of bytes to bytes that many processes read and write at a time.
//!
//! The map has parts, chosen by the key's hash. A part is changed under its robust lock and
//! read without. All that it holds lies in one extent of the arena, its region,
//! which `region.rs` describes.
//!
//! Each change takes effect by one store: of a slot, for insert, replace and remove; of the
//! part's region, when entries are moved to a new one because the old one is full. A process
//! that is killed before that store has changed nothing, and after it has changed all. The number
//! of entries is counted again by whoever gets the lock of a part that was abandoned, who also gives
//! back a region that was made, or left, by the one who died.
//!
//! A reader takes the region's word, looks, and takes the word again: if it is another one, the
//! old region may have been put to other use meanwhile, and it looks once more. The word counts
//! regions, so that it does not repeat. No reader writes to shared memory, and none waits
//! for a process that was stopped or killed in the middle of a change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::arena::{Arena, Extent};
use super::atomic::{AtomicU64, Ordering, Unused, fence};
use super::layout::{Kind, MAP_ARENA, MAP_FIXED, MAP_KEY, MAP_SHARDS, SHARD_LINE, SHARDS};
use super::lock::{RawLock, Refused, Taken};
pub(crate) use super::region::Key;
use super::region::{
    EMPTY, ENTRY_HEAD, FILLED, REGION_HEAD, REMOVED, Region, SLOT_BITS_MIN, USED, copy_in,
    copy_out, corrupt, fill,
};
use super::segment::{Segment, Shared};
use crate::error::{Error, ErrorKind, Result};

/// Bits of a region's word that say where it is; above them, regions are counted.
const PLACE_BITS: u32 = 48;
const PLACE: u64 = (1 << PLACE_BITS) - 1;

/// Keys and values are shorter than this.
const LEN_MAX: usize = 1 << 31;

/// How often a reader looks again before it takes the lock.
const TRIES: usize = if cfg!(loom) { 2 } else { 32 };

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Line {
    lock: RawLock,
    len: AtomicU64,
    _spare: [Unused; 4],
    /// In a cache line of its own, which changes only when entries are moved.
    region: AtomicU64,
    _rest: [Unused; 14],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Line>() == SHARD_LINE);
#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(Line, region) == 64);
const _: () = assert!(SHARDS.is_power_of_two() && SHARDS <= 64);

// SAFETY: atomics and a lock that is `Shared` itself.
unsafe impl Shared for Line {}

/// A view of a map.
pub(crate) struct Map {
    segment: Arc<Segment>,
    arena: Arena,
    key: (u64, u64),
}

impl Map {
    /// Makes an empty map; `key` is that of its hash.
    pub(crate) fn create(key: (u64, u64)) -> Result<Self> {
        let segment = Segment::create(Kind::Map, MAP_FIXED)?;
        let word = |at: usize| -> &AtomicU64 { segment.at(MAP_KEY + at) };
        word(0).store(key.0, Ordering::Relaxed);
        word(8).store(key.1, Ordering::Relaxed);
        Ok(Self::view(segment))
    }

    pub(crate) fn attach(fd: OwnedFd) -> Result<Self> {
        Ok(Self::view(Segment::attach(fd, Kind::Map, MAP_FIXED)?))
    }

    fn view(segment: Arc<Segment>) -> Self {
        let word = |at: usize| {
            segment
                .at::<AtomicU64>(MAP_KEY + at)
                .load(Ordering::Relaxed)
        };
        Self {
            key: (word(0), word(8)),
            arena: Arena::new(Arc::clone(&segment), MAP_ARENA),
            segment,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    /// The key of the map's hash.
    pub(crate) fn key(&self) -> (u64, u64) {
        self.key
    }

    fn line(&self, shard: usize) -> &Line {
        assert!(shard < SHARDS);
        self.segment.at(MAP_SHARDS + shard * SHARD_LINE)
    }

    /// Which part a key belongs to: bits that say little about the slot.
    fn shard_of(hash: u64) -> usize {
        (hash >> 26) as usize & (SHARDS - 1)
    }

    /// Entries in the map. While others change it, a number that it had, part by part.
    pub(crate) fn len(&self) -> usize {
        let len = |shard| self.line(shard).len.load(Ordering::Relaxed) as usize;
        (0..SHARDS).map(len).fold(0, usize::saturating_add)
    }

    /// Copies a key's value out. `false` if there is none.
    pub(crate) fn get(&self, key: &Key<'_>, value: &mut Vec<u8>) -> Result<bool> {
        let region = &self.line(Self::shard_of(key.hash)).region;
        for _ in 0..TRIES {
            let word = region.load(Ordering::Acquire);
            super::step();
            let found = self.look(word, key, value);
            // The entry was read before the word is read again.
            fence(Ordering::Acquire);
            if region.load(Ordering::Relaxed) == word {
                return found;
            }
        }
        self.lock(key.hash)?.get(key, value)
    }

    fn look(&self, word: u64, key: &Key<'_>, value: &mut Vec<u8>) -> Result<bool> {
        let Some(region) = self.region(word)? else {
            return Ok(false);
        };
        let Some((_, entry)) = region.find(key)?.0 else {
            return Ok(false);
        };
        copy_out(entry.value, entry.value_len, value);
        Ok(true)
    }

    fn region(&self, word: u64) -> Result<Option<Region<'_>>> {
        if word & PLACE == 0 {
            return Ok(None);
        }
        let extent = Extent::from_word(word & PLACE).ok_or_else(|| corrupt("a place"))?;
        Region::of(self.arena.words(extent)?).map(Some)
    }

    /// Takes the lock of the part that a key belongs to.
    pub(crate) fn lock(&self, hash: u64) -> Result<Part<'_>> {
        self.lock_part(Self::shard_of(hash))
    }

    fn lock_part(&self, shard: usize) -> Result<Part<'_>> {
        let line = self.line(shard);
        let taken = line.lock.lock(None).map_err(|refused| match refused {
            Refused::Unsupported(error) => Error::os("lock a shared map", error),
            Refused::Own | Refused::Held => Error::new(
                ErrorKind::Busy,
                "a shared map was used from within a change to it",
            ),
        })?;
        let part = Part {
            map: self,
            line,
            shard,
        };
        if taken == Taken::Abandoned {
            part.mend()?;
        }
        Ok(part)
    }

    /// Copies out what is in a part, as of one moment.
    pub(crate) fn entries(&self, shard: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let part = self.lock_part(shard)?;
        let Some(region) = part.region()? else {
            return Ok(Vec::new());
        };
        let (mut entries, mut words) = (Vec::new(), 0);
        for slot in region.slots {
            if let Some(entry) = region.entry(slot.load(Ordering::Acquire))? {
                words += entry.words();
                if words > region.words.len() {
                    return Err(corrupt("entries that overlap"));
                }
                let (mut key, mut value) = (Vec::new(), Vec::new());
                copy_out(entry.key, entry.key_len, &mut key);
                copy_out(entry.value, entry.value_len, &mut value);
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Removes all entries, part by part.
    pub(crate) fn clear(&self) -> Result<()> {
        (0..SHARDS).try_for_each(|shard| self.lock_part(shard)?.clear())
    }
}

#[cfg(loom)]
impl Map {
    /// What the kernel does to the locks when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        self.arena.thread_ended();
        (0..SHARDS).for_each(|shard| self.line(shard).lock.thread_ended());
    }

    pub(super) fn extents_in_use(&self) -> usize {
        (0..SHARDS as u32)
            .map(|shard| self.arena.count(shard).1)
            .sum()
    }
}

/// A part of a map, locked until this is dropped.
pub(crate) struct Part<'a> {
    map: &'a Map,
    line: &'a Line,
    shard: usize,
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        // A model's thread that is killed unwinds, and gives nothing back.
        if cfg!(loom) && std::thread::panicking() {
            return;
        }
        self.line.lock.unlock();
    }
}

impl Part<'_> {
    fn owner(&self) -> u32 {
        self.shard as u32
    }

    fn region(&self) -> Result<Option<Region<'_>>> {
        self.map.region(self.line.region.load(Ordering::Relaxed))
    }

    fn extent(&self) -> Option<Extent> {
        Extent::from_word(self.line.region.load(Ordering::Relaxed) & PLACE)
    }

    /// Puts right what a process that died with the lock has left.
    fn mend(&self) -> Result<()> {
        self.map.arena.sweep(self.owner(), self.extent());
        let len = match self.region()? {
            None => 0,
            Some(region) => {
                let slots = region.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
                slots.filter(|slot| *slot > REMOVED).count()
            }
        };
        self.line.len.store(len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the lock is this thread's: in a forked child it is the parent's.
    fn check(&self) -> Result<()> {
        if self.line.lock.is_mine() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Busy,
            "a change to a shared map went on in a forked child; it is its parent's",
        ))
    }

    /// Copies a key's value out. `false` if there is none.
    pub(crate) fn get(&self, key: &Key<'_>, value: &mut Vec<u8>) -> Result<bool> {
        let word = self.line.region.load(Ordering::Relaxed);
        self.map.look(word, key, value)
    }

    /// Sets a key's value.
    pub(crate) fn put(&self, key: &Key<'_>, value: &[u8]) -> Result<()> {
        self.check()?;
        if key.bytes.len() >= LEN_MAX || value.len() >= LEN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a key or value of 2 GiB or more does not fit into a shared map",
            ));
        }
        let need = ENTRY_HEAD + key.bytes.len().div_ceil(8) + value.len().div_ceil(8);
        if let Some(region) = self.region()? {
            if self.put_into(&region, key, value, need)? {
                return Ok(());
            }
        }
        self.rebuild(need)?;
        match self.region()? {
            Some(region) if self.put_into(&region, key, value, need)? => Ok(()),
            // There was room: somebody else has written to it.
            _ => Err(corrupt("no room in a new region")),
        }
    }

    /// `false` if there is no room.
    fn put_into(
        &self,
        region: &Region<'_>,
        key: &Key<'_>,
        value: &[u8],
        need: usize,
    ) -> Result<bool> {
        let words = region.words;
        let first = (REGION_HEAD + region.slots.len()) as u64;
        let used = words[USED].load(Ordering::Relaxed);
        if used < first || used > words.len() as u64 {
            return Err(corrupt("a region that is used up to nowhere"));
        }
        let at = used as usize;
        let Some(room) = words.get(at..).and_then(|rest| rest.get(..need)) else {
            return Ok(false);
        };
        let (found, free) = region.find(key)?;
        let is_new = found.is_none();
        let Some(slot) = found.map(|(slot, _)| slot).or(free) else {
            return Ok(false);
        };
        if region.slots[slot].load(Ordering::Relaxed) == EMPTY {
            let filled = words[FILLED].load(Ordering::Relaxed).saturating_add(1);
            if filled.saturating_mul(4) > region.slots.len() as u64 * 3 {
                return Ok(false);
            }
            words[FILLED].store(filled, Ordering::Relaxed);
        }
        // First: whoever is killed after it has lost these words, until entries are moved.
        words[USED].store(used + need as u64, Ordering::Relaxed);
        super::step();
        let (head, rest) = room.split_at(ENTRY_HEAD);
        let (key_words, value_words) = rest.split_at(key.bytes.len().div_ceil(8));
        head[0].store(key.hash, Ordering::Relaxed);
        head[1].store(
            key.bytes.len() as u64 | (value.len() as u64) << 32,
            Ordering::Relaxed,
        );
        copy_in(key_words, key.bytes);
        copy_in(value_words, value);
        super::step();
        // From here on everybody sees it, all of it.
        region.slots[slot].store(at as u64 | key.hash >> 32 << 32, Ordering::Release);
        super::step();
        if is_new {
            let len = self.line.len.load(Ordering::Relaxed);
            self.line.len.store(len.wrapping_add(1), Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Moves the entries to a new region, with room for as many again and for `need` words.
    fn rebuild(&self, need: usize) -> Result<()> {
        let old = self.region()?;
        let (mut entries, mut words) = (0usize, 0usize);
        if let Some(region) = &old {
            for slot in region.slots {
                if let Some(entry) = region.entry(slot.load(Ordering::Relaxed))? {
                    entries += 1;
                    words = words.saturating_add(entry.words());
                }
            }
            // Slots that name the same words would ask for memory without bounds.
            if words > region.words.len() {
                return Err(corrupt("entries that overlap"));
            }
        }
        let bits = ((entries + 1) * 2)
            .next_power_of_two()
            .ilog2()
            .max(SLOT_BITS_MIN);
        let wanted = (REGION_HEAD + (1 << bits))
            .saturating_add(words.saturating_mul(2))
            .saturating_add(need.saturating_mul(2));
        let class = Extent::class_for(wanted).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfMemory,
                "a part of a shared map would be larger than 32 GiB",
            )
        })?;
        let extent = self.map.arena.alloc(class, self.owner())?;
        let moved = self
            .map
            .arena
            .words(extent)
            .and_then(|new| fill(new, bits, old.as_ref()));
        if let Err(error) = moved {
            self.map.arena.free(extent, self.owner());
            return Err(error);
        }
        self.replace(extent.to_word());
        Ok(())
    }

    /// Has the part use another region, or none, and gives the one before back.
    fn replace(&self, place: u64) {
        let before = self.line.region.load(Ordering::Relaxed);
        let count = (before >> PLACE_BITS).wrapping_add(1) << PLACE_BITS;
        let extent = self.extent();
        super::step();
        self.line.region.store(place | count, Ordering::Release);
        super::step();
        if let Some(extent) = extent {
            self.map.arena.free(extent, self.owner());
        }
    }

    /// Removes a key; whether it was there.
    pub(crate) fn remove(&self, key: &Key<'_>) -> Result<bool> {
        self.check()?;
        let Some(region) = self.region()? else {
            return Ok(false);
        };
        let (Some((slot, _)), _) = region.find(key)? else {
            return Ok(false);
        };
        region.slots[slot].store(REMOVED, Ordering::Release);
        let len = self.line.len.load(Ordering::Relaxed);
        self.line.len.store(len.wrapping_sub(1), Ordering::Relaxed);
        Ok(true)
    }

    fn clear(&self) -> Result<()> {
        self.check()?;
        self.replace(0);
        self.line.len.store(0, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::layout::HEADER;
    use super::super::segment::View;
    use super::*;
    use crate::sys::memory::{self, Mapping};

    fn numbers(mut state: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    fn with_key<R>(n: u64, work: impl FnOnce(&Key<'_>) -> R) -> R {
        // Few parts, and keys that meet in their slots.
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !(0x3e << 26);
        work(&Key {
            hash,
            bytes: &n.to_ne_bytes()[..1 + n as usize % 8],
            is_same: &|_| Ok(false),
        })
    }

    fn operate(map: &Map, random: &mut impl FnMut(u64) -> u64) -> Result<()> {
        let mut value = Vec::new();
        let key = random(200);
        match random(8) {
            0..=3 => with_key(key, |key| {
                let bytes = vec![1; random(60) as usize];
                map.lock(key.hash)?.put(key, &bytes)
            })?,
            4 => drop(with_key(key, |key| map.lock(key.hash)?.remove(key))?),
            5 => drop(map.entries(random(SHARDS as u64) as usize)?),
            6 if random(20) == 0 => map.clear()?,
            6 => map.lock_part(random(SHARDS as u64) as usize)?.mend()?,
            _ => drop(with_key(key, |key| map.get(key, &mut value))?),
        }
        map.len();
        Ok(())
    }

    /// Whether a word belongs to a lock, whose links the kernel and the owner trust.
    fn is_lock(offset: usize) -> bool {
        let in_line = |from: usize| offset >= from && (offset - from) % SHARD_LINE < 40;
        (MAP_ARENA..MAP_ARENA + 40).contains(&offset) || (offset < MAP_FIXED && in_line(MAP_SHARDS))
    }

    #[test]
    fn nonsense_in_the_memory_is_an_error_at_most() {
        let mut random = numbers(0x5eed_1234_5678_9abd);
        let (mut fine, mut failed) = (0, 0);
        for _ in 0..300 {
            let map = Map::create((1, 2)).unwrap();
            for _ in 0..random(400) {
                operate(&map, &mut random).unwrap();
            }
            for _ in 0..40 {
                let len = memory::len(map.fd()).unwrap().min(4 << 20) as usize;
                let all = Mapping::ahead(map.fd(), 0, len).unwrap();
                for _ in 0..=random(4) {
                    // Mostly where something is: the table, the lines, the start of an extent.
                    let offset = match random(4) {
                        0 => MAP_ARENA + random(200) as usize * 8,
                        1 => MAP_SHARDS + random((SHARDS * SHARD_LINE / 8) as u64) as usize * 8,
                        2 => (MAP_FIXED + random(600) as usize * 8).min(len - 8),
                        _ => HEADER + random((len - HEADER) as u64 / 8) as usize * 8,
                    };
                    if is_lock(offset) {
                        continue;
                    }
                    let word: &AtomicU64 = View(&all).at(offset);
                    let old = word.load(Ordering::Relaxed);
                    let new = match random(6) {
                        0 => 0,
                        1 => u64::MAX,
                        2 => old ^ 1 << random(64),
                        3 => random(1 << 20),
                        4 => old.wrapping_add(random(64)).wrapping_sub(32),
                        _ => random(u64::MAX) >> random(64),
                    };
                    // Places far away are memory that nobody has: only a full machine is
                    // an error there.
                    if offset < MAP_SHARDS + SHARDS * SHARD_LINE && new >> 30 & 0x3_ffff != 0 {
                        continue;
                    }
                    word.store(new, Ordering::Relaxed);
                }
                for _ in 0..20 {
                    match operate(&map, &mut random) {
                        Ok(()) => fine += 1,
                        Err(_) => failed += 1,
                    }
                }
            }
        }
        assert!(
            fine > 1000 && failed > 1000,
            "{fine} went well, {failed} did not"
        );
    }

    #[test]
    fn what_a_dead_process_had_allocated_comes_back() {
        let map = Map::create((1, 2)).unwrap();
        let put = |n| {
            with_key(n, |key| {
                map.lock(key.hash).unwrap().put(key, b"value").unwrap()
            })
        };
        (0..200).for_each(put);
        for shard in 0..SHARDS {
            let part = map.lock_part(shard).unwrap();
            let (_, before) = map.arena.count(part.owner());
            let len = part.line.len.load(Ordering::Relaxed);
            // As by a process that was killed before it put an extent to use, and before it counted.
            map.arena.alloc(14, part.owner()).unwrap();
            part.line.len.store(len + 5, Ordering::Relaxed);
            assert_eq!(map.arena.count(part.owner()).1, before + 1);
            part.line.lock.unlock_abandoned();
            std::mem::forget(part);
            let part = map.lock_part(shard).unwrap();
            assert_eq!(map.arena.count(part.owner()).1, before);
            assert_eq!(part.line.len.load(Ordering::Relaxed), len);
        }
        let mut value = Vec::new();
        for n in 0..200 {
            assert!(with_key(n, |key| map.get(key, &mut value)).unwrap());
            assert_eq!(value, b"value");
        }
    }
}
