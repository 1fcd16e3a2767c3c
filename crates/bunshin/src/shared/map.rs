//! A hash map in shared memory.

use std::borrow::Borrow;
use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::{decode_alone, encode_alone, tag};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::layout::SHARDS;
use crate::shm::map::{Key, Map};
use crate::sys::socket;

/// A hash map in shared memory, for many processes at a time.
///
/// Clones, and copies in other processes, are the same map. It grows as it is filled, and its
/// memory goes when the last process lets go of it; until then, what entries once took is
/// kept for others. Keys and values are whatever `serde` serialises, and are copied in and out.
///
/// Each operation on a key is one step for all processes. [`get`](Self::get) never waits for a
/// process that changes the map, even one that is stopped in the middle of it. Changes wait for
/// each other where two keys are in the same one of 64 parts; a stopped process can
/// hold up such a part until it goes on. A process that is killed in any operation leaves the
/// map usable, with that operation done or not done, and all others waiting go on.
///
/// # Shape and units
/// An encoded key or value has less than 2 GiB. Keys are compared as [`Eq`] says. Their
/// [`Hash`] must give the same in all processes, which it does unless it looks at addresses; it
/// is keyed at random for each map, so that nobody can choose keys that collide. Values that
/// hold handles, such as locks, pipe ends or other shared memory, cannot be put into a map.
///
/// # Errors
/// All operations: `Encode` and `Decode` if keys or values cannot be turned into bytes or back;
/// `Corrupt` if another process has written nonsense to the memory; those that change the map:
/// `OutOfMemory`, with nothing changed.
///
/// # Source
/// What CPython's `multiprocessing.Manager().dict()` is used for, without the server.
///
/// # Examples
/// ```
/// use bunshin::{Process, SharedMap};
///
/// fn count(words: Vec<String>, counts: SharedMap<String, u32>) {
///     for word in &words {
///         counts.update(word, |n| Some(n.unwrap_or(0) + 1)).expect("there is memory");
///     }
/// }
///
/// let counts = SharedMap::<String, u32>::new()?;
/// let children = [["one", "two"], ["two", "three"]]
///     .map(|words| Process::start(count, (words.map(String::from).to_vec(), counts.clone())));
/// for child in children {
///     child?.join()?;
/// }
/// assert_eq!(counts.get("two")?, Some(2));
/// assert_eq!(counts.len(), 3);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[doc(alias = "dict")]
pub struct SharedMap<K, V> {
    map: Arc<Map>,
    types: PhantomData<fn() -> (K, V)>,
}

/// Bytes that a thread uses for one operation after the other.
#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// What is larger goes back to the allocator.
const KEPT: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    // Taken out: an operation inside of this one, in somebody's `Serialize`, gets another.
    let mut scratch = SCRATCH.take().unwrap_or_default();
    scratch.key.clear();
    scratch.value.clear();
    let result = work(&mut scratch);
    if scratch.key.capacity().max(scratch.value.capacity()) <= KEPT {
        SCRATCH.set(Some(scratch));
    }
    result
}

