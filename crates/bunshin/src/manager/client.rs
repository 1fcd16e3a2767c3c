//! A process as a client of a server: how proxies reach their objects.
//!
//! A process is one client of a server, however many proxies it has. It knows the server by
//! a door, and makes connections as its threads need them at the same time. A proxy in a
//! message takes a door along, which the server has been told to keep the object for: as
//! long as the message lies somewhere, the kernel keeps the door open, and when the message
//! is lost the door's end is seen.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{
    FIELD, FOREVER, Hello, Op, REPLY, REQUEST, ReplyHead, Request, Status, field_head, kind_of,
};
use super::referent::Referent;
use super::remote::{Far, Route};
use super::wire::Wire;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::{image, socket, thread};
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::receiver::Message;

/// How much longer than asked a client waits for a server that has stopped.
const GRACE: Duration = Duration::from_secs(1);
/// Connections that wait for their next use.
const IDLE_MAX: usize = 16;

/// The servers that this process knows.
static CLIENTS: ForkMutex<BTreeMap<u64, Weak<Client>>> = ForkMutex::new(BTreeMap::new());

/// A number that no other server has.
pub(super) fn new_number() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(thread::ticks());
    hasher.write_u32(std::process::id());
    // 0 is nobody.
    hasher.finish().max(1)
}

/// This process as a client of one server.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) generation: u32,
    reach: Reach,
    idle: ManuallyDrop<ForkMutex<Vec<Connection>>>,
    /// Connections to threads that serve objects of the program's own.
    direct: ManuallyDrop<ForkMutex<Vec<Connection>>>,
    /// Connections whose caller gave up; what they are for is undone when it comes.
    late: ManuallyDrop<ForkMutex<Vec<(Connection, u64)>>>,
    /// Objects to let go of, for which there was no room at the time.
    unreleased: ForkMutex<Vec<u64>>,
    /// Whether there is anything in the two lists above.
    is_behind: AtomicBool,
    pub(super) leases: AtomicU64,
}

/// How its server is reached.
enum Reach {
    /// By a socket of this machine's.
    Door(OwnedFd),
    /// Over a network. (In a forked child, the connections are the parent's.)
    Far(Box<ManuallyDrop<Option<Far>>>),
}

/// A connection, with memory that is used again.
struct Connection {
    wire: Wire,
    /// When it carried a call last, where that matters.
    used: Option<Instant>,
    request: Vec<u8>,
    calls: u32,
}

impl Client {
    /// This process as a client of the server with that number, which `door` leads to.
    pub(super) fn at(id: u64, door: impl FnOnce() -> Result<OwnedFd>) -> Result<Arc<Self>> {
        let mut clients = CLIENTS.lock();
        let known = clients.get(&id).and_then(Weak::upgrade);
        if let Some(client) = known {
            if client.generation == thread::generation() {
                return Ok(client);
            }
            // It is the parent's: the last reference may be this one, and dropping it takes
            // no lock.
        }
        let theirs = door()?;
        // A door of its own: the server sees by its end that this process has ended.
        let os = |error| Error::os("become a client of a manager's server", error);
        let (ours, session) = socket::packet_pair().map_err(os)?;
        let hello = Hello::Session.write(image::stamp());
        // A server that is gone is an error of the calls that follow.
        let _ = socket::send(theirs.as_fd(), &hello, &[session.as_fd()], true);
        let client = Self::new(id, Reach::Door(ours));
        clients.retain(|_, client| client.strong_count() > 0);
        clients.insert(id, Arc::downgrade(&client));
        Ok(client)
    }

    /// This process as a client of a server over a network: by a session of its own, or by the
    /// one that it has already for proxies from the same process.
    pub(super) fn far(id: Option<u64>, route: Route) -> Result<Arc<Self>> {
        let id = id.unwrap_or_else(new_number);
        let known = || {
            let clients = CLIENTS.lock();
            let client = clients.get(&id).and_then(Weak::upgrade);
            client.filter(|client| client.generation == thread::generation())
        };
        if let Some(client) = known() {
            return Ok(client);
        }
        // Without the lock, as it may take long.
        let client = Self::new(
            id,
            Reach::Far(Box::new(ManuallyDrop::new(Some(Far::begin(route)?)))),
        );
        if let Some(earlier) = known() {
            return Ok(earlier);
        }
        let mut clients = CLIENTS.lock();
        clients.retain(|_, client| client.strong_count() > 0);
        clients.insert(id, Arc::downgrade(&client));
        Ok(client)
    }

