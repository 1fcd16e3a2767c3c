//! Bytes to objects.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyNone, PySet, PyTuple};

use super::names::{self, Names};
use super::*;

/// Places for items, to begin with.
const STACK: usize = 32;

/// The object of a pickle that [`dump`] may have written; nothing if it was another.
pub(crate) fn load<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let rest = pickle.strip_prefix(&[PROTO, 4])?;
    let mut bytes = Bytes { rest };
    let code = bytes.byte()?;
    // Most messages are no containers.
    let value = match bytes.single(py, code)? {
        Single::Value(value) => value,
        Single::Container => {
            let mut reader = Reader {
                py,
                bytes,
                names: Names::take(),
                items: Vec::new(),
            };
            let value = reader.container(code, DEPTH.checked_sub(1)?);
            reader.names.put_back();
            bytes = reader.bytes;
            value?
        }
    };
    (bytes.rest == [STOP]).then_some(value)
}

struct Reader<'a, 'py> {
    py: Python<'py>,
    bytes: Bytes<'a>,
    names: Names,
    /// Of the lists and tuples that have begun.
    items: Vec<Bound<'py, PyAny>>,
}

impl<'py> Reader<'_, 'py> {
    /// The value that begins with this byte, whose containers have so many levels.
    #[inline]
    fn value(&mut self, code: u8, depth: usize) -> Option<Bound<'py, PyAny>> {
        match self.bytes.single(self.py, code)? {
            Single::Value(value) => Some(value),
            Single::Container => self.container(code, depth.checked_sub(1)?),
        }
    }

    /// The container that begins with this byte, whose items have so many levels.
    fn container(&mut self, code: u8, depth: usize) -> Option<Bound<'py, PyAny>> {
        let py = self.py;
        if code == MARK {
            let from = self.items(TUPLE, depth)?;
            return Some(PyTuple::new(py, self.items.drain(from..)).ok()?.into_any());
        }
        // Whatever is wrong with an item, such as one that a set cannot hold: `pickle` says it.
        match code {
            EMPTY_DICT if self.bytes.byte()? == MARK => {
                let dict = PyDict::new(py);
                while let Some(code) = self.bytes.until(SETITEMS)? {
                    self.entry(&dict, code, depth)?;
                }
                Some(dict.into_any())
            }
            EMPTY_LIST if self.bytes.byte()? == MARK => {
                let from = self.items(APPENDS, depth)?;
                Some(PyList::new(py, self.items.drain(from..)).ok()?.into_any())
            }
            EMPTY_SET if self.bytes.byte()? == MARK => {
                let set = PySet::empty(py).ok()?;
                while let Some(code) = self.bytes.until(ADDITEMS)? {
                    set.add(self.value(code, depth)?).ok()?;
                }
                Some(set.into_any())
            }
            _ => None,
        }
    }

    /// Puts the values up to this byte on top of the items: where they begin.
    fn items(&mut self, end: u8, depth: usize) -> Option<usize> {
        let from = self.items.len();
        while let Some(code) = self.bytes.until(end)? {
            let item = self.value(code, depth)?;
            if self.items.capacity() == 0 {
                self.items.reserve(STACK);
            }
            self.items.push(item);
        }
        Some(from)
    }

    /// A key that begins with this byte, and its value.
    #[inline]
    fn entry(&mut self, dict: &Bound<'py, PyDict>, code: u8, depth: usize) -> Option<()> {
        let py = self.py;
        if code == SHORT_STR {
            let bytes = self.bytes.counted(true)?;
            if names::is_short(bytes) {
                let key = self.names.get(py, bytes)?;
                let code = self.bytes.byte()?;
                return match self.bytes.single(py, code)? {
                    Single::Value(value) => dict.set_item(key, value),
                    Single::Container => {
                        // Another may take its place meanwhile.
                        let key = key.clone();
                        dict.set_item(key, self.container(code, depth.checked_sub(1)?)?)
                    }
                }
                .ok();
            }
            let key = object::string(py, bytes)?;
            let code = self.bytes.byte()?;
            return dict.set_item(key, self.value(code, depth)?).ok();
        }
        let key = self.value(code, depth)?;
        let code = self.bytes.byte()?;
        dict.set_item(key, self.value(code, depth)?).ok()
    }
}

/// What a byte begins.
enum Single<'py> {
    Value(Bound<'py, PyAny>),
    /// A container, or nothing that is known here.
    Container,
}

struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// The value that begins with this byte, if it has no items.
    #[inline]
    fn single<'py>(&mut self, py: Python<'py>, code: u8) -> Option<Single<'py>> {
        let value = match code {
            SHORT_STR | STR => object::string(py, self.counted(code == SHORT_STR)?)?,
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
            _ => return Some(Single::Container),
        };
        Some(Single::Value(value))
    }

    /// The next byte, unless it is this one.
    #[inline]
    fn until(&mut self, end: u8) -> Option<Option<u8>> {
        let code = self.byte()?;
        Some((code != end).then_some(code))
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
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