impl<K, V> SharedMap<K, V>
where
    K: Serialize + DeserializeOwned + Hash + Eq,
    V: Serialize + DeserializeOwned,
{
    /// Makes an empty map.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    pub fn new() -> Result<Self> {
        let random = RandomState::new();
        let key = (random.hash_one(1u8), random.hash_one(2u8));
        Ok(Self::of(Map::create(key)?))
    }

    /// Runs `work` on a key in the form that the map has it, and on an empty buffer.
    fn with_key<Q, R>(
        &self,
        key: &Q,
        work: impl FnOnce(&Key<'_>, &mut Vec<u8>) -> Result<R>,
    ) -> Result<R>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        let (first, second) = self.map.key();
        // What replaces it in the standard library cannot be given a key.
        #[allow(deprecated)]
        let mut hasher = std::hash::SipHasher::new_with_keys(first, second);
        key.hash(&mut hasher);
        let hash = hasher.finish();
        with_scratch(|scratch| {
            encode_alone(key, &mut scratch.key)?;
            let is_same = |bytes: &[u8]| Ok(decode_alone::<K>(bytes)?.borrow() == key);
            let key = Key {
                hash,
                bytes: &scratch.key,
                is_same: &is_same,
            };
            work(&key, &mut scratch.value)
        })
    }

    /// A copy of a key's value, if it has one. Does not wait for others who change the map.
    ///
    /// # Errors
    /// As for [`SharedMap`].
    pub fn get<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        self.with_key(key, |key, value| {
            let found = self.map.get(key, value)?;
            found.then(|| decode_alone(value)).transpose()
        })
    }

    /// Whether a key has a value. Does not wait.
    ///
    /// # Errors
    /// As for [`SharedMap`].
    pub fn contains_key<Q>(&self, key: &Q) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        self.with_key(key, |key, value| self.map.get(key, value))
    }

    /// Sets a key's value, and gives the one before.
    ///
    /// # Errors
    /// As for [`SharedMap`].
    ///
    /// # Examples
    /// ```
    /// let ages = bunshin::SharedMap::<String, u32>::new()?;
    /// assert_eq!(ages.insert("Ann", &41)?, None);
    /// assert_eq!(ages.insert("Ann", &42)?, Some(41));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn insert<Q>(&self, key: &Q, value: &V) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        self.with_key(key, |key, new| {
            encode_alone(value, new)?;
            let mut old = Vec::new();
            let part = self.map.lock(key.hash)?;
            let was_there = part.get(key, &mut old)?;
            part.put(key, new)?;
            drop(part);
            was_there.then(|| decode_alone(&old)).transpose()
        })
    }

    /// Removes a key, and gives its value.
    ///
    /// # Errors
    /// As for [`SharedMap`].
    #[doc(alias = "pop")]
    pub fn remove<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        self.with_key(key, |key, value| {
            let part = self.map.lock(key.hash)?;
            let was_there = part.get(key, value)? && part.remove(key)?;
            drop(part);
            was_there.then(|| decode_alone(value)).transpose()
        })
    }

    /// Replaces a key's value by what `change` makes of it, in one step; `None` stands for no
    /// value, before and after. Gives the value after.
    ///
    /// Nobody else changes that part of the map while `change` runs, so that it should be quick. If
    /// it panics, or its process is killed, nothing has changed.
    ///
    /// # Errors
    /// As for [`SharedMap`], and `Busy` from within `change` if it uses the same part of the map;
    /// two processes that change other parts from there can wait for each other for ever.
    ///
    /// # Examples
    /// ```
    /// let stock = bunshin::SharedMap::<String, u32>::new()?;
    /// stock.insert("apples", &1)?;
    /// // Takes one; the last one takes the entry along.
    /// let left = stock.update("apples", |n| n.filter(|n| *n > 1).map(|n| n - 1))?;
    /// assert_eq!(left, None);
    /// assert!(stock.is_empty());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "entry")]
    pub fn update<Q>(
        &self,
        key: &Q,
        change: impl FnOnce(Option<V>) -> Option<V>,
    ) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        self.with_key(key, |key, bytes| {
            let part = self.map.lock(key.hash)?;
            let was_there = part.get(key, bytes)?;
            let old = was_there.then(|| decode_alone(bytes)).transpose()?;
            let new = change(old);
            match &new {
                Some(new) => {
                    bytes.clear();
                    encode_alone(new, bytes)?;
                    part.put(key, bytes)?;
                }
                None if was_there => {
                    part.remove(key)?;
                }
                None => {}
            }
            Ok(new)
        })
    }

    /// A key's value, which `make` makes if there is none. It is called once for all processes.
    ///
    /// # Errors
    /// As for [`update`](Self::update).
    #[doc(alias = "setdefault")]
    pub fn get_or_insert_with<Q>(&self, key: &Q, make: impl FnOnce() -> V) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Serialize + Hash + Eq + ?Sized,
    {
        if let Some(value) = self.get(key)? {
            return Ok(value);
        }
        self.with_key(key, |key, bytes| {
            let part = self.map.lock(key.hash)?;
            // Somebody may have made it since.
            if part.get(key, bytes)? {
                return decode_alone(bytes);
            }
            let value = make();
            bytes.clear();
            encode_alone(&value, bytes)?;
            part.put(key, bytes)?;
            Ok(value)
        })
    }

    /// The entries, in no order.
    ///
    /// They are copied part by part as the iterator goes on: an entry that is there all the time
    /// comes once; one that is put in or taken out meanwhile comes or does not.
    ///
    /// # Errors
    /// Each entry's, as for [`SharedMap`]; after `Corrupt`, the other entries of its part do not come.
    ///
    /// # Examples
    /// ```
    /// let squares = bunshin::SharedMap::<u32, u32>::new()?;
    /// for n in 1..4 {
    ///     squares.insert(&n, &(n * n))?;
    /// }
    /// let mut all = squares.iter().collect::<bunshin::Result<Vec<_>>>()?;
    /// all.sort();
    /// assert_eq!(all, [(1, 1), (2, 4), (3, 9)]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "items")]
    pub fn iter(&self) -> impl Iterator<Item = Result<(K, V)>> + '_ {
        let parts = (0..SHARDS).map(|shard| self.map.entries(shard));
        let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
            Ok((decode_alone::<K>(&key)?, decode_alone::<V>(&value)?))
        };
        parts.flat_map(move |part| {
            let (entries, failed) = match part {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            entries.into_iter().map(decode).chain(failed)
        })
    }
}

impl<K, V> SharedMap<K, V> {
    fn of(map: Map) -> Self {
        Self {
            map: Arc::new(map),
            types: PhantomData,
        }
    }

    /// How many entries there are. Exact while nobody changes the map.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all entries, part by part: what others put in meanwhile may stay.
    ///
    /// # Errors
    /// `Busy` from within a change to this map.
    pub fn clear(&self) -> Result<()> {
        self.map.clear()
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    /// Another handle to the same map.
    fn clone(&self) -> Self {
        Self {
            map: Arc::clone(&self.map),
            types: PhantomData,
        }
    }
}

impl<K, V> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (std::any::type_name::<K>(), std::any::type_name::<V>());
        write!(f, "SharedMap<{key}, {value}>[{}]", self.len())
    }
}

/// A map on its trip.
#[derive(Serialize, Deserialize)]
struct Form {
    tag: u32,
    memory: u32,
}

impl<K, V> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let depart = || {
            let fd = socket::duplicate(self.map.fd())
                .map_err(|error| Error::os("send a shared map", error))?;
            Ok(Form {
                tag: tag::<Self>(),
                memory: Outgoing::attach(fd)?,
            })
        };
        depart()
            .map_err(|error: Error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, K, V> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Form::deserialize(deserializer)?;
        if form.tag != tag::<Self>() {
            let name = std::any::type_name::<Self>();
            return Err(D::Error::custom(Error::new(
                ErrorKind::TypeMismatch,
                format!("a map of another type arrived as {name}"),
            )));
        }
        let map = Incoming::detach(form.memory).and_then(Map::attach);
        Ok(Self::of(map.map_err(D::Error::custom)?))
    }
}