    fn new(id: u64, reach: Reach) -> Arc<Self> {
        Arc::new(Self {
            id,
            generation: thread::generation(),
            reach,
            idle: ManuallyDrop::new(ForkMutex::new(Vec::new())),
            direct: ManuallyDrop::new(ForkMutex::new(Vec::new())),
            late: ManuallyDrop::new(ForkMutex::new(Vec::new())),
            unreleased: ForkMutex::new(Vec::new()),
            is_behind: AtomicBool::new(false),
            leases: AtomicU64::new(0),
        })
    }

    /// The way over a network, if that is how the server is reached.
    pub(super) fn over_network(&self) -> Option<&Far> {
        match &self.reach {
            Reach::Far(far) => far.as_ref().as_ref(),
            Reach::Door(_) => None,
        }
    }

    /// The same client in a forked child.
    pub(super) fn again(self: &Arc<Self>) -> Result<Arc<Self>> {
        match &self.reach {
            Reach::Door(door) => Self::at(self.id, || copy(door)),
            Reach::Far(_) => {
                let far = self.over_network().ok_or_else(disconnected)?;
                Self::far(Some(self.id), far.route.clone())
            }
        }
    }

    fn connect(&self, is_direct: bool) -> Result<Connection> {
        let door = match &self.reach {
            Reach::Door(door) => door,
            Reach::Far(_) => {
                let far = self.over_network().ok_or_else(disconnected)?;
                return Ok(Connection {
                    wire: Wire::Far(Arc::new(far.connect(is_direct)?)),
                    used: Some(Instant::now()),
                    request: Vec::new(),
                    calls: 0,
                });
            }
        };
        let (wire, form, handles) = Wire::open()?;
        let hello = if is_direct {
            Hello::Direct(&form)
        } else {
            Hello::Link(&form)
        };
        let bytes = hello.write(image::stamp());
        let handles: Vec<BorrowedFd<'_>> = handles.iter().map(AsFd::as_fd).collect();
        socket::send(door.as_fd(), &bytes, &handles, true).map_err(|error| {
            let error = Error::os("connect to a manager's server", error);
            if error.is_disconnected() {
                disconnected()
            } else {
                error
            }
        })?;
        Ok(Connection {
            wire,
            used: None,
            request: Vec::new(),
            calls: 0,
        })
    }

    fn pool(&self, is_direct: bool) -> &ForkMutex<Vec<Connection>> {
        if is_direct { &self.direct } else { &self.idle }
    }

    /// Begins a request.
    #[inline]
    pub(super) fn ask(self: &Arc<Self>, op: Op, object: u64) -> Result<Ask> {
        let is_direct = matches!(op, Op::Make | Op::Method | Op::Enter | Op::Serve);
        let connection = match self.take(is_direct) {
            Some(connection) => connection,
            None => self.connect(is_direct)?,
        };
        Ok(self.ask_over(connection, is_direct, op, object))
    }

    #[inline]
    fn ask_over(
        self: &Arc<Self>,
        mut connection: Connection,
        is_direct: bool,
        op: Op,
        object: u64,
    ) -> Ask {
        connection.calls = connection.calls.wrapping_add(1);
        connection.request.clear();
        connection.request.resize(REQUEST, 0);
        let outgoing = match connection.wire.heap() {
            None => Outgoing::over_network(self.id),
            heap if is_direct => Outgoing::near_server(heap, self.id),
            heap => Outgoing::to_server(heap, self.id),
        };
        Ask {
            client: Arc::clone(self),
            op,
            object,
            wait: FOREVER,
            number: 0,
            second: 0,
            patience: Patience::Forever,
            is_direct,
            connection: Some(connection),
            outgoing,
        }
    }

    /// A connection that waits for its next use.
    #[inline]
    fn take(&self, is_direct: bool) -> Option<Connection> {
        let mut pool = self.pool(is_direct).lock();
        let connection = pool.pop()?;
        let Some(used) = connection.used else {
            return Some(connection);
        };
        let idle = self.over_network().and_then(|far| far.idle);
        if idle.is_none_or(|idle| used.elapsed() < idle) {
            return Some(connection);
        }
        // The others have been there for longer.
        pool.clear();
        None
    }

    fn give_back(&self, mut connection: Connection, is_direct: bool) {
        if connection.used.is_some() {
            connection.used = Some(Instant::now());
        }
        let mut pool = self.pool(is_direct).lock();
        if pool.len() < IDLE_MAX {
            pool.push(connection);
        }
    }

