//! Small objects of built-in types, pickled and unpickled without a pickler.
//!
//! What is written is an ordinary pickle, that anybody's `pickle.loads` reads. What is read is
//! what is written here; anything else is left to `pickle`. Only objects of exactly these
//! types qualify (no subclasses), nested a few levels deep: `None`, `bool`, `int` of 64 bits,
//! `float`, `str`, `bytes`, `tuple`, `list`, `dict`, `set`. One that can change and occurs twice
//! does not, as it would arrive as two.

use std::cell::RefCell;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyNone, PySet, PyString, PyTuple,
};

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

/// Appends the pickle of an object; false, with anything appended, if it does not qualify.
pub(crate) fn dump(object: &Bound<'_, PyAny>, pickle: &mut Vec<u8>) -> bool {
    pickle.extend_from_slice(&[PROTO, 4]);
    let mut writer = Writer {
        end: pickle.len() + TOTAL,
        out: pickle,
        seen: Vec::new(),
    };
    let done = writer.write(object, DEPTH);
    pickle.push(STOP);
    done
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where it becomes too long.
    end: usize,
    /// Containers that can change.
    seen: Vec<*mut ffi::PyObject>,
}

impl Writer<'_> {
    fn write(&mut self, object: &Bound<'_, PyAny>, depth: usize) -> bool {
        if let Ok(text) = object.cast_exact::<PyString>() {
            // Lone surrogates have no such form.
            let Ok(text) = text.to_str() else {
                return false;
            };
            return self.write_bytes(text.as_bytes(), SHORT_STR, STR);
        }
        if let Ok(number) = object.cast_exact::<PyInt>() {
            return match number.extract::<i64>() {
                Ok(number) => {
                    self.write_int(number);
                    true
                }
                // Too large for this, and the error is dropped.
                Err(_) => false,
            };
        }
        if object.is_none() {
            self.out.push(NONE);
            return true;
        }
        if let Ok(truth) = object.cast_exact::<PyBool>() {
            self.out.push(if truth.is_true() { TRUE } else { FALSE });
            return true;
        }
        if let Ok(number) = object.cast_exact::<PyFloat>() {
            let mut bytes = [BINFLOAT; 9];
            bytes[1..].copy_from_slice(&number.value().to_be_bytes());
            self.out.extend_from_slice(&bytes);
            return true;
        }
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return self.write_bytes(bytes.as_bytes(), SHORT_BYTES, BIN_BYTES);
        }
        match depth.checked_sub(1) {
            Some(depth) => self.write_container(object, depth),
            None => false,
        }
    }

    /// A container, whose items may have so many levels.
    fn write_container(&mut self, object: &Bound<'_, PyAny>, depth: usize) -> bool {
        // Nothing that runs here changes any of them.
        if let Ok(items) = object.cast_exact::<PyTuple>() {
            if items.is_empty() {
                self.out.push(EMPTY_TUPLE);
                return true;
            }
            self.out.push(MARK);
            let done =
                items.len() <= ITEMS && items.iter_borrowed().all(|item| self.write(&item, depth));
            self.out.push(TUPLE);
            return done;
        }
        if let Ok(items) = object.cast_exact::<PyDict>() {
            if !self.begin(object, items.len(), EMPTY_DICT) {
                return false;
            }
            let done = items
                .iter()
                .all(|(key, value)| self.write(&key, depth) && self.write(&value, depth));
            self.out.push(SETITEMS);
            return done;
        }
        if let Ok(items) = object.cast_exact::<PyList>() {
            if !self.begin(object, items.len(), EMPTY_LIST) {
                return false;
            }
            let done = items.iter().all(|item| self.write(&item, depth));
            self.out.push(APPENDS);
            return done;
        }
        if let Ok(items) = object.cast_exact::<PySet>() {
            if !self.begin(object, items.len(), EMPTY_SET) {
                return false;
            }
            let done = items.iter().all(|item| self.write(&item, depth));
            self.out.push(ADDITEMS);
            return done;
        }
        false
    }

    /// Begins a container that can change, unless it has begun before.
    fn begin(&mut self, object: &Bound<'_, PyAny>, len: usize, code: u8) -> bool {
        if len > ITEMS || self.seen.len() >= CONTAINERS || self.seen.contains(&object.as_ptr()) {
            return false;
        }
        self.seen.push(object.as_ptr());
        self.out.extend_from_slice(&[code, MARK]);
        true
    }

    fn write_bytes(&mut self, bytes: &[u8], short: u8, long: u8) -> bool {
        if bytes.len() > BYTES || self.out.len() > self.end {
            return false;
        }
        self.out.reserve(bytes.len() + 5);
        match u8::try_from(bytes.len()) {
            Ok(len) => self.out.extend_from_slice(&[short, len]),
            Err(_) => {
                self.out.push(long);
                let len = bytes.len() as u32;
                self.out.extend_from_slice(&len.to_le_bytes());
            }
        }
        self.out.extend_from_slice(bytes);
        true
    }

    fn write_int(&mut self, number: i64) {
        if let Ok(small) = u8::try_from(number) {
            self.out.extend_from_slice(&[BININT1, small]);
        } else if let Ok(small) = u16::try_from(number) {
            let [low, high] = small.to_le_bytes();
            self.out.extend_from_slice(&[BININT2, low, high]);
        } else if let Ok(small) = i32::try_from(number) {
            let mut bytes = [BININT; 5];
            bytes[1..].copy_from_slice(&small.to_le_bytes());
            self.out.extend_from_slice(&bytes);
        } else {
            let mut bytes = [8; 10];
            bytes[0] = LONG1;
            bytes[2..].copy_from_slice(&number.to_le_bytes());
            self.out.extend_from_slice(&bytes);
        }
    }
}

