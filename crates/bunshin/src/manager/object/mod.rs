//! The objects of a server: what a request does to them, and who is answered.
//!
//! They know no clock, no socket and no thread: a request goes in, a reply comes out, and
//! with it answers to others who have been waiting. A request that has to wait is noted
//! in the object; the server calls [`Object::expire`] when its time is over and
//! [`Object::leave`] when its client is gone.
//!
//! - `container`: dict, list, and a cell for one value.
//! - `lock`: a lock, and a condition with its own.
//! - `gate`: semaphore, event, barrier.
//! - `line`: those who wait, for all of them.
//! - `queue`: a queue that knows what has been taken and not yet done.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::managed::UserObject;
use super::message::{Fields, Kind, Op, REPLY, ReplyHead, Status, field_head, number_of};
use super::registry::{Session, Slot, Stored};
use crate::error::{Error, ErrorKind, Result};

mod container;
pub(super) mod gate;
mod line;
mod lock;
mod queue;

/// Who asks: a connection and a call on it, and the process behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) connection: u64,
    pub(super) session: u64,
    pub(super) call: u32,
}

/// A request to an object.
pub(super) struct Call<'a> {
    pub(super) who: Caller,
    pub(super) op: Op,
    /// In nanoseconds, as in a request.
    pub(super) wait: u64,
    pub(super) number: u64,
    pub(super) second: u64,
    pub(super) fields: Fields<'a>,
    pub(super) handles: &'a mut Vec<OwnedFd>,
    pub(super) session: &'a Session,
}

impl Call<'_> {
    /// The next field's bytes, of a value that names nothing.
    fn bytes(&mut self) -> Result<&[u8]> {
        let field = self.fields.next().ok_or_else(missing)?;
        if field.handles != 0 || field.named().next().is_some() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a key of a manager's dict holds handles or proxies",
            ));
        }
        Ok(field.bytes)
    }

    /// The next field, to keep.
    fn value(&mut self) -> Result<Stored> {
        let field = self.fields.next().ok_or_else(missing)?;
        Stored::keep(&field, self.handles, self.session)
    }

    fn index(&self) -> usize {
        usize::try_from(self.number).unwrap_or(usize::MAX)
    }
}

fn missing() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "a request to a manager has too few values",
    )
}

/// Whether the caller has its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It is to be sent.
    Reply,
    /// It will come with an [`Answer`].
    Wait,
}

/// A reply that is being written.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) handles: Vec<OwnedFd>,
    /// Objects that the client will hold once more each.
    pub(super) named: Vec<Arc<Slot>>,
}

impl Reply {
    pub(super) fn begin(&mut self, call: u32) {
        self.bytes.clear();
        self.handles.clear();
        self.named.clear();
        self.bytes
            .extend_from_slice(&ReplyHead::head(Status::Ok, call, 0));
    }

    pub(super) fn set(&mut self, status: Status, number: u64) {
        if let Some(head) = self.bytes.first_chunk_mut::<REPLY>() {
            let call = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            *head = ReplyHead::head(status, call, number);
        }
    }

    /// Turns this into the reply that says what went wrong.
    pub(super) fn fail(&mut self, error: &Error) {
        self.bytes.truncate(REPLY);
        self.handles.clear();
        self.named.clear();
        self.set(Status::Failed, number_of(error.kind()));
        let words = error.to_string();
        // Words are always short enough.
        let _ = self.push_bytes(words.as_bytes());
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes
            .extend_from_slice(&field_head(bytes.len(), 0, 0)?);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds a copy of a value.
    pub(super) fn push(&mut self, value: &Stored) -> Result<()> {
        if value.is_plain() {
            return self.push_bytes(&value.bytes);
        }
        let handles = value.copy_handles()?;
        self.push_with(value, handles)
    }

    /// Adds a value for good.
    pub(super) fn give(&mut self, mut value: Stored) -> Result<()> {
        let handles = value.take_handles();
        self.push_with(&value, handles)
    }

    fn push_with(&mut self, value: &Stored, handles: Vec<OwnedFd>) -> Result<()> {
        let named = value.named();
        let head = field_head(value.bytes.len(), named.len(), handles.len())?;
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(&value.bytes);
        for slot in named {
            self.bytes.extend_from_slice(&slot.number.to_le_bytes());
            self.named.push(Arc::clone(slot));
        }
        self.handles.extend(handles);
        Ok(())
    }
}

/// A reply to somebody who has been waiting.
pub(super) struct Answer {
    pub(super) to: Caller,
    pub(super) status: Status,
    pub(super) number: u64,
    pub(super) value: Option<Stored>,
}

impl Answer {
    fn new(to: Caller, status: Status) -> Self {
        Self {
            to,
            status,
            number: 0,
            value: None,
        }
    }
}

/// An object of a server.
pub(super) enum Object {
    Dict(container::Dict),
    List(container::List),
    Cell(Stored),
    Lock(lock::Lock),
    Condition(lock::Condition),
    Semaphore(gate::Semaphore),
    Event(gate::Event),
    Barrier(gate::Barrier),
    Queue(queue::Queue),
    User(UserObject),
    /// Nobody refers to it any more.
    Ended,
}

impl Object {
    /// Makes an object from what a client says of it.
    pub(super) fn create(kind: Kind, call: &mut Call<'_>) -> Result<Self> {
        Ok(match kind {
            Kind::Dict => Self::Dict(container::Dict::default()),
            Kind::List => {
                let mut list = container::List::default();
                list.extend(call)?;
                Self::List(list)
            }
            Kind::Cell => Self::Cell(call.value()?),
            Kind::Lock => Self::Lock(lock::Lock::default()),
            Kind::Condition => Self::Condition(lock::Condition::default()),
            Kind::Semaphore => Self::Semaphore(gate::Semaphore::new(call.second, call.wait)),
            Kind::Event => Self::Event(gate::Event::default()),
            Kind::Barrier => Self::Barrier(gate::Barrier::new(call.second)?),
            Kind::Queue => Self::Queue(queue::Queue::new(call.second)),
            Kind::User => return Err(wrong()),
        })
    }

