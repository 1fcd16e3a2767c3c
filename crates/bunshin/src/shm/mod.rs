#![doc = include_str!("LAYOUT.md")]
#![allow(unsafe_code)]

pub(crate) mod cell;
pub(crate) mod heap;
pub(crate) mod layout;
pub(crate) mod lock;
pub(crate) mod ring;
pub(crate) mod segment;
pub(crate) mod table;
