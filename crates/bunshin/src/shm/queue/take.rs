//! Taking: what a consumer does.

use super::super::atomic::Ordering;
use super::super::layout::QUEUE_CHUNK;
use super::super::lock::Taken;
use super::super::side::Limit;
use super::super::system as thread;
use super::header::{FREE, KEPT, KEPT_MAX};
use super::store::{self, corrupt};
use super::{
    EXTENT, INLINE, INLINE_MAX, JUMP, OnTake, Outside, Queue, Refusal, is_ahead, parity, settled,
};
use crate::error::Result;

impl Queue {
    /// Takes an item: its bytes are appended to `body`. Says how many handles it has, which
    /// `outside` has fetched.
    pub(crate) fn pop(
        &self,
        body: &mut Vec<u8>,
        limit: Limit,
        outside: &impl Outside,
        on_take: &impl OnTake,
    ) -> Result<usize, Refusal> {
        loop {
            let side = self.consumers();
            let taken = side.enter(limit, || self.has_item())?;
            if taken == Taken::Abandoned {
                self.mend_consumers(on_take);
            }
            let number = self.header().taken.load(Ordering::Relaxed);
            let popped = if self.is_ahead_of(number) {
                Some(self.read(body, outside, on_take).map_err(Refusal::from))
            } else {
                self.settle(outside);
                self.is_closed().then_some(Err(Refusal::Closed))
            };
            side.leave(|| self.has_item());
            if let Some(popped) = popped {
                return popped;
            }
        }
    }

    pub(super) fn mend_consumers(&self, on_take: &impl OnTake) {
        let taken = self.header().taken.load(Ordering::Relaxed);
        self.give_back(taken);
        on_take.mend(taken);
    }

    /// Gives back the memory that whoever took item number `taken` has left to do.
    #[inline]
    fn give_back(&self, taken: u64) {
        let slot = &self.header().received_slots[parity(taken)];
        let chunk = slot.chunk.load(Ordering::Relaxed);
        if chunk >= QUEUE_CHUNK {
            store::release(&self.segment, chunk, QUEUE_CHUNK);
        }
        let extent = slot.extent.load(Ordering::Relaxed);
        if extent >= QUEUE_CHUNK {
            let len = slot.extent_len.load(Ordering::Relaxed);
            let len = len.min(1 << 62).next_multiple_of(4096);
            store::release(&self.segment, extent, len);
        }
    }

    /// Writes an extent that has been read into the ring of those that are kept, where it counts
    /// once the item is taken; false if it is to give its memory back.
    fn keep(&self, extent: u64, len: u64, kept: u64) -> bool {
        let header = self.header();
        let len = len.next_multiple_of(4096);
        if len > KEPT_MAX || extent < QUEUE_CHUNK {
            return false;
        }
        let refilled = settled(&header.sent, |number| {
            &header.sent_slots[parity(number)].refilled
        });
        let has_room = refilled.is_some_and(|refilled| kept.wrapping_sub(refilled) < KEPT);
        if has_room {
            let place = &header.kept[(kept % KEPT) as usize];
            place.extent.store(extent, Ordering::Relaxed);
            place.len.store(len, Ordering::Relaxed);
        }
        has_room
    }

    fn read(
        &self,
        body: &mut Vec<u8>,
        outside: &impl Outside,
        on_take: &impl OnTake,
    ) -> Result<usize> {
        let header = self.header();
        let mut store = self.consumed.lock();
        let mut word = |at: u64| {
            let mut bytes = [0; 8];
            store
                .get(&self.segment, at, &mut bytes)
                .map(|()| u64::from_le_bytes(bytes))
        };
        let taken = header.taken.load(Ordering::Relaxed);
        let now = &header.received_slots[parity(taken)];
        let mut position = now.position.load(Ordering::Relaxed);
        let mut freed = now.freed.load(Ordering::Relaxed);
        let with_handles = now.with_handles.load(Ordering::Relaxed);
        let mut kept = now.kept.load(Ordering::Relaxed);
        let (mut chunk, mut extent, mut extent_len) = (0, 0, 0);

        let mut head = word(position)?;
        if head & 0xff == JUMP {
            let left = position - position % QUEUE_CHUNK;
            position = word(position + 8)?;
            head = word(position)?;
            let reused = settled(&header.sent, |number| {
                &header.sent_slots[parity(number)].reused
            });
            if reused.is_some_and(|reused| freed.wrapping_sub(reused) < FREE) {
                header.free[(freed % FREE) as usize].store(left, Ordering::Relaxed);
                freed += 1;
            } else {
                chunk = left;
            }
        }
        let handles = (head >> 8) as usize & 0xffff;
        let mut at = position + 8;
        if handles != 0 {
            outside.fetch_handles(word(at)?, handles)?;
            at += 8;
        }
        match head & 0xff {
            INLINE => {
                let len = (head >> 32) as usize;
                if len > INLINE_MAX {
                    return Err(corrupt("a queue's item is longer than any"));
                }
                store.append(&self.segment, at, len, body)?;
                at += (len as u64).next_multiple_of(8);
            }
            EXTENT => {
                (extent, extent_len) = (word(at)?, word(at + 8)?);
                store::read(&self.segment, extent, extent_len, body)?;
                at += 16;
                if self.keep(extent, extent_len, kept) {
                    kept += 1;
                    (extent, extent_len) = (0, 0);
                }
            }
            kind => return Err(corrupt(&format!("a queue's record is of kind {kind}"))),
        }

        on_take.before(taken)?;
        let new = &header.received_slots[parity(taken + 1)];
        new.position.store(at, Ordering::Relaxed);
        new.freed.store(freed, Ordering::Relaxed);
        let is_with_handles = u64::from(handles != 0);
        new.with_handles
            .store(with_handles + is_with_handles, Ordering::Relaxed);
        new.chunk.store(chunk, Ordering::Relaxed);
        new.extent.store(extent, Ordering::Relaxed);
        new.extent_len.store(extent_len, Ordering::Relaxed);
        new.kept.store(kept, Ordering::Relaxed);
        let seen = header.sent_seen.load(Ordering::Relaxed);
        if !is_ahead(seen, taken + 1) {
            let sent = header.sent.load(Ordering::Acquire);
            header.sent_seen.store(sent, Ordering::Release);
        }
        if taken % 64 == 0 {
            header
                .consumer_cpu
                .store(thread::cpu() + 1, Ordering::Relaxed);
        }
        let take = || header.taken.store(taken + 1, Ordering::Release);
        // Where nobody can wait for room, nobody has to be looked for.
        if header.capacity.load(Ordering::Relaxed) != 0 || handles != 0 {
            self.producers().announce(take, || true);
        } else {
            take();
        }
        on_take.after();
        if handles != 0 {
            outside.drop_handles();
        }
        if chunk | extent != 0 {
            self.give_back(taken + 1);
        }
        if header.watched.load(Ordering::Relaxed) != 0 && self.is_empty() {
            self.settle(outside);
        }
        Ok(handles)
    }
}