    /// Does what is asked.
    #[inline]
    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match self {
            Self::Dict(dict) => dict.apply(call, reply),
            Self::List(list) => list.apply(call, reply),
            Self::Cell(cell) => container::apply_to_cell(cell, call, reply),
            Self::Lock(lock) => lock.apply(call, reply, others),
            Self::Condition(condition) => condition.apply(call, reply, others),
            Self::Semaphore(semaphore) => semaphore.apply(call, reply, others),
            Self::Event(event) => event.apply(call, reply, others),
            Self::Barrier(barrier) => barrier.apply(call, reply, others),
            Self::Queue(queue) => queue.apply(call, reply, others),
            Self::User(_) | Self::Ended => Err(wrong()),
        }
    }

    /// Tells of each object that this one holds, as often as it does.
    pub(super) fn each_named(&self, tell: &mut dyn FnMut(&Arc<Slot>)) {
        let mut tell_all = |value: &Stored| value.named().iter().for_each(&mut *tell);
        match self {
            Self::Dict(dict) => dict.values().for_each(tell_all),
            Self::List(list) => list.values().for_each(tell_all),
            Self::Cell(value) => tell_all(value),
            Self::Queue(queue) => queue.values().for_each(tell_all),
            // A program's own object holds what it does as a client.
            _ => {}
        }
    }

    /// The time of a waiting caller is over.
    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        match self {
            Self::Lock(lock) => lock.expire(who, others),
            Self::Condition(condition) => condition.expire(who, others),
            Self::Semaphore(semaphore) => semaphore.expire(who, others),
            Self::Event(event) => event.expire(who, others),
            Self::Barrier(barrier) => barrier.expire(who, others),
            Self::Queue(queue) => queue.expire(who, others),
            _ => {}
        }
    }

    /// The connection of a waiting caller is gone.
    pub(super) fn leave(&mut self, connection: u64, others: &mut Vec<Answer>) {
        match self {
            Self::Lock(lock) => lock.leave(connection),
            Self::Condition(condition) => condition.leave(connection),
            Self::Semaphore(semaphore) => semaphore.leave(connection),
            Self::Event(event) => event.leave(connection),
            Self::Barrier(barrier) => barrier.leave(connection, others),
            Self::Queue(queue) => queue.leave(connection),
            _ => {}
        }
    }

    /// A process is gone, with what it had of this object.
    pub(super) fn bereave(&mut self, session: u64, others: &mut Vec<Answer>) {
        match self {
            Self::Lock(lock) => lock.bereave(session, others),
            Self::Condition(condition) => condition.bereave(session, others),
            Self::Semaphore(semaphore) => semaphore.bereave(session, others),
            Self::Barrier(barrier) => barrier.bereave(session, others),
            _ => {}
        }
    }

    /// An answer did not reach its caller, who is gone.
    pub(super) fn take_back(&mut self, answer: Answer, others: &mut Vec<Answer>) {
        match self {
            Self::Lock(lock) => lock.take_back(answer.to, others),
            Self::Condition(condition) => condition.take_back(answer.to, others),
            Self::Semaphore(semaphore) => semaphore.take_back(&answer, others),
            Self::Barrier(barrier) => barrier.take_back(&answer, others),
            Self::Queue(queue) => queue.take_back(answer, others),
            _ => {}
        }
    }
}

fn wrong() -> Error {
    Error::new(
        ErrorKind::TypeMismatch,
        "a manager's object has no such method",
    )
}

/// What happens to a caller whose turn it is not: it waits, or is told.
fn wait_or_not(call: &Call<'_>, reply: &mut Reply) -> Flow {
    if call.wait == 0 {
        reply.set(Status::NotYet, 0);
        Flow::Reply
    } else {
        Flow::Wait
    }
}
