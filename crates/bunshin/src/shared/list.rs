//! A list of fixed length in shared memory, in the layout of CPython's.
//!
//! | Bytes | What |
//! |---|---|
//! | 0..8 | how many items: `n` |
//! | 8.. | `n + 1` numbers of 8 bytes: where each slot starts, and the last one ends, from the first slot on |
//! | after those | the slots |
//! | after those | `n` formats of 8 bytes: `q`, `d`, `xxxxxxx?`, `xxxxxx?x`, or a number and `s`, as in Python's `struct` |
//! | after those | `n` bytes: 0 as it is, 1 text, 2 bytes, 3 nothing |
//!
//! This is how the lists of CPython 3.8 to 3.14 look; the tests open them from both sides.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SharedMemory;
use crate::error::{Error, ErrorKind, Result};

/// An item of a [`ShareableList`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListItem {
    /// Nothing; Python's `None`.
    #[default]
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number; Python's `int`, as far as it has 64 bits.
    Int(i64),
    /// A number; Python's `float`.
    Float(f64),
    /// Text. Zeros at its end are lost.
    Str(String),
    /// Bytes. Zeros at their end are lost.
    Bytes(Vec<u8>),
}

macro_rules! from {
    ($($type:ty => $variant:ident by $convert:expr),* $(,)?) => { $(
        impl From<$type> for ListItem {
            fn from(value: $type) -> Self {
                #[allow(clippy::redundant_closure_call)]
                Self::$variant($convert(value))
            }
        }
    )* };
}
from!(
    bool => Bool by |value| value,
    i64 => Int by |value| value,
    i32 => Int by i64::from,
    u32 => Int by i64::from,
    f64 => Float by |value| value,
    String => Str by |value| value,
    &str => Str by str::to_owned,
    Vec<u8> => Bytes by |value| value,
    &[u8] => Bytes by <[u8]>::to_vec,
);

impl From<()> for ListItem {
    fn from((): ()) -> Self {
        Self::None
    }
}

impl<T: Into<ListItem>> From<Option<T>> for ListItem {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

/// Bytes of text or bytes, at most: what the format's eight bytes can say.
const WIDTH_MAX: usize = 9_999_992;

/// How a slot is read: `struct`'s format, and what is made of it.
const NOTHING: (&[u8; 8], u8) = (b"xxxxxx?x", 3);
const TRUTH: (&[u8; 8], u8) = (b"xxxxxxx?", 0);
const WHOLE: (&[u8; 8], u8) = (b"q\0\0\0\0\0\0\0", 0);
const NUMBER: (&[u8; 8], u8) = (b"d\0\0\0\0\0\0\0", 0);
const TEXT: u8 = 1;
const BYTES: u8 = 2;

impl ListItem {
    /// Bytes of the slot that is made for this item.
    fn width(&self) -> usize {
        match self {
            Self::Str(text) => 8 * (text.len() / 8 + 1),
            Self::Bytes(bytes) => 8 * (bytes.len() / 8 + 1),
            _ => 8,
        }
    }

    /// What stands in a slot of that width, if this item fits.
    fn encode(&self, width: usize) -> Option<(Vec<u8>, [u8; 8], u8)> {
        let mut slot = vec![0; width];
        let (format, code) = match self {
            Self::None => (*NOTHING.0, NOTHING.1),
            Self::Bool(value) => {
                slot[7] = u8::from(*value);
                (*TRUTH.0, TRUTH.1)
            }
            Self::Int(value) => {
                slot[..8].copy_from_slice(&value.to_ne_bytes());
                (*WHOLE.0, WHOLE.1)
            }
            Self::Float(value) => {
                slot[..8].copy_from_slice(&value.to_ne_bytes());
                (*NUMBER.0, NUMBER.1)
            }
            Self::Str(text) => {
                slot.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
                (sized(width), TEXT)
            }
            Self::Bytes(bytes) => {
                slot.get_mut(..bytes.len())?.copy_from_slice(bytes);
                (sized(width), BYTES)
            }
        };
        Some((slot, format, code))
    }

