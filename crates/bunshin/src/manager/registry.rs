//! What a server holds: objects, who refers to them, and values as they came.
//!
//! An object lives while somebody refers to it: a client's session, a door that is on its
//! way in a message, a name, or a value of another object. All of them hold the same
//! [`Slot`], so that nothing has to be counted twice; the table only finds it by number.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::message::Field;
use super::object::Object;
use super::serving::Inbox;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket;

/// Locks that are never held over the user's code are never poisoned.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers of objects are given by the server one after the other: they are their own hash.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(super) type Numbered<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// An object of the program's own, behind its methods.
pub(super) type Own = Arc<dyn super::managed::Callable>;

/// All objects of a server.
pub(super) struct Registry {
    /// Which server this is, among all that a client may know.
    pub(super) id: u64,
    table: Mutex<Table>,
    /// Drops the program's own objects, whose destructors may take their time.
    graveyard: Sender<Own>,
    /// With how many objects circles are looked for next.
    pub(super) collect_at: Mutex<usize>,
    /// Where other threads of the server leave what is for its first.
    pub(super) inbox: OnceLock<Arc<Inbox>>,
}

#[derive(Default)]
struct Table {
    last: u64,
    objects: Numbered<Weak<Slot>>,
    published: HashMap<String, Arc<Published>>,
}

/// A value with a name.
pub(super) struct Published {
    /// The name of its type.
    pub(super) type_name: String,
    pub(super) value: Stored,
}

/// An object, while somebody refers to it.
pub(super) struct Slot {
    pub(super) number: u64,
    registry: Weak<Registry>,
    pub(super) object: Mutex<Object>,
}

impl Registry {
    pub(super) fn new(id: u64, graveyard: Sender<Own>) -> Arc<Self> {
        Arc::new(Self {
            id,
            table: Mutex::default(),
            graveyard,
            collect_at: Mutex::default(),
            inbox: OnceLock::new(),
        })
    }

    pub(super) fn insert(self: &Arc<Self>, object: Object) -> Arc<Slot> {
        let mut table = lock(&self.table);
        table.last += 1;
        let slot = Arc::new(Slot {
            number: table.last,
            registry: Arc::downgrade(self),
            object: Mutex::new(object),
        });
        table.objects.insert(slot.number, Arc::downgrade(&slot));
        slot
    }

    pub(super) fn find(&self, number: u64) -> Result<Arc<Slot>> {
        let found = lock(&self.table)
            .objects
            .get(&number)
            .and_then(Weak::upgrade);
        found.ok_or_else(gone)
    }

    /// Gives a value a name; whether there was one of that name before.
    pub(super) fn publish(&self, name: String, value: Option<Published>) -> bool {
        let mut table = lock(&self.table);
        let before = match value {
            Some(value) => table.published.insert(name, Arc::new(value)),
            None => table.published.remove(&name),
        };
        // Not under the table's lock, which the end of an object takes.
        drop(table);
        before.is_some()
    }

    pub(super) fn published(&self, name: &str) -> Option<Arc<Published>> {
        lock(&self.table).published.get(name).cloned()
    }

    /// All objects that there are.
    pub(super) fn slots(&self) -> Vec<Weak<Slot>> {
        lock(&self.table).objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        lock(&self.table).objects.len()
    }
}

pub(super) fn gone() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the manager has no such object (any more)",
    )
}

thread_local! {
    /// Objects whose contents are still to be dropped: a chain of objects that hold each
    /// other must not take as many stack frames.
    static ENDING: RefCell<Option<Vec<Object>>> = const { RefCell::new(None) };
}

