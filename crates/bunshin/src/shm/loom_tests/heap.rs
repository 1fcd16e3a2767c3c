//! The heap's blocks: one writer at most, and none of them free while somebody holds it.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::heap::{Block, Descriptor, Heap};
use super::super::layout::{HEAP_TABLE, Kind};
use super::super::segment::Segment;
use super::super::system;
use super::explore;

const MEMBERS: usize = 3;
/// Small enough to be kept when it is free, and large enough not to be.
const KEPT: usize = 64 << 10;
const GIVEN_BACK: usize = 128 << 10;

struct Shop {
    heaps: [Arc<Heap>; MEMBERS],
    /// Stands for the bytes of each block.
    bytes: [UnsafeCell<u8>; 2],
}

// SAFETY: loom fails the test if two threads use a cell at once.
unsafe impl Sync for Shop {}

impl Shop {
    fn new() -> Arc<Self> {
        let segment = Segment::create(Kind::Pipe, HEAP_TABLE).unwrap();
        let heap = |member| Heap::new(Arc::clone(&segment), 0, member);
        Arc::new(Self {
            heaps: [heap(0), heap(1), heap(2)],
            bytes: Default::default(),
        })
    }

    fn alloc(&self, member: usize, len: usize) -> Block {
        self.heaps[member].alloc(len).unwrap().expect("a block")
    }

    /// Writes to the block if its holder believes to be alone, and reads it otherwise.
    fn touch(&self, block: &mut Block) -> bool {
        let bytes = &self.bytes[block.index().expect("a block of the heap")];
        let is_alone = block.bytes_mut().is_some();
        if is_alone {
            // SAFETY: as above.
            bytes.with_mut(|byte| unsafe { *byte += 1 });
        } else {
            // SAFETY: as above.
            bytes.with(|byte| unsafe { *byte });
        }
        is_alone
    }

    fn thread<R: 'static>(
        self: &Arc<Self>,
        member: usize,
        work: impl FnOnce(&Self) -> R + 'static,
    ) -> thread::JoinHandle<R> {
        let shop = Arc::clone(self);
        thread::spawn(move || system::run(member as u32 + 1, None, || work(&shop)).unwrap())
    }

    fn here(self: &Arc<Self>, work: impl FnOnce(&Self)) {
        system::run(1, None, || work(self));
    }
}

fn take_and_let_go(len: usize) -> impl Fn(&Shop, usize) {
    move |shop, member| {
        let mut block = shop.alloc(member, len);
        assert!(shop.touch(&mut block), "a new block is for one alone");
    }
}

#[test]
fn loom_heap_gives_a_free_block_to_one() {
    for len in [KEPT, GIVEN_BACK] {
        explore(3, move || {
            let shop = Shop::new();
            let once = take_and_let_go(len);
            shop.here(|shop| once(shop, 0));
            let other = shop.thread(1, move |shop| take_and_let_go(len)(shop, 1));
            shop.here(|shop| once(shop, 0));
            other.join().unwrap();
        });
    }
}

#[test]
fn loom_heap_lets_one_of_two_holders_write() {
    for len in [KEPT, GIVEN_BACK] {
        explore(3, move || {
            let shop = Shop::new();
            let inside = Arc::clone(&shop);
            shop.here(move |shop| {
                let mut block = shop.alloc(0, len);
                assert!(shop.touch(&mut block));
                let sent = block.send_by(&shop.heaps[0]).expect("nobody has sent it");
                let receiver = inside.thread(1, move |shop| {
                    let mut block = shop.heaps[1].claim(sent).unwrap();
                    shop.touch(&mut block);
                    shop.touch(&mut block);
                });
                let other = inside.thread(2, move |shop| take_and_let_go(len)(shop, 2));
                shop.touch(&mut block);
                drop(block);
                receiver.join().unwrap();
                other.join().unwrap();
            });
        });
    }
}