    /// Reads a slot. `None` if it is nonsense.
    fn decode(slot: &[u8], format: [u8; 8], code: u8) -> Option<Self> {
        let word = || slot.get(..8)?.try_into().ok();
        match (&format, code) {
            NOTHING => Some(Self::None),
            TRUTH => Some(Self::Bool(*slot.get(7)? != 0)),
            WHOLE => Some(Self::Int(i64::from_ne_bytes(word()?))),
            NUMBER => Some(Self::Float(f64::from_ne_bytes(word()?))),
            (_, TEXT | BYTES) => {
                let format = std::str::from_utf8(&format).ok()?;
                let len = format.trim_end_matches('\0').strip_suffix('s')?;
                let bytes = slot.get(..len.parse().ok()?)?;
                let len = bytes.iter().rposition(|byte| *byte != 0);
                let bytes = bytes[..len.map_or(0, |last| last + 1)].to_vec();
                if code == BYTES {
                    return Some(Self::Bytes(bytes));
                }
                String::from_utf8(bytes).ok().map(Self::Str)
            }
            _ => None,
        }
    }
}

/// The format of so many bytes.
fn sized(width: usize) -> [u8; 8] {
    let mut format = [0; 8];
    let text = format!("{width}s");
    format[..text.len()].copy_from_slice(text.as_bytes());
    format
}

/// A list of fixed length in shared memory, whose items can be replaced.
///
/// Clones, and copies in other processes, are the same list. What is said of names, owners and
/// lifetimes at [`SharedMemory`] holds here too; a list with a name can be opened by CPython's
/// `ShareableList(name=...)`, and one that CPython made can be opened here.
///
/// There is no lock: of an item that another process replaces at this moment, a look may get
/// something in between, or `Corrupt`. Where that can happen, put a [`Lock`](crate::Lock) beside
/// the list.
///
/// # Shape and units
/// An item's slot is as wide as the first item in it needs: 8 bytes, and for text and bytes the
/// next multiple of 8 above their length. Any item that fits may take its place. Text and bytes
/// are up to 9,999,991 bytes long, and lose zeros at their end, as in Python.
///
/// # Source
/// CPython's `multiprocessing.shared_memory.ShareableList`.
///
/// # Examples
/// ```
/// use bunshin::{ListItem, Process, ShareableList};
///
/// let list = ShareableList::new([ListItem::from("howdy"), 1.into(), 2.5.into(), ().into()])?;
/// let child = Process::start(|list: ShareableList| list.set(0, "hello").is_ok(), (list.clone(),))?;
/// child.join()?;
/// assert_eq!(list.get(0)?, ListItem::from("hello"));
/// assert!(list.set(0, "too long for it").is_err());
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone)]
pub struct ShareableList {
    memory: SharedMemory,
    /// Where each slot starts, and the last one ends, in the memory. Checked.
    bounds: Vec<usize>,
}

impl ShareableList {
    /// Makes a list without a name.
    ///
    /// # Errors
    /// `InvalidInput` for an item that is too long; `OutOfMemory`.
    pub fn new<T: Into<ListItem>>(items: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::fill(items, SharedMemory::new)
    }

    /// Makes a list that other processes can open by its name. This process owns the name.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`SharedMemory::create`].
    pub fn create<T: Into<ListItem>>(
        name: &str,
        items: impl IntoIterator<Item = T>,
    ) -> Result<Self> {
        Self::fill(items, |len| SharedMemory::create(name, len))
    }

    fn fill<T: Into<ListItem>>(
        items: impl IntoIterator<Item = T>,
        make: impl FnOnce(usize) -> Result<SharedMemory>,
    ) -> Result<Self> {
        let items: Vec<ListItem> = items.into_iter().map(Into::into).collect();
        let (mut offsets, mut slots) = (vec![0u64], Vec::new());
        let (mut formats, mut codes) = (Vec::new(), Vec::new());
        for (position, item) in items.iter().enumerate() {
            let encoded = Some(item.width())
                .filter(|width| *width <= WIDTH_MAX)
                .and_then(|width| item.encode(width));
            let (slot, format, code) = encoded.ok_or_else(|| too_long(position, WIDTH_MAX - 1))?;
            slots.extend(slot);
            offsets.push(slots.len() as u64);
            formats.extend(format);
            codes.push(code);
        }
        let mut bytes = (items.len() as u64).to_ne_bytes().to_vec();
        bytes.extend(offsets.iter().flat_map(|offset| offset.to_ne_bytes()));
        bytes.extend(slots);
        bytes.extend(formats);
        bytes.extend(codes);
        let memory = make(bytes.len())?;
        memory.write_at(0, &bytes)?;
        Self::of(memory)
    }

    /// Opens a list by its name. This process does not own it.
    ///
    /// # Errors
    /// As [`SharedMemory::open`], and `Corrupt` if it is no list.
    pub fn open(name: &str) -> Result<Self> {
        Self::of(SharedMemory::open(name)?)
    }