impl Drop for Slot {
    fn drop(&mut self) {
        let registry = self.registry.upgrade();
        if let Some(registry) = &registry {
            lock(&registry.table).objects.remove(&self.number);
        }
        let object = self
            .object
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let mut object = std::mem::replace(object, Object::Ended);
        if let (Object::User(own), Some(registry)) = (&mut object, registry) {
            if let Some(own) = own.take_content() {
                // Without the thread that drops them, they are dropped right here.
                let _ = registry.graveyard.send(own);
            }
        }
        let is_outermost = ENDING.with_borrow_mut(|ending| match ending {
            Some(ending) => {
                ending.push(std::mem::replace(&mut object, Object::Ended));
                false
            }
            None => {
                *ending = Some(Vec::new());
                true
            }
        });
        if is_outermost {
            drop(object);
            while let Some(next) =
                ENDING.with_borrow_mut(|ending| ending.as_mut().and_then(Vec::pop))
            {
                drop(next);
            }
            ENDING.set(None);
        }
    }
}

/// A client process, as the server sees it.
pub(super) struct Session {
    pub(super) number: u64,
    held: Mutex<Numbered<(Arc<Slot>, u64)>>,
}

impl Session {
    pub(super) fn new(number: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            held: Mutex::default(),
        })
    }

    /// An object that the client holds.
    #[inline]
    pub(super) fn get(&self, number: u64) -> Result<Arc<Slot>> {
        let held = lock(&self.held);
        held.get(&number)
            .map(|(slot, _)| Arc::clone(slot))
            .ok_or_else(gone)
    }

    /// Has the client hold an object once more.
    pub(super) fn hold(&self, slot: &Arc<Slot>) {
        let mut held = lock(&self.held);
        held.entry(slot.number)
            .or_insert_with(|| (Arc::clone(slot), 0))
            .1 += 1;
    }

    /// Has the client hold an object so many times less.
    pub(super) fn release(&self, number: u64, times: u64) {
        let ended = match lock(&self.held).entry(number) {
            Entry::Occupied(mut entry) => {
                let count = &mut entry.get_mut().1;
                *count = count.saturating_sub(times);
                (*count == 0).then(|| entry.remove())
            }
            Entry::Vacant(_) => None,
        };
        drop(ended);
    }

    /// All that the client holds, which is nothing afterwards.
    pub(super) fn take_all(&self) -> Vec<Arc<Slot>> {
        let held = std::mem::take(&mut *lock(&self.held));
        held.into_values().map(|(slot, _)| slot).collect()
    }
}

/// A value as a client has encoded it, with what it names.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) bytes: Box<[u8]>,
    beside: Option<Box<Beside>>,
}

#[derive(Default)]
struct Beside {
    handles: Vec<OwnedFd>,
    named: Vec<Arc<Slot>>,
}

impl Stored {
    /// Keeps a field of a message; takes its handles from the front of the message's.
    pub(super) fn keep(
        field: &Field<'_>,
        handles: &mut Vec<OwnedFd>,
        session: &Session,
    ) -> Result<Self> {
        if field.handles > handles.len() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a value's handles did not come with it",
            ));
        }
        let named = field
            .named()
            .map(|number| session.get(number))
            .collect::<Result<Vec<_>>>()?;
        let handles: Vec<_> = handles.drain(..field.handles).collect();
        let beside =
            (!named.is_empty() || !handles.is_empty()).then(|| Box::new(Beside { handles, named }));
        Ok(Self {
            bytes: field.bytes.into(),
            beside,
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        self.beside.is_none()
    }

    pub(super) fn named(&self) -> &[Arc<Slot>] {
        self.beside.as_ref().map_or(&[], |beside| &beside.named)
    }

    /// Copies of its handles.
    pub(super) fn copy_handles(&self) -> Result<Vec<OwnedFd>> {
        let handles = self
            .beside
            .as_ref()
            .map_or(&[][..], |beside| &beside.handles);
        handles
            .iter()
            .map(|handle| socket::duplicate(handle.as_fd()))
            .collect::<std::io::Result<_>>()
            .map_err(|error| Error::os("copy a handle that a manager keeps", error))
    }

    /// Its handles, for good.
    pub(super) fn take_handles(&mut self) -> Vec<OwnedFd> {
        let beside = self.beside.as_mut();
        beside.map_or_else(Vec::new, |beside| std::mem::take(&mut beside.handles))
    }
}