    /// Lets go of an object, without waiting for an answer.
    pub(super) fn release(self: &Arc<Self>, object: u64) {
        // A server that is stopped is waited for once, not for every proxy.
        let patience = if self.unreleased.lock().is_empty() {
            Patience::within(GRACE)
        } else {
            Patience::Never
        };
        if !self.let_go(object, patience) {
            self.unreleased.lock().push(object);
            self.is_behind.store(true, Ordering::Relaxed);
        }
    }

    /// Lets go of an object; false if that has to be done later.
    fn let_go(self: &Arc<Self>, object: u64, patience: Patience) -> bool {
        let connection = match self.take(false) {
            Some(connection) => connection,
            None if patience == Patience::Never => return false,
            None => match self.connect(false) {
                Ok(connection) => connection,
                // A server that is gone holds nothing.
                Err(error) => return error.is_disconnected(),
            },
        };
        let mut ask = self.ask_over(connection, false, Op::Release, object);
        ask.number = 1;
        !ask.send(patience).is_err_and(|error| error.is_timeout())
    }

    /// Becomes one more holder of an object that came in a message.
    pub(super) fn adopt(self: &Arc<Self>, object: u64) -> Result<()> {
        self.ask(Op::Adopt, object)?.call()?.check()
    }

    /// Does what had to be left undone.
    #[cold]
    fn catch_up(self: &Arc<Self>) {
        thread_local! {
            /// What is done here ends in calls too.
            static IS_CATCHING_UP: Cell<bool> = const { Cell::new(false) };
        }
        if IS_CATCHING_UP.replace(true) {
            return;
        }
        self.is_behind.store(false, Ordering::Relaxed);
        let unreleased = std::mem::take(&mut *self.unreleased.lock());
        let is_done = |object: &&u64| self.let_go(**object, Patience::Never);
        let done = unreleased.iter().take_while(is_done).count();
        if done < unreleased.len() {
            self.unreleased
                .lock()
                .extend_from_slice(&unreleased[done..]);
            self.is_behind.store(true, Ordering::Relaxed);
        }
        let mut late = self.late.lock();
        let has_answer = |(connection, _): &(Connection, u64)| connection.wire.has_message();
        let (ready, rest): (Vec<_>, Vec<_>) = late.drain(..).partition(has_answer);
        if !rest.is_empty() {
            self.is_behind.store(true, Ordering::Relaxed);
        }
        *late = rest;
        drop(late);
        for (connection, object) in ready {
            let Ok(message) = connection.wire.receive(Patience::Never) else {
                continue;
            };
            let Ok(answer) = Answer::new(self, message) else {
                continue;
            };
            if matches!(answer.status, Status::Ok | Status::Abandoned) {
                self.undo(answer, object);
            }
            self.give_back(connection, false);
        }
        IS_CATCHING_UP.set(false);
    }

    /// Sends what came back to where it came from.
    fn undo(self: &Arc<Self>, mut answer: Answer, object: u64) {
        if let Ok(mut ask) = self.ask(Op::Undo, object) {
            if let Some(connection) = &mut ask.connection {
                let fields = &answer.message.bytes()[REPLY..];
                connection.request.extend_from_slice(fields);
            }
            ask.outgoing.handles = std::mem::take(&mut answer.handles);
            // A server that is gone has nothing to undo.
            let _ = ask.call();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // In a forked child, the connections are the parent's, and their descriptors have been
        // closed or are shared with it.
        if self.generation == thread::generation() {
            drop(std::mem::take(&mut *self.idle.lock()));
            drop(std::mem::take(&mut *self.direct.lock()));
            drop(std::mem::take(&mut *self.late.lock()));
            if let Reach::Far(far) = &mut self.reach {
                drop(far.take());
            }
        }
    }
}

fn copy(door: &OwnedFd) -> Result<OwnedFd> {
    socket::duplicate(door.as_fd()).map_err(|error| Error::os("copy a manager's door", error))
}

pub(super) fn disconnected() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the manager's server is gone (shut down, or its process has ended)",
    )
}

/// Says which value it was that cannot leave the machine.
#[cold]
fn refused<T: ?Sized>(error: Error) -> Error {
    if error.kind() != ErrorKind::Unsupported {
        return error;
    }
    let what = format!(
        "send a value of type {} to a manager",
        std::any::type_name::<T>()
    );
    Error::because(ErrorKind::Unsupported, what, error)
}

fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Disconnected => disconnected(),
        Failure::NotYet => Error::new(
            ErrorKind::TimedOut,
            "the manager's server did not answer in time: its process may be stopped",
        ),
        Failure::Other(error) => error,
    }
}

/// A request that is being written.
pub(super) struct Ask {
    client: Arc<Client>,
    op: Op,
    object: u64,
    wait: u64,
    pub(super) number: u64,
    pub(super) second: u64,
    patience: Patience,
    is_direct: bool,
    connection: Option<Connection>,
    outgoing: Outgoing,
}

impl Ask {
    /// How long it may wait; for ever unless this is said.
    pub(super) fn wait(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self.wait = match patience {
            Patience::Never => 0,
            Patience::Forever => FOREVER,
            Patience::Until(deadline) => {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                u64::try_from(left.as_nanos()).unwrap_or(FOREVER).max(1)
            }
        };
        self
    }

    /// Waits for the answer as long as it takes, whatever the server was told.
    pub(super) fn patiently(mut self) -> Self {
        self.patience = Patience::Forever;
        self
    }

    /// Waits for the answer so long at most, whatever the server was told.
    pub(super) fn soon(mut self, timeout: Duration) -> Self {
        self.patience = Patience::within(timeout);
        self
    }

    /// For a semaphore, its bound.
    pub(super) fn bound(mut self, bound: u64) -> Self {
        self.wait = bound;
        self
    }

    #[inline]
    pub(super) fn number(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    pub(super) fn second(mut self, second: u64) -> Self {
        self.second = second;
        self
    }

    fn connection_mut(&mut self, work: impl FnOnce(&mut Vec<u8>)) {
        if let Some(connection) = &mut self.connection {
            work(&mut connection.request);
        }
    }

    /// Adds a value.
    #[inline]
    pub(super) fn field<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Self> {
        let Some(connection) = &mut self.connection else {
            return Ok(self);
        };
        let request = &mut connection.request;
        let start = request.len();
        request.extend_from_slice(&[0; FIELD]);
        self.outgoing.begin_part();
        let before = self.outgoing.handles.len();
        let encoded = encode(value, request, &mut self.outgoing);
        encoded.map_err(|error| refused::<T>(error))?;
        let len = request.len() - start - FIELD;
        let handles = self.outgoing.handles.len() - before;
        let head = field_head(len, self.outgoing.named.len(), handles)?;
        request[start..start + FIELD].copy_from_slice(&head);
        for number in &self.outgoing.named {
            request.extend_from_slice(&number.to_le_bytes());
        }
        Ok(self)
    }

    /// Adds text as it is.
    pub(super) fn text(mut self, text: &str) -> Result<Self> {
        let head = field_head(text.len(), 0, 0)?;
        self.connection_mut(|request| {
            request.extend_from_slice(&head);
            request.extend_from_slice(text.as_bytes());
        });
        Ok(self)
    }

    /// Adds a handle that is the request's own.
    pub(super) fn handle(mut self, handle: OwnedFd) -> Self {
        self.outgoing.handles.push(handle);
        self
    }

    /// Sends the request.
    #[inline]
    fn send(&mut self, patience: Patience) -> Result<()> {
        let Some(connection) = &mut self.connection else {
            return Err(disconnected());
        };
        let request = Request {
            op: self.op,
            call: connection.calls,
            object: self.object,
            wait: self.wait,
            number: self.number,
            second: self.second,
            fields: Default::default(),
        };
        if let Some(head) = connection.request.first_chunk_mut() {
            request.write(head);
        }
        let sent = connection
            .wire
            .send(&connection.request, &mut self.outgoing, patience);
        if connection.request.capacity() > 1 << 20 {
            connection.request = Vec::new();
        }
        sent.map_err(|failure| {
            if matches!(failure, Failure::Disconnected) {
                // It is of no use any more.
                self.connection = None;
            }
            failed(failure)
        })
    }

    /// Sends the request, and waits for the answer.
    #[inline]
    pub(super) fn call(mut self) -> Result<Answer> {
        let patience = match self.patience {
            Patience::Until(deadline) => deadline
                .checked_add(GRACE)
                .map_or(Patience::Forever, Patience::Until),
            _ => Patience::Forever,
        };
        self.send(patience)?;
        let Some(connection) = &self.connection else {
            return Err(disconnected());
        };
        match connection.wire.receive(patience) {
            Ok(message) => {
                let answer = Answer::new(&self.client, message)?;
                if answer.call != connection.calls {
                    self.connection = None;
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "a manager's server answered another question",
                    ));
                }
                Ok(answer)
            }
            Err(failure) => {
                let connection = self.connection.take();
                if let (Failure::NotYet, Some(connection), false) =
                    (&failure, connection, self.is_direct)
                {
                    self.client.late.lock().push((connection, self.object));
                    self.client.is_behind.store(true, Ordering::Relaxed);
                }
                Err(failed(failure))
            }
        }
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.client.give_back(connection, self.is_direct);
            if self.client.is_behind.load(Ordering::Relaxed) {
                self.client.catch_up();
            }
        }
    }
}

