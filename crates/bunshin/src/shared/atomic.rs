//! Integers that can be changed without a lock.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use bytemuck::Pod;

use crate::shm::cell::SharedCell;

/// Integers that the processor changes as a whole.
///
/// Implemented for all integers of 8 to 64 bits; nobody else can implement it.
pub trait Atomic: Pod + PartialEq + sealed::InMemory {}

pub(crate) mod sealed {
    use super::{Ordering, SharedCell};

    pub trait InMemory: Sized {
        #[doc(hidden)]
        fn load(cell: &Memory<'_>, order: Ordering) -> Self;
        #[doc(hidden)]
        fn store(cell: &Memory<'_>, value: Self, order: Ordering);
        #[doc(hidden)]
        fn swap(cell: &Memory<'_>, value: Self, order: Ordering) -> Self;
        #[doc(hidden)]
        fn add(cell: &Memory<'_>, value: Self, order: Ordering) -> Self;
        #[doc(hidden)]
        fn compare_exchange(cell: &Memory<'_>, current: Self, new: Self) -> Result<Self, Self>;
    }

    /// A place in shared memory.
    #[derive(Debug)]
    pub struct Memory<'a> {
        pub(crate) cell: &'a SharedCell,
        pub(crate) offset: usize,
    }
}

macro_rules! atomic {
    ($($type:ident as $unsigned:ident in $atomic:ident by $get:ident),*) => { $(
        impl Atomic for $type {}

        impl sealed::InMemory for $type {
            fn load(at: &sealed::Memory<'_>, order: Ordering) -> Self {
                let word: &$atomic = at.cell.$get(at.offset);
                word.load(order) as Self
            }

            fn store(at: &sealed::Memory<'_>, value: Self, order: Ordering) {
                at.cell.$get(at.offset).store(value as $unsigned, order);
            }

            fn swap(at: &sealed::Memory<'_>, value: Self, order: Ordering) -> Self {
                at.cell.$get(at.offset).swap(value as $unsigned, order) as Self
            }

            fn add(at: &sealed::Memory<'_>, value: Self, order: Ordering) -> Self {
                at.cell.$get(at.offset).fetch_add(value as $unsigned, order) as Self
            }

            fn compare_exchange(at: &sealed::Memory<'_>, current: Self, new: Self) -> Result<Self, Self> {
                at.cell
                    .$get(at.offset)
                    .compare_exchange(current as $unsigned, new as $unsigned, Ordering::SeqCst, Ordering::SeqCst)
                    .map(|value| value as Self)
                    .map_err(|value| value as Self)
            }
        }
    )* };
}

atomic!(
    u8 as u8 in AtomicU8 by atomic_u8,
    i8 as u8 in AtomicU8 by atomic_u8,
    u16 as u16 in AtomicU16 by atomic_u16,
    i16 as u16 in AtomicU16 by atomic_u16,
    u32 as u32 in AtomicU32 by atomic_u32,
    i32 as u32 in AtomicU32 by atomic_u32,
    u64 as u64 in AtomicU64 by atomic_u64,
    i64 as u64 in AtomicU64 by atomic_u64,
    usize as u64 in AtomicU64 by atomic_u64,
    isize as u64 in AtomicU64 by atomic_u64
);
