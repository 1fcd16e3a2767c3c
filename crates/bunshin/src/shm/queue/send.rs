//! Sending: what a producer does.

use super::super::atomic::Ordering;
use super::super::layout::QUEUE_CHUNK;
use super::super::lock::Taken;
use super::super::side::Limit;
#[cfg(feature = "tokio")]
use super::super::side::Shut;
use super::super::system as thread;
use super::header::{FREE, KEPT, KEPT_MAX};
use super::store::{self, corrupt};
use super::{
    EXTENT, INLINE, INLINE_MAX, JUMP, JUMP_BYTES, Outside, Queue, Refusal, is_ahead, parity,
    settled,
};
use crate::error::{Error, ErrorKind, Result};

impl Queue {
    /// Sends an item: its bytes, which lie in several places, and so many handles.
    pub(crate) fn push(
        &self,
        parts: &[&[u8]],
        handles: usize,
        limit: Limit,
        outside: &impl Outside,
    ) -> Result<(), Refusal> {
        loop {
            let side = self.producers();
            let taken = side.enter(limit, || self.has_room())?;
            if taken == Taken::Abandoned {
                self.mend_producers();
            }
            let pushed = if self.is_closed() {
                Some(Err(Refusal::Closed))
            } else if self.is_full() {
                None
            } else {
                Some(self.write(parts, handles, outside).map_err(Refusal::from))
            };
            side.leave(|| self.has_room());
            if let Some(pushed) = pushed {
                return pushed;
            }
        }
    }

    /// Waits until there is room, or the queue is closed, and takes none. False if the time was
    /// up before.
    #[cfg(feature = "tokio")]
    pub(crate) fn wait_for_room(&self, limit: Limit) -> Result<bool, Refusal> {
        let side = self.producers();
        match side.enter(limit, || self.has_room()) {
            Ok(Taken::Clean) => {}
            Ok(Taken::Abandoned) => self.mend_producers(),
            Err(Shut::NotReady | Shut::Held) => return Ok(false),
            Err(shut) => return Err(shut.into()),
        }
        let has_room = self.has_room();
        // The wake-up that this one may have got goes on to the next.
        side.leave(|| self.has_room());
        Ok(has_room)
    }

    pub(super) fn mend_producers(&self) {
        let header = self.header();
        let sent = header.sent.load(Ordering::Relaxed);
        let next = &header.sent_slots[parity(sent)].next;
        // What the dead one had reserved for an item that never was.
        store::release_from(&self.segment, next.load(Ordering::Relaxed).max(QUEUE_CHUNK));
    }

