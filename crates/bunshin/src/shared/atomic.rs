//! Integers that can be changed without a lock.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use bytemuck::Pod;

use crate::error::Result;

/// Integers that the processor changes as a whole.
///
/// Implemented for all integers of 8 to 64 bits; nobody else can implement it.
///
/// # Examples
/// ```
/// use bunshin::{Atomic, RawValue};
/// use std::sync::atomic::Ordering;
///
/// fn take_ticket<T: Atomic>(next: &RawValue<T>, one: T) -> T {
///     next.fetch_add(one, Ordering::Relaxed)
/// }
///
/// let next = RawValue::new(7u16)?;
/// assert_eq!(take_ticket(&next, 1), 7);
/// assert_eq!(next.get(), 8);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub trait Atomic: Pod + PartialEq + sealed::InMemory {}

pub(crate) mod sealed {
    use super::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
    use crate::error::Result;
    use crate::shm::cell::SharedCell;
    use crate::shm::memory::SharedMemory;

    pub trait InMemory: Sized {
        /// Whether an integer of this type can lie there.
        #[doc(hidden)]
        fn check(at: &Memory<'_>) -> Result<()>;
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
    #[derive(Clone, Copy, Debug)]
    pub struct Memory<'a>(pub(crate) Place<'a>);

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Place<'a> {
        /// In shared data; the offset was checked against its length.
        Cell(&'a SharedCell, usize),
        /// In plain shared memory.
        Bytes(&'a SharedMemory, usize),
    }

    macro_rules! words {
        ($($name:ident: $atomic:ident),*) => {
            impl<'a> Memory<'a> { $(
                #[inline]
                pub(crate) fn $name(&self) -> Result<&'a $atomic> {
                    match self.0 {
                        Place::Cell(cell, offset) => Ok(cell.$name(offset)),
                        Place::Bytes(memory, offset) => memory.word(offset),
                    }
                }
            )* }
        };
    }
    words!(atomic_u8: AtomicU8, atomic_u16: AtomicU16, atomic_u32: AtomicU32, atomic_u64: AtomicU64);
}

/// What was checked when the place was made.
fn word<T>(word: Result<&T>) -> &T {
    word.expect("the place was checked")
}

macro_rules! atomic {
    ($($type:ident as $unsigned:ident in $atomic:ident by $get:ident),*) => { $(
        impl Atomic for $type {}

        impl sealed::InMemory for $type {
            fn check(at: &sealed::Memory<'_>) -> Result<()> {
                at.$get().map(|_: &$atomic| ())
            }

            fn load(at: &sealed::Memory<'_>, order: Ordering) -> Self {
                word(at.$get()).load(order) as Self
            }

            fn store(at: &sealed::Memory<'_>, value: Self, order: Ordering) {
                word(at.$get()).store(value as $unsigned, order);
            }

            fn swap(at: &sealed::Memory<'_>, value: Self, order: Ordering) -> Self {
                word(at.$get()).swap(value as $unsigned, order) as Self
            }

            fn add(at: &sealed::Memory<'_>, value: Self, order: Ordering) -> Self {
                word(at.$get()).fetch_add(value as $unsigned, order) as Self
            }

            fn compare_exchange(at: &sealed::Memory<'_>, current: Self, new: Self) -> Result<Self, Self> {
                word(at.$get())
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
