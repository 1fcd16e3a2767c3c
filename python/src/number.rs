//! Values of the simple C types, as bits in shared memory and as Python objects.
//!
//! Only what is plain is done here: whatever a conversion here declines, ctypes is asked to do
//! on the same memory, so that its rules and its errors hold.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::items::bytes_of;

/// A simple C type, by the letter that the `struct` module has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    Bool,
    Char,
    Wide,
}

impl Kind {
    /// The type of that letter and so many bytes.
    pub(crate) fn of(letter: &str, size: usize) -> Option<Self> {
        Some(match (letter, size) {
            ("b", 1) => Self::I8,
            ("B", 1) => Self::U8,
            ("h", 2) => Self::I16,
            ("H", 2) => Self::U16,
            ("i" | "l" | "q", 4) => Self::I32,
            ("I" | "L" | "Q", 4) => Self::U32,
            ("i" | "l" | "q", 8) => Self::I64,
            ("I" | "L" | "Q", 8) => Self::U64,
            ("f", 4) => Self::F32,
            ("d", 8) => Self::F64,
            ("?", 1) => Self::Bool,
            ("c", 1) => Self::Char,
            ("u", 4) => Self::Wide,
            _ => return None,
        })
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool | Self::Char => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 | Self::Wide => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The Python object for these bits.
    #[inline]
    pub(crate) fn to_python<'py>(self, py: Python<'py>, bits: u64) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            Self::I8 => i64::from(bits as i8).into_pyobject(py)?.into_any(),
            Self::U8 => i64::from(bits as u8).into_pyobject(py)?.into_any(),
            Self::I16 => i64::from(bits as i16).into_pyobject(py)?.into_any(),
            Self::U16 => i64::from(bits as u16).into_pyobject(py)?.into_any(),
            Self::I32 => i64::from(bits as i32).into_pyobject(py)?.into_any(),
            Self::U32 => i64::from(bits as u32).into_pyobject(py)?.into_any(),
            Self::I64 => (bits as i64).into_pyobject(py)?.into_any(),
            Self::U64 => bits.into_pyobject(py)?.into_any(),
            Self::F32 => PyFloat::new(py, f32::from_bits(bits as u32).into()).into_any(),
            Self::F64 => PyFloat::new(py, f64::from_bits(bits)).into_any(),
            Self::Bool => PyBool::new(py, bits as u8 != 0).to_owned().into_any(),
            Self::Char => PyBytes::new(py, &[bits as u8]).into_any(),
            Self::Wide => {
                let code = bits as u32;
                match char::from_u32(code) {
                    Some(letter) => PyString::new(py, letter.encode_utf8(&mut [0; 4])).into_any(),
                    // Half of a surrogate pair, or nothing at all: as `chr` has it.
                    None => py.import("builtins")?.getattr("chr")?.call1((code,))?,
                }
            }
        })
    }

    /// The bits for a Python object; nothing if ctypes is to be asked.
    #[inline]
    pub(crate) fn bits(self, value: &Bound<'_, PyAny>) -> Option<u64> {
        match self {
            Self::F64 => Some(real(value)?.to_bits()),
            Self::F32 => Some(u64::from((real(value)? as f32).to_bits())),
            Self::Bool => value.is_truthy().ok().map(u64::from),
            Self::Char => match value.cast::<PyBytes>().ok()?.as_bytes() {
                [byte] => Some(u64::from(*byte)),
                _ => None,
            },
            Self::Wide => {
                let text = value.cast::<PyString>().ok()?.to_cow().ok()?;
                let mut letters = text.chars();
                let letter = letters.next()?;
                letters.next().is_none().then_some(u64::from(letter as u32))
            }
            _ => integer(value).map(|number| number as u64),
        }
    }

    /// Whether an array of the type is read as text or bytes rather than as a list.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Char | Self::Wide)
    }

    /// A list of the values whose bytes these are.
    pub(crate) fn list<'py>(self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyList>> {
        macro_rules! values {
            ($type:ty, $as:ty) => {{
                let items = bytes.chunks_exact(size_of::<$type>());
                PyList::new(
                    py,
                    items.map(|item| {
                        let item = item.try_into().unwrap_or_default();
                        <$as>::from(<$type>::from_ne_bytes(item))
                    }),
                )
            }};
        }
        match self {
            Self::I8 => values!(i8, i64),
            Self::U8 => values!(u8, i64),
            Self::I16 => values!(i16, i64),
            Self::U16 => values!(u16, i64),
            Self::I32 => values!(i32, i64),
            Self::U32 => values!(u32, i64),
            Self::I64 => values!(i64, i64),
            Self::U64 => values!(u64, u64),
            Self::F32 => values!(f32, f64),
            Self::F64 => values!(f64, f64),
            Self::Bool => PyList::new(py, bytes.iter().map(|byte| *byte != 0)),
            Self::Char | Self::Wide => Err(PyValueError::new_err("text is not read as a list")),
        }
    }

    /// The bytes for `len` values of a list or tuple; nothing if ctypes is to be asked.
    pub(crate) fn gather(self, values: &Bound<'_, PyAny>, len: usize) -> Option<Vec<u8>> {
        let plain = match self {
            Self::I8 | Self::U8 => bytes_of(values, len, u8::to_ne_bytes),
            Self::I16 | Self::U16 => bytes_of(values, len, u16::to_ne_bytes),
            Self::I32 | Self::U32 => bytes_of(values, len, u32::to_ne_bytes),
            Self::I64 | Self::U64 => bytes_of(values, len, u64::to_ne_bytes),
            Self::F32 => bytes_of(values, len, f32::to_ne_bytes),
            Self::F64 => bytes_of(values, len, f64::to_ne_bytes),
            Self::Bool | Self::Char | Self::Wide => None,
        };
        plain.or_else(|| self.gather_one_by_one(values, len))
    }

    fn gather_one_by_one(self, values: &Bound<'_, PyAny>, len: usize) -> Option<Vec<u8>> {
        macro_rules! integers {
            ($type:ty) => {
                collect(values, len, |value| {
                    Some((integer(value)? as $type).to_ne_bytes())
                })
            };
        }
        match self {
            Self::I8 | Self::U8 => integers!(u8),
            Self::I16 | Self::U16 => integers!(u16),
            Self::I32 | Self::U32 => integers!(u32),
            Self::I64 | Self::U64 => integers!(u64),
            Self::F32 => collect(values, len, |value| {
                Some((real(value)? as f32).to_ne_bytes())
            }),
            Self::F64 => collect(values, len, |value| Some(real(value)?.to_ne_bytes())),
            Self::Bool | Self::Char => collect(values, len, |value| {
                Some((self.bits(value)? as u8).to_ne_bytes())
            }),
            Self::Wide => collect(values, len, |value| {
                Some((self.bits(value)? as u32).to_ne_bytes())
            }),
        }
    }

    /// The bytes of an object that lends memory of just this type; nothing if it does not.
    pub(crate) fn borrow(self, values: &Bound<'_, PyAny>, len: usize) -> Option<Vec<u8>> {
        let py = values.py();
        let view = pyo3::types::PyMemoryView::from(values).ok()?;
        let format: String = view
            .getattr(crate::once::intern!(py, "format"))
            .ok()?
            .extract()
            .ok()?;
        let item: usize = view
            .getattr(crate::once::intern!(py, "itemsize"))
            .ok()?
            .extract()
            .ok()?;
        let letter = format.strip_prefix(['@', '=', '<']).unwrap_or(&format);
        if cfg!(target_endian = "big") && format.starts_with('<')
            || Self::of(letter, item) != Some(self)
            || view
                .getattr(crate::once::intern!(py, "ndim"))
                .ok()?
                .extract::<usize>()
                .ok()?
                != 1
        {
            return None;
        }
        let bytes = crate::buffer::Borrowed::of(&view.call_method1("cast", ("B",)).ok()?).ok()?;
        (bytes.bytes().len() == len * item).then(|| bytes.bytes().to_vec())
    }
}