    fn write(&self, parts: &[&[u8]], handles: usize, outside: &impl Outside) -> Result<()> {
        let header = self.header();
        let mut store = self.produced.lock();
        let sent = header.sent.load(Ordering::Relaxed);
        let now = &header.sent_slots[parity(sent)];
        let mut position = now.position.load(Ordering::Relaxed);
        // Before the first chunk lie locks, of which this thread has one: nothing is written there,
        // whatever another process may say.
        let next = now.next.load(Ordering::Relaxed);
        let mut next = next.clamp(QUEUE_CHUNK, 1 << 62);
        let mut reused = now.reused.load(Ordering::Relaxed);
        let with_handles = now.with_handles.load(Ordering::Relaxed);
        let mut refilled = now.refilled.load(Ordering::Relaxed);

        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let is_inline = len <= INLINE_MAX;
        let inside = if is_inline { len as u64 } else { 16 };
        let lot_bytes = if handles == 0 { 0 } else { 8 };
        // Tells these handles from those of an item that never came, as its producer died.
        let lot = if handles == 0 { 0 } else { thread::ticks() };
        let span = 8 + lot_bytes + inside.next_multiple_of(8);
        let room = QUEUE_CHUNK - position % QUEUE_CHUNK;
        if room < span + JUMP_BYTES {
            let chunk = self.next_chunk(&mut next, &mut reused)?;
            if room < JUMP_BYTES {
                return Err(corrupt("a queue's positions make no sense"));
            }
            store.put(&self.segment, position, &JUMP.to_le_bytes())?;
            store.put(&self.segment, position + 8, &chunk.to_le_bytes())?;
            position = chunk;
        }
        let mut at = position + 8;
        let mut head = (handles as u64) << 8;
        if handles != 0 {
            store.put(&self.segment, at, &lot.to_le_bytes())?;
            at += 8;
        }
        if is_inline {
            head |= INLINE | (len as u64) << 32;
            for part in parts {
                store.put(&self.segment, at, part)?;
                at += part.len() as u64;
            }
        } else {
            head |= EXTENT;
            let len = len as u64;
            let extent = match self.kept_extent(len, next, &mut refilled) {
                Some(extent) => extent,
                None => {
                    let extent = next.next_multiple_of(4096);
                    let end = extent.checked_add(len).filter(|end| *end < 1 << 62);
                    let worn = || Error::new(ErrorKind::OutOfMemory, "the queue is worn out");
                    next = end.ok_or_else(worn)?.next_multiple_of(4096);
                    extent
                }
            };
            store::write(&self.segment, extent, parts)?;
            store.put(&self.segment, at, &extent.to_le_bytes())?;
            store.put(&self.segment, at + 8, &len.to_le_bytes())?;
        }
        if handles != 0 {
            if let Err(error) = outside.send_handles(lot) {
                // Its extent, if it has one.
                self.mend_producers();
                return Err(error);
            }
        }
        store.put(&self.segment, position, &head.to_le_bytes())?;

        let new = &header.sent_slots[parity(sent + 1)];
        new.position.store(position + span, Ordering::Relaxed);
        new.next.store(next, Ordering::Relaxed);
        new.reused.store(reused, Ordering::Relaxed);
        let with_handles = with_handles + u64::from(handles != 0);
        new.with_handles.store(with_handles, Ordering::Relaxed);
        new.refilled.store(refilled, Ordering::Relaxed);
        let capacity = header.capacity.load(Ordering::Relaxed);
        let seen = header.taken_seen.load(Ordering::Relaxed);
        if capacity != 0 && (sent + 1).wrapping_sub(seen) >= capacity {
            let seen = header.taken.load(Ordering::Acquire);
            header.taken_seen.store(seen, Ordering::Release);
        }
        // The processor number costs a few nanoseconds: now and then is enough.
        if sent % 64 == 0 {
            header
                .producer_cpu
                .store(thread::cpu() + 1, Ordering::Relaxed);
        }
        if header.watched.load(Ordering::Relaxed) != 0 && header.lit.load(Ordering::Relaxed) == 0 {
            // Before the item is there: if this process dies in between, somebody looks in
            // vain, where otherwise an item would wait for somebody to look.
            outside.light();
            header.lit.store(1, Ordering::Relaxed);
        }
        self.consumers()
            .announce(|| header.sent.store(sent + 1, Ordering::Release), || true);
        Ok(())
    }

    /// An extent for so many bytes that was used before. Those that come before it and do not
    /// fit give their memory back.
    ///
    /// Whoever dies here has taken none of them, with their memory or without: they are only
    /// ever written to by the system, which makes what is not there.
    fn kept_extent(&self, len: u64, next: u64, refilled: &mut u64) -> Option<u64> {
        if len > KEPT_MAX {
            return None;
        }
        let header = self.header();
        let kept = settled(&header.taken, |number| {
            &header.received_slots[parity(number)].kept
        })?;
        for _ in 0..KEPT {
            if !is_ahead(kept, *refilled) {
                break;
            }
            let kept = &header.kept[(*refilled % KEPT) as usize];
            let (extent, room) = (
                kept.extent.load(Ordering::Relaxed),
                kept.len.load(Ordering::Relaxed),
            );
            *refilled += 1;
            let end = extent.saturating_add(room);
            if extent % 4096 != 0 || extent < QUEUE_CHUNK || room > KEPT_MAX || end > next {
                continue;
            }
            // A short item in a long extent would keep the rest of it from everybody.
            if len <= room && room <= len.saturating_mul(2) {
                return Some(extent);
            }
            store::release(&self.segment, extent, room);
        }
        None
    }

    /// A chunk to go on in.
    fn next_chunk(&self, next: &mut u64, reused: &mut u64) -> Result<u64> {
        let header = self.header();
        let freed = settled(&header.taken, |number| {
            &header.received_slots[parity(number)].freed
        });
        if freed.is_some_and(|freed| is_ahead(freed, *reused)) {
            let chunk = header.free[(*reused % FREE) as usize].load(Ordering::Relaxed);
            if chunk % QUEUE_CHUNK == 0 && chunk >= QUEUE_CHUNK && chunk < *next {
                *reused += 1;
                return Ok(chunk);
            }
        }
        let chunk = next.next_multiple_of(QUEUE_CHUNK);
        store::reserve(&self.segment, chunk)?;
        *next = chunk + QUEUE_CHUNK;
        Ok(chunk)
    }
}
