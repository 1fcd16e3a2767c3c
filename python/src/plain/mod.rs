//! Small objects of built-in types, pickled and unpickled without a pickler.
//!
//! What is written is an ordinary pickle, that anybody's `pickle.loads` reads. What is read is
//! what is written here; anything else is left to `pickle`. Only objects of exactly these
//! types qualify (no subclasses), nested a few levels deep: `None`, `bool`, `int` of 64 bits,
//! `float`, `str`, `bytes`, `tuple`, `list`, `dict`, `set`. One that can change and occurs twice
//! does not, as it would arrive as two.
//!
//! - `writer.rs`: objects to bytes
//! - `reader.rs`: bytes to objects
//! - `names.rs`: keys of dicts that came before
//! - `object.rs`: the interpreter's functions that take or give objects without counting them

mod names;
mod object;
mod reader;
mod writer;

pub(crate) use reader::load;
pub(crate) use writer::dump;

/// Levels of containers.
const DEPTH: usize = 6;
/// Longer strings and containers are left to the pickler, and so is what becomes longer than all
/// of it may be: a pickler writes a string once that occurs in many places.
const BYTES: usize = 16 << 10;
const ITEMS: usize = 256;
const TOTAL: usize = 32 << 10;
/// Containers that can change, in one object.
const CONTAINERS: usize = 64;

const PROTO: u8 = 0x80;
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const BININT: u8 = b'J';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const SHORT_STR: u8 = 0x8c;
const STR: u8 = b'X';
const SHORT_BYTES: u8 = b'C';
const BIN_BYTES: u8 = b'B';
const MARK: u8 = b'(';
const EMPTY_TUPLE: u8 = b')';
const TUPLE: u8 = b't';
const EMPTY_LIST: u8 = b']';
const APPENDS: u8 = b'e';
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';
const EMPTY_SET: u8 = 0x8f;
const ADDITEMS: u8 = 0x90;