/// The bytes of `len` values of a list or tuple, each converted by `bytes`.
#[inline]
fn collect<const N: usize>(
    values: &Bound<'_, PyAny>,
    len: usize,
    bytes: impl Fn(&Bound<'_, PyAny>) -> Option<[u8; N]>,
) -> Option<Vec<u8>> {
    let mut all = Vec::with_capacity(len);
    if let Ok(list) = values.cast_exact::<PyList>() {
        if list.len() != len {
            return None;
        }
        for value in list {
            all.push(bytes(&value)?);
        }
    } else {
        let tuple = values.cast_exact::<PyTuple>().ok()?;
        if tuple.len() != len {
            return None;
        }
        for value in tuple.iter_borrowed() {
            all.push(bytes(&value)?);
        }
    }
    // Converting may run Python code, which may have changed the list.
    (all.len() == len).then(|| all.as_flattened().to_vec())
}

#[inline]
fn integer(value: &Bound<'_, PyAny>) -> Option<i64> {
    // ctypes takes nothing else for an integer.
    if value.cast_exact::<PyInt>().is_ok() || value.is_instance_of::<PyInt>() {
        return value.extract().ok();
    }
    None
}

#[inline]
fn real(value: &Bound<'_, PyAny>) -> Option<f64> {
    if let Ok(number) = value.cast_exact::<PyFloat>() {
        return Some(number.value());
    }
    if value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>() {
        return value.extract().ok();
    }
    None
}