#[test]
fn loom_heap_recalls_or_delivers() {
    for len in [KEPT, GIVEN_BACK] {
        explore(3, move || {
            let shop = Shop::new();
            let inside = Arc::clone(&shop);
            shop.here(move |shop| {
                let block = shop.alloc(0, len);
                let sent = block.send_by(&shop.heaps[0]).unwrap();
                let receiver = inside.thread(1, move |shop| {
                    if let Ok(mut block) = shop.heaps[1].claim(sent) {
                        shop.touch(&mut block);
                    }
                });
                drop(block);
                shop.heaps[0].recall(sent);
                take_and_let_go(len)(shop, 0);
                receiver.join().unwrap();
                // Whichever it was, the block is free again, as is the one made meanwhile if any.
                let both = [shop.alloc(2, len), shop.alloc(2, len)];
                let mut indices = both.each_ref().map(Block::index);
                indices.sort_unstable();
                assert_eq!(indices, [Some(0), Some(1)]);
            });
        });
    }
}

#[test]
fn loom_heap_frees_what_a_dead_member_held() {
    for is_received in [true, false] {
        explore(3, move || {
            let shop = Shop::new();
            let inside = Arc::clone(&shop);
            shop.here(move |shop| {
                let mut block = shop.alloc(0, KEPT);
                let sent = block.send_by(&shop.heaps[0]).unwrap();
                // Dies with the block, or before it has read of it.
                let dead = if is_received {
                    std::mem::forget(shop.heaps[1].claim(sent).unwrap());
                    1
                } else {
                    std::mem::forget(shop.alloc(1, KEPT));
                    0
                };
                let buried = inside.thread(2, move |shop| {
                    shop.heaps[2].bury(dead);
                    take_and_let_go(KEPT)(shop, 2);
                });
                if is_received {
                    shop.touch(&mut block);
                    drop(block);
                } else {
                    std::mem::forget(block);
                }
                buried.join().unwrap();
                assert_eq!(shop.alloc(2, KEPT).index(), Some(0));
            });
        });
    }
}

/// A block whose sender has died may be on its way once more, sent by somebody else.
#[test]
fn loom_heap_delivers_what_the_living_send() {
    explore(3, || {
        let shop = Shop::new();
        let inside = Arc::clone(&shop);
        shop.here(move |shop| {
            let first = shop.alloc(1, KEPT);
            let sent = first.send_by(&shop.heaps[1]).unwrap();
            let block = shop.heaps[0].claim(sent).unwrap();
            std::mem::forget(first);
            let burial = inside.thread(2, |shop| shop.heaps[2].bury(1));
            let sent = block.send_by(&shop.heaps[0]).expect("it is not on its way");
            drop(block);
            let mut block = shop.heaps[2].claim(sent).expect("it has been sent");
            burial.join().unwrap();
            assert!(shop.touch(&mut block));
        });
    });
}

/// A block that comes back to a member that holds it still.
#[test]
fn loom_heap_keeps_two_of_one_process_apart() {
    explore(3, || {
        let shop = Shop::new();
        let inside = Arc::clone(&shop);
        shop.here(move |shop| {
            let mut kept = shop.alloc(0, KEPT);
            kept.bytes_mut().unwrap()[0] = 7;
            let pass = |by: &Block, from: usize| -> Descriptor {
                by.send_by(&shop.heaps[from]).expect("it is not on its way")
            };
            let there = shop.heaps[1].claim(pass(&kept, 0)).unwrap();
            let sent = pass(&there, 1);
            drop(there);
            let back = inside.thread(0, move |shop| {
                let mut back = shop.heaps[0].claim(sent).unwrap();
                assert_eq!(back.bytes()[0], 7);
                if back.index().is_some() {
                    shop.touch(&mut back);
                }
                back
            });
            shop.touch(&mut kept);
            drop(kept);
            let mut other = shop.alloc(2, KEPT);
            shop.touch(&mut other);
            let back = back.join().unwrap();
            assert_eq!(back.bytes()[0], 7);
            assert!(back.index().is_none() || back.index() != other.index());
        });
    });
}