/// The object of a pickle that [`dump`] may have written; nothing if it was another.
pub(crate) fn load<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let rest = pickle.strip_prefix(&[PROTO, 4])?;
    let mut reader = Reader { rest };
    let code = reader.byte()?;
    let value = reader.value(py, code, DEPTH)?;
    (reader.rest == [STOP]).then_some(value)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The value that begins with this byte, whose containers have so many levels.
    fn value<'py>(&mut self, py: Python<'py>, code: u8, depth: usize) -> Option<Bound<'py, PyAny>> {
        Some(match code {
            SHORT_STR | STR => {
                let bytes = self.counted(code == SHORT_STR)?;
                PyString::new(py, std::str::from_utf8(bytes).ok()?).into_any()
            }
            BININT1 => PyInt::new(py, self.byte()?).into_any(),
            BININT2 => PyInt::new(py, u16::from_le_bytes(self.array()?)).into_any(),
            BININT => PyInt::new(py, i32::from_le_bytes(self.array()?)).into_any(),
            LONG1 => {
                if self.byte()? != 8 {
                    return None;
                }
                PyInt::new(py, i64::from_le_bytes(self.array()?)).into_any()
            }
            NONE => PyNone::get(py).to_owned().into_any(),
            TRUE | FALSE => PyBool::new(py, code == TRUE).to_owned().into_any(),
            BINFLOAT => PyFloat::new(py, f64::from_be_bytes(self.array()?)).into_any(),
            SHORT_BYTES | BIN_BYTES => {
                PyBytes::new(py, self.counted(code == SHORT_BYTES)?).into_any()
            }
            EMPTY_TUPLE => PyTuple::empty(py).into_any(),
            _ => return self.container(py, code, depth.checked_sub(1)?),
        })
    }

    /// The container that begins with this byte, whose items have so many levels.
    fn container<'py>(
        &mut self,
        py: Python<'py>,
        code: u8,
        depth: usize,
    ) -> Option<Bound<'py, PyAny>> {
        if code == MARK {
            let mut items = Vec::with_capacity(4);
            while let Some(code) = self.until(TUPLE)? {
                items.push(self.value(py, code, depth)?);
            }
            return Some(PyTuple::new(py, items).ok()?.into_any());
        }
        // Whatever is wrong with an item, such as one that a set cannot hold: `pickle` says it.
        match code {
            EMPTY_DICT if self.byte()? == MARK => {
                let dict = PyDict::new(py);
                while let Some(code) = self.until(SETITEMS)? {
                    let key = match code {
                        SHORT_STR => name(py, self.counted(true)?)?,
                        code => self.value(py, code, depth)?,
                    };
                    let code = self.byte()?;
                    dict.set_item(key, self.value(py, code, depth)?).ok()?;
                }
                Some(dict.into_any())
            }
            EMPTY_LIST if self.byte()? == MARK => {
                let list = PyList::empty(py);
                while let Some(code) = self.until(APPENDS)? {
                    list.append(self.value(py, code, depth)?).ok()?;
                }
                Some(list.into_any())
            }
            EMPTY_SET if self.byte()? == MARK => {
                let set = PySet::empty(py).ok()?;
                while let Some(code) = self.until(ADDITEMS)? {
                    set.add(self.value(py, code, depth)?).ok()?;
                }
                Some(set.into_any())
            }
            _ => None,
        }
    }

    /// The next byte, unless it is this one.
    fn until(&mut self, end: u8) -> Option<Option<u8>> {
        let code = self.byte()?;
        Some((code != end).then_some(code))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    fn counted(&mut self, is_short: bool) -> Option<&'a [u8]> {
        let len = if is_short {
            usize::from(self.byte()?)
        } else {
            usize::try_from(u32::from_le_bytes(self.array()?)).ok()?
        };
        let (first, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(first)
    }
}

/// Names that are remembered, a power of two, and how long those are at most.
const NAMES: usize = 512;
const NAME_BYTES: usize = 40;

/// Keys of dicts that came before, by a hash of their bytes.
type Names = Vec<Option<(Box<[u8]>, Py<PyString>)>>;

thread_local! {
    static KNOWN: RefCell<Names> = const { RefCell::new(Vec::new()) };
}

/// A key: mostly one that has come before. To look it up takes less than to make a string, hash
/// it, and free it, and many dicts with the same keys share them, as they do in one pickle.
fn name<'py>(py: Python<'py>, bytes: &[u8]) -> Option<Bound<'py, PyAny>> {
    if bytes.len() > NAME_BYTES {
        return Some(PyString::new(py, std::str::from_utf8(bytes).ok()?).into_any());
    }
    let at = hash(bytes) % NAMES;
    let known = KNOWN.try_with(|known| {
        let known = known.try_borrow().ok()?;
        match known.get(at) {
            Some(Some((name, key))) if **name == *bytes => Some(key.clone_ref(py)),
            _ => None,
        }
    });
    if let Ok(Some(key)) = known {
        return Some(key.into_bound(py).into_any());
    }
    let key = PyString::new(py, std::str::from_utf8(bytes).ok()?);
    let entry = Some((Box::from(bytes), key.clone().unbind()));
    let before = KNOWN.try_with(|known| {
        let mut known = known.try_borrow_mut().ok()?;
        if known.is_empty() {
            known.resize_with(NAMES, || None);
        }
        std::mem::replace(&mut known[at], entry)
    });
    drop(before);
    Some(key.into_any())
}

/// A hash that is good enough for a table in which a collision costs time only.
fn hash(bytes: &[u8]) -> usize {
    let mut hash = bytes.len() as u64;
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash as usize
}