    /// Takes memory for a list, after checking that it is one.
    fn of(memory: SharedMemory) -> Result<Self> {
        let corrupt = |why| Error::new(ErrorKind::Corrupt, format!("a shareable list: {why}"));
        let mut word = [0; 8];
        let least = 2 * word.len();
        if memory.len() < least {
            return Err(corrupt("it is too short"));
        }
        memory.read_at(0, &mut word)?;
        // Each item takes 8 bytes for its offset, 8 in its slot, 8 for its format, and one.
        let len = usize::try_from(u64::from_ne_bytes(word)).unwrap_or(usize::MAX);
        if len > (memory.len() - least) / 25 {
            return Err(corrupt("it has less room than items"));
        }
        let mut bytes = vec![0; (len + 1) * 8];
        memory.read_at(8, &mut bytes)?;
        let start = 8 + bytes.len();
        let end = memory.len() - len * 9;
        let mut bounds = Vec::with_capacity(len + 1);
        for bytes in bytes.chunks_exact(8) {
            word.copy_from_slice(bytes);
            let offset = usize::try_from(u64::from_ne_bytes(word)).ok();
            let bound = offset.and_then(|offset| offset.checked_add(start));
            let least = bounds.last().map_or(start, |last| last + 8);
            match bound {
                Some(bound) if (least..=end).contains(&bound) => bounds.push(bound),
                _ => return Err(corrupt("a slot lies outside of it, or over another one")),
            }
        }
        Ok(Self { memory, bounds })
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory, with its name if it has one.
    #[doc(alias = "shm")]
    #[must_use]
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    fn slot(&self, position: usize) -> Result<(usize, usize)> {
        let end = position
            .checked_add(1)
            .and_then(|next| self.bounds.get(next));
        match (self.bounds.get(position), end) {
            (Some(start), Some(end)) => Ok((*start, end - start)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("item {position} of a shareable list of {}", self.len()),
            )),
        }
    }

    /// Where an item's format and its code are.
    fn formats(&self, position: usize) -> (usize, usize) {
        let start = self.bounds.last().copied().unwrap_or(0);
        (start + position * 8, start + self.len() * 8 + position)
    }

    /// A copy of an item.
    ///
    /// # Errors
    /// `InvalidInput` if there is no such item; `Corrupt` if its slot holds nonsense.
    pub fn get(&self, position: usize) -> Result<ListItem> {
        let (start, width) = self.slot(position)?;
        let (format_at, code_at) = self.formats(position);
        let (mut slot, mut format, mut code) = (vec![0; width], [0; 8], [0]);
        self.memory.read_at(start, &mut slot)?;
        self.memory.read_at(format_at, &mut format)?;
        self.memory.read_at(code_at, &mut code)?;
        ListItem::decode(&slot, format, code[0]).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("item {position} of a shareable list is nothing that it could hold"),
            )
        })
    }

    /// Replaces an item.
    ///
    /// # Errors
    /// `InvalidInput` if there is no such item, or the new one does not fit.
    pub fn set(&self, position: usize, item: impl Into<ListItem>) -> Result<()> {
        let (start, width) = self.slot(position)?;
        let (format_at, code_at) = self.formats(position);
        let encoded = item.into().encode(width);
        let (slot, format, code) = encoded.ok_or_else(|| too_long(position, width))?;
        self.memory.write_at(start, &slot)?;
        self.memory.write_at(format_at, &format)?;
        self.memory.write_at(code_at, &[code])
    }

    /// Copies of the items, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<ListItem>> + '_ {
        (0..self.len()).map(|position| self.get(position))
    }

    /// A copy of all items.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn to_vec(&self) -> Result<Vec<ListItem>> {
        self.iter().collect()
    }

    /// Where an item is first.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "index")]
    pub fn position(&self, item: impl Into<ListItem>) -> Result<Option<usize>> {
        let item = item.into();
        for position in 0..self.len() {
            if self.get(position)? == item {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// How often an item is in the list.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn count(&self, item: impl Into<ListItem>) -> Result<usize> {
        let item = item.into();
        let mut count = 0;
        for other in self.iter() {
            count += usize::from(other? == item);
        }
        Ok(count)
    }
}

fn too_long(position: usize, width: usize) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("item {position} of a shareable list has room for {width} bytes and no more"),
    )
}

impl fmt::Debug for ShareableList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareableList({:?})[{}]", self.memory, self.len())
    }
}

impl Serialize for ShareableList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.memory.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ShareableList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(SharedMemory::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