/// What a server has answered.
pub(super) struct Answer {
    pub(super) status: Status,
    call: u32,
    pub(super) number: u64,
    message: Message,
    /// Where the next field starts.
    at: usize,
    /// What the fields name, in their order: held once each, until they are taken or dropped.
    named: Vec<Referent>,
    handles: Vec<OwnedFd>,
    has_beside: bool,
}

impl Answer {
    #[inline]
    fn new(client: &Arc<Client>, mut message: Message) -> Result<Self> {
        let (head, names) = {
            let head = ReplyHead::parse(message.bytes())?;
            let names = head
                .fields
                .clone()
                .any(|field| field.named().next().is_some());
            ((head.status, head.call, head.number), names)
        };
        let mut named = Vec::new();
        if names {
            let head = ReplyHead::parse(message.bytes())?;
            for number in head.fields.flat_map(|field| field.named()) {
                named.push(Referent::held(client, number));
            }
        }
        named.reverse();
        let has_beside = message.incoming.has_blocks();
        let handles = if has_beside {
            Vec::new()
        } else {
            message.incoming.take_handles()
        };
        Ok(Self {
            status: head.0,
            call: head.1,
            number: head.2,
            message,
            at: REPLY,
            named,
            handles,
            has_beside,
        })
    }

    /// An error, unless the request was done.
    pub(super) fn check(&self) -> Result<()> {
        match self.status {
            Status::Failed => {
                let head = ReplyHead::parse(self.message.bytes())?;
                let words = head
                    .fields
                    .clone()
                    .next()
                    .map_or(&[][..], |field| field.bytes);
                Err(Error::new(
                    kind_of(self.number),
                    String::from_utf8_lossy(words),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether it was done, where there may be nothing to do it with.
    pub(super) fn found(&self) -> Result<bool> {
        self.check()?;
        Ok(self.status != Status::Nothing)
    }

    /// The next field, as a value.
    #[inline]
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some((bytes, named, handles, next)) = self.field() else {
            return Ok(None);
        };
        let value = if named == 0 && handles == 0 && !self.has_beside {
            decode(&self.message.bytes()[bytes], &mut Incoming::default())?
        } else {
            let named = (0..named).filter_map(|_| self.named.pop());
            let named: Vec<Box<dyn Any + Send>> = named
                .map(|referent| Box::new(referent) as Box<dyn Any + Send>)
                .collect();
            let mut incoming = if self.has_beside {
                std::mem::take(&mut self.message.incoming)
            } else {
                let count = handles.min(self.handles.len());
                Incoming::new(self.handles.drain(..count).collect(), Vec::new())
            }
            .with_named(named);
            decode(&self.message.bytes()[bytes], &mut incoming)?
        };
        self.at = next;
        Ok(Some(value))
    }

    /// The next field, which has to be there.
    #[inline]
    pub(super) fn value<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.next()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "a manager's server answered with too few values",
            )
        })
    }

    /// The value, or nothing if there was none.
    #[inline]
    pub(super) fn optional<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        if self.found()? { self.next() } else { Ok(None) }
    }

    /// The next field, as text.
    pub(super) fn next_text(&mut self) -> Option<String> {
        let (bytes, _, _, next) = self.field()?;
        self.at = next;
        Some(String::from_utf8_lossy(&self.message.bytes()[bytes]).into_owned())
    }

    /// The next field, as a number.
    pub(super) fn next_number(&mut self) -> Option<u64> {
        let (bytes, _, _, next) = self.field()?;
        self.at = next;
        let bytes = self.message.bytes()[bytes].first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    #[inline]
    fn field(&self) -> Option<(std::ops::Range<usize>, usize, usize, usize)> {
        let bytes = self.message.bytes();
        let head: &[u8; FIELD] = bytes.get(self.at..)?.first_chunk()?;
        // The message has been checked as a whole.
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let named = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let handles = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let start = self.at + FIELD;
        Some((start..start + len, named, handles, start + len + 8 * named))
    }
}
