//! The server's process: one thread for all objects of the crate's own.
//!
//! ```text
//! client 1  --ring-->  +-----------------------------------+
//! client 2  --ring-->  |  requests, one after the other,   |  --ring-->  whoever is
//! client 3  --ring-->  |  to objects that never block      |             answered
//!     doors  ------->  +-----------------------------------+
//! ```
//!
//! A request that has to wait is a note in its object, so that no other is delayed and no
//! thread is blocked. One thread for all keeps a call at the price of a round trip, also
//! where there are more clients than processors: the server finds the requests of all of
//! them when it looks, and a client that runs finds its answer without anybody being woken.
//!
//! A connection is either polled (its client was quick lately) or armed (its client rings
//! when it sends). With none polled the server sleeps.
//!
//! Objects of the program's own, whose methods may take any time, are called by threads of
//! their own, a thread for each client's thread: `direct`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::direct;
use super::guests::Guest;
use super::message::{FOREVER, Field, Fields, HELLO, Hello, Kind, Op, Request, Status, Token};
use super::object::{Answer, Call, Caller, Flow, Object, Reply};
use super::registry::{Numbered, Own, Published, Registry, Session, Slot, Stored, lock};
use super::serving::Inbox;
use super::wire::{Handle, Wire};
use crate::codec::attachments::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::ring::End;
use crate::sys::awake::Turns;
use crate::sys::poller::Poller;
use crate::sys::{image, process, socket, thread};
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::receiver::Receiver;

/// What a server is started with.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) id: u64,
    /// The server's end of its first door.
    pub(super) door: Handle,
}

/// Ticks that the server polls after the last request; about as long as a wake-up takes.
const SPIN: u64 = 150_000;
/// Ticks between two looks at everything but polled connections.
const LOOK_EVERY: u64 = 60_000;
/// Ticks after which a connection that was quiet is not polled any more.
const QUIET: u64 = 4_000_000;

/// The number of the inbox among what is waited for; connections are counted from 1.
const INBOX: u64 = 0;

/// Replies up to this size leave their memory for the next one.
const REPLY_KEPT: usize = 1 << 20;

/// A door: a socket through which processes become clients.
pub(super) struct Door {
    socket: OwnedFd,
    /// The client that it belongs to, unless it travels in a message.
    session: Option<Arc<Session>>,
    /// What it keeps alive meanwhile.
    pub(super) leased: Vec<Arc<Slot>>,
}

/// A connection of a client's.
pub(super) struct Link {
    pub(super) wire: Wire,
    pub(super) session: Arc<Session>,
    pub(super) waiting: Option<(Caller, Arc<Slot>)>,
    pub(super) is_polled: bool,
    pub(super) last_used: u64,
    /// The processor that the client was on when that was last looked at.
    pub(super) client_cpu: Option<u32>,
}

pub(super) struct Server {
    pub(super) registry: Arc<Registry>,
    pub(super) poller: Poller,
    pub(super) doors: Numbered<Door>,
    /// Doors in messages, by client and number: until their client has said all of it.
    pub(super) leases: HashMap<(u64, u64), u64>,
    pub(super) links: Numbered<Link>,
    /// Connections over a network; those for calls are links too, under the same number.
    pub(super) guests: Numbered<Guest>,
    /// The sessions of such clients.
    pub(super) tokens: HashMap<Token, (u64, Arc<Session>)>,
    /// Those of which there may be more to read at once.
    pub(super) unserved: Vec<u64>,
    /// When the next of them may have had its time.
    pub(super) look_at_guests: Option<Instant>,
    pub(super) inbox: Arc<Inbox>,
    polled: Vec<u64>,
    turns: Turns,
    deadlines: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    last: u64,
    pub(super) sessions: usize,
    reply: Reply,
    others: Vec<Answer>,
    is_over: bool,
}

/// Runs a server until it is told to end.
pub(super) fn serve(start: Start) -> Result<()> {
    // The terminal interrupts the whole group; the manager's own process decides what follows.
    process::block_interrupts();
    let (graveyard, ended) = mpsc::channel::<Own>();
    std::thread::Builder::new()
        .name("bunshin-drop".into())
        .spawn(move || {
            for own in ended {
                // A destructor that panics takes nobody along.
                let _ = crate::process::panic::catch(true, move || drop(own));
            }
        })
        .map_err(|error| Error::os("start a thread of a manager's server", error))?;
    let os = |error| Error::os("start a manager's server", error);
    let inbox = Arc::new(Inbox::new()?);
    let registry = Registry::new(start.id, graveyard);
    let _ = registry.inbox.set(Arc::clone(&inbox));
    let poller = Poller::new().map_err(os)?;
    poller.add(inbox.bell(), INBOX).map_err(os)?;
    let mut server = Server {
        registry,
        poller,
        guests: Numbered::default(),
        tokens: HashMap::new(),
        unserved: Vec::new(),
        look_at_guests: None,
        inbox: Arc::clone(&inbox),
        doors: Numbered::default(),
        leases: HashMap::new(),
        links: Numbered::default(),
        polled: Vec::new(),
        turns: Turns::default(),
        deadlines: BinaryHeap::new(),
        last: 0,
        sessions: 0,
        reply: Reply::default(),
        others: Vec::new(),
        is_over: false,
    };
    server.add_door(start.door.0, None)?;
    // This process is a client too, where methods use proxies to its own objects.
    let (ours, theirs) = socket::packet_pair().map_err(os)?;
    server.add_door(theirs, None)?;
    let _own = Client::at(start.id, || Ok(ours))?;
    let ended = server.run();
    inbox.close();
    ended
}

impl Link {
    /// Looks which processor the client was on when it last waited for an answer.
    fn look_for_client(&mut self) {
        self.client_cpu = match &self.wire {
            Wire::Near(connection) => connection.sender().untyped().side.ring.cpu(End::Receiver),
            Wire::Far(_) => None,
        };
    }

    /// Has the client ring when it sends; true if it has sent something already.
    fn begin_watch(&self) -> bool {
        self.wire.receiver().is_some_and(Receiver::begin_watch)
    }
}

impl Server {
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn run(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        let mut looked = thread::ticks();
        let mut served = looked;
        while !self.is_over {
            let mut was_busy = false;
            for place in 0..self.polled.len() {
                // Connections that end are taken out when everything is looked at.
                let number = self.polled[place];
                was_busy |= self.serve_link(number);
            }
            let now = thread::ticks();
            if was_busy {
                served = now;
            }
            if now.wrapping_sub(looked) > LOOK_EVERY {
                self.poller.look(&mut ready).map_err(waited)?;
                self.attend(&mut ready, now);
                looked = now;
            } else if !was_busy && (now.wrapping_sub(served) > SPIN || self.polled.is_empty()) {
                self.sleep(&mut ready)?;
                looked = thread::ticks();
                served = looked;
            } else if !self.give_way(was_busy, now) && !was_busy {
                (0..8).for_each(|_| std::hint::spin_loop());
            }
        }
        Ok(())
    }

    /// Gives the processor away if a client waits on it; see [`Turns`].
    fn give_way(&mut self, is_busy: bool, now: u64) -> bool {
        let (polled, links) = (&self.polled, &mut self.links);
        self.turns.give_way(is_busy, now, |is_turn| {
            polled.iter().filter_map(move |number| {
                let link = links.get_mut(number)?;
                if is_turn {
                    link.look_for_client();
                }
                Some((link.client_cpu, link.last_used))
            })
        })
    }

    /// Has all clients ring when they send, and waits for one.
    fn sleep(&mut self, ready: &mut Vec<u64>) -> Result<()> {
        let mut is_busy = false;
        self.polled.retain(|number| {
            let Some(link) = self.links.get_mut(number) else {
                return false;
            };
            link.is_polled = link.begin_watch();
            is_busy |= link.is_polled;
            link.is_polled
        });
        if is_busy {
            return Ok(());
        }
        let deadline = self
            .deadlines
            .peek()
            .map(|Reverse((deadline, ..))| *deadline);
        let deadline = [deadline, self.look_at_guests].into_iter().flatten().min();
        if self.unserved.is_empty() {
            self.poller.wait(deadline, ready).map_err(waited)?;
        } else {
            self.poller.look(ready).map_err(waited)?;
        }
        self.attend(ready, thread::ticks());
        Ok(())
    }

    /// Serves what is ready, and those whose time is over.
    fn attend(&mut self, ready: &mut Vec<u64>, now: u64) {
        for number in std::mem::take(&mut self.unserved) {
            self.serve_guest(number);
        }
        for number in ready.drain(..) {
            if number == INBOX {
                self.open_inbox();
            } else if self.guests.contains_key(&number) {
                self.serve_guest(number);
            } else if self.doors.contains_key(&number) {
                self.open_door(number);
            } else {
                self.answer_bell(number, now);
            }
        }
        // Those that have been quiet for a while ring from now on.
        self.polled.retain(|number| {
            let Some(link) = self.links.get_mut(number) else {
                return false;
            };
            if now.wrapping_sub(link.last_used) > QUIET {
                link.is_polled = link.begin_watch();
            }
            link.is_polled
        });
        self.expire();
        self.expire_guests();
    }

    /// Notes until when a call may wait.
    fn note(&mut self, deadline: Instant, who: Caller) {
        // Those that were answered in time are still there: one who is patient, and is always
        // answered soon, would leave more and more of them.
        if self.deadlines.len() >= 64 + 2 * self.links.len() {
            let links = &self.links;
            self.deadlines.retain(|Reverse((_, number, call))| {
                let waiting = links.get(number).and_then(|link| link.waiting.as_ref());
                waiting.is_some_and(|(who, _)| who.call == *call)
            });
        }
        self.deadlines
            .push(Reverse((deadline, who.connection, who.call)));
    }

    fn expire(&mut self) {
        while let Some(Reverse((deadline, number, call))) = self.deadlines.peek().copied() {
            if deadline > Instant::now() {
                return;
            }
            self.deadlines.pop();
            let waiting = self
                .links
                .get(&number)
                .and_then(|link| link.waiting.clone());
            if let Some((who, slot)) = waiting.filter(|(who, _)| who.call == call) {
                let mut others = std::mem::take(&mut self.others);
                lock(&slot.object).expire(who, &mut others);
                self.others = others;
                self.answer_others(&slot);
            }
        }
    }

    // -- doors

    fn add_door(&mut self, fd: OwnedFd, session: Option<Arc<Session>>) -> Result<u64> {
        let number = self.next_number();
        self.poller
            .add(fd.as_fd(), number)
            .map_err(|error| Error::os("watch a manager's door", error))?;
        self.doors.insert(
            number,
            Door {
                socket: fd,
                session,
                leased: Vec::new(),
            },
        );
        Ok(number)
    }

    fn open_door(&mut self, number: u64) {
        // As many packets as there are, but others want their turn too.
        for _ in 0..16 {
            let Some(door) = self.doors.get(&number) else {
                return;
            };
            let mut bytes = [0; HELLO];
            let mut handles = Vec::new();
            match socket::receive(door.socket.as_fd(), &mut bytes, &mut handles, false) {
                Ok(0) => return self.close_door(number),
                Ok(count) => {
                    let session = door.session.clone();
                    // Whoever is turned away sees its handles closed.
                    let _ = self.welcome(&bytes[..count], handles, session);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // A packet whose handles there was no room for: its sender learns of it by
                // their end.
                Err(error) if error.kind() == std::io::ErrorKind::Other => {}
                Err(_) => return self.close_door(number),
            }
        }
    }

    fn welcome(
        &mut self,
        bytes: &[u8],
        mut handles: Vec<OwnedFd>,
        session: Option<Arc<Session>>,
    ) -> Result<()> {
        let nobody = || Error::new(ErrorKind::Corrupt, "a connection belongs to no client");
        match Hello::parse(bytes, image::stamp())? {
            Hello::Session => {
                let fd = handles.pop().ok_or_else(nobody)?;
                let session = Session::new(self.next_number());
                self.add_door(fd, Some(session))?;
                self.sessions += 1;
            }
            Hello::Link(form) => {
                let session = session.ok_or_else(nobody)?;
                let wire = Wire::arrive(form, handles)?;
                let number = self.next_number();
                self.poller
                    .add(wire.socket(), number)
                    .map_err(|error| Error::os("watch a manager's client", error))?;
                let link = Link {
                    wire,
                    session,
                    waiting: None,
                    is_polled: true,
                    last_used: thread::ticks(),
                    client_cpu: None,
                };
                self.links.insert(number, link);
                self.polled.push(number);
            }
            Hello::Direct(form) => {
                let session = session.ok_or_else(nobody)?;
                let wire = Wire::arrive(form, handles)?;
                direct::start(wire, session, Arc::clone(&self.registry), None, || ())?;
            }
        }
        Ok(())
    }

    fn close_door(&mut self, number: u64) {
        let Some(door) = self.doors.remove(&number) else {
            return;
        };
        self.poller.remove(door.socket.as_fd());
        self.leases.retain(|_, lease| *lease != number);
        if let Some(session) = &door.session {
            self.sessions -= 1;
            self.bereave(session);
        }
    }

    /// A client is gone: what it had of any object goes on to others. Only what it holds can
    /// have something of it.
    pub(super) fn bereave(&mut self, session: &Session) {
        for slot in session.take_all() {
            let mut others = std::mem::take(&mut self.others);
            lock(&slot.object).bereave(session.number, &mut others);
            self.others = others;
            self.answer_others(&slot);
        }
    }

    // -- connections

    /// A connection's socket is readable: it rings, brings handles, or has ended.
    fn answer_bell(&mut self, number: u64, now: u64) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        link.last_used = now;
        let Some(receiver) = link.wire.receiver() else {
            return;
        };
        let is_open = receiver.end_watch().is_ok();
        if is_open && !receiver.side.ring.has_data() && socket::is_closed(link.wire.socket()) {
            return self.close_link(number);
        }
        if !is_open {
            return self.close_link(number);
        }
        if !link.is_polled {
            link.is_polled = true;
            self.polled.push(number);
        }
    }

    pub(super) fn close_link(&mut self, number: u64) {
        let Some(link) = self.links.remove(&number) else {
            return;
        };
        if let Wire::Far(connection) = &link.wire {
            // Its guest is closed when it sees this.
            connection.close();
        } else {
            self.poller.remove(link.wire.socket());
        }
        if let Some((who, slot)) = link.waiting {
            let mut others = std::mem::take(&mut self.others);
            lock(&slot.object).leave(who.connection, &mut others);
            self.others = others;
            self.answer_others(&slot);
        }
    }

    /// Serves a request if there is one.
    #[inline]
    fn serve_link(&mut self, number: u64) -> bool {
        let Some(link) = self.links.get_mut(&number) else {
            return false;
        };
        let has_data = |receiver: &Receiver| receiver.side.ring.has_data();
        if !link.wire.receiver().is_some_and(has_data) {
            return false;
        }
        link.last_used = thread::ticks();
        match link.wire.receive(Patience::Never) {
            Ok(mut message) => {
                let session = Arc::clone(&link.session);
                let mut handles = message.incoming.take_handles();
                match Request::parse(message.bytes()) {
                    Ok(request) => self.answer(number, &request, &mut handles, &session),
                    Err(_) => self.close_link(number),
                }
            }
            Err(Failure::NotYet) => {}
            Err(_) => self.close_link(number),
        }
        true
    }

    /// Does what is asked, and answers if the answer is there.
    #[inline]
    pub(super) fn answer(
        &mut self,
        number: u64,
        request: &Request<'_>,
        handles: &mut Vec<OwnedFd>,
        session: &Arc<Session>,
    ) {
        let mut reply = std::mem::take(&mut self.reply);
        reply.begin(request.call);
        let who = Caller {
            connection: number,
            session: session.number,
            call: request.call,
        };
        let flow = self
            .handle(who, request, handles, session, &mut reply)
            .unwrap_or_else(|error| {
                reply.fail(&error);
                Some(Flow::Reply)
            });
        if flow == Some(Flow::Reply) {
            self.send(number, &mut reply);
        }
        if reply.bytes.capacity() <= REPLY_KEPT {
            self.reply = reply;
        }
    }

    /// Does what is asked; nothing where there is no reply to come.
    fn handle(
        &mut self,
        who: Caller,
        request: &Request<'_>,
        handles: &mut Vec<OwnedFd>,
        session: &Arc<Session>,
        reply: &mut Reply,
    ) -> Result<Option<Flow>> {
        let mut call = Call {
            who,
            op: request.op,
            wait: request.wait,
            number: request.number,
            second: request.second,
            fields: request.fields,
            handles,
            session,
        };
        match request.op {
            Op::Create => {
                let kind = Kind::from_code(request.number)?;
                let object = Object::create(kind, &mut call)?;
                let slot = self.registry.insert(object);
                session.hold(&slot);
                self.registry.collect_some();
                reply.set(Status::Ok, slot.number);
            }
            Op::Adopt => {
                let slot = self.registry.find(request.object)?;
                session.hold(&slot);
            }
            Op::Release => {
                session.release(request.object, request.number.max(1));
                return Ok(None);
            }
            Op::Lease => {
                let slot = session.get(request.object)?;
                let key = (session.number, request.number);
                let door = match handles.pop() {
                    Some(fd) => {
                        let door = self.add_door(fd, None)?;
                        self.leases.insert(key, door);
                        Some(door)
                    }
                    None => self.leases.get(&key).copied(),
                };
                if !door.is_some_and(|door| self.lease(door, slot)) {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "the message that a manager's proxy was to go in is gone",
                    ));
                }
            }
            Op::Publish => {
                let mut fields = request.fields;
                let name = text_of(fields.next())?;
                let value = match fields.next() {
                    None => None,
                    type_name => Some(Published {
                        type_name: text_of(type_name)?,
                        value: call_value(&mut fields, call.handles, session)?,
                    }),
                };
                let was_there = self.registry.publish(name, value);
                reply.set(Status::Ok, was_there.into());
            }
            Op::Find => {
                let mut fields = request.fields;
                let name = text_of(fields.next())?;
                match self.registry.published(&name) {
                    Some(found) => {
                        let wanted = text_of(fields.next())?;
                        if found.type_name != wanted {
                            let is = &found.type_name;
                            return Err(Error::new(
                                ErrorKind::TypeMismatch,
                                format!("what is published as {name:?} is a {is}, no {wanted}"),
                            ));
                        }
                        reply.push(&found.value)?;
                    }
                    None => reply.set(Status::Nothing, 0),
                }
            }
            Op::Census => {
                self.registry.collect();
                reply.set(Status::Ok, self.registry.len() as u64);
                // Not this process itself, whose objects may use proxies.
                let sessions = self.sessions.saturating_sub(1) as u64;
                reply.push_bytes(&sessions.to_le_bytes())?;
            }
            Op::Shutdown => self.is_over = true,
            Op::Make | Op::Method | Op::Enter | Op::Serve => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "methods of a program's own are called over a connection of their own",
                ));
            }
            _ => {
                let slot = session.get(request.object)?;
                let flow = lock(&slot.object).apply(&mut call, reply, &mut self.others)?;
                if flow == Flow::Wait {
                    if let Some(link) = self.links.get_mut(&who.connection) {
                        link.waiting = Some((who, Arc::clone(&slot)));
                    }
                    if request.wait != FOREVER && request.wait != 0 {
                        let deadline =
                            Instant::now().checked_add(Duration::from_nanos(request.wait));
                        if let Some(deadline) = deadline {
                            self.note(deadline, who);
                        }
                    }
                }
                if !self.others.is_empty() {
                    self.answer_others(&slot);
                }
                return Ok(Some(flow));
            }
        }
        Ok(Some(Flow::Reply))
    }

    /// Answers those whose wait is over by what has happened to an object.
    fn answer_others(&mut self, slot: &Arc<Slot>) {
        while !self.others.is_empty() {
            let mut answers = std::mem::take(&mut self.others);
            for answer in answers.drain(..) {
                let to = answer.to;
                let Some(link) = self.links.get_mut(&to.connection) else {
                    lock(&slot.object).take_back(answer, &mut self.others);
                    continue;
                };
                link.waiting = None;
                // What is given to a client that has died would be lost with it.
                if socket::is_closed(link.wire.socket()) {
                    lock(&slot.object).take_back(answer, &mut self.others);
                    continue;
                }
                let mut reply = Reply::default();
                reply.begin(to.call);
                reply.set(answer.status, answer.number);
                if let Some(value) = answer.value {
                    if let Err(error) = reply.give(value) {
                        reply.fail(&error);
                    }
                }
                self.send(to.connection, &mut reply);
            }
            if self.others.is_empty() {
                // Keeps its memory.
                self.others = answers;
                return;
            }
        }
    }

    #[inline]
    pub(super) fn send(&mut self, number: u64, reply: &mut Reply) {
        let Some(link) = self.links.get(&number) else {
            return;
        };
        let is_far = link.wire.is_far();
        let sent = send_reply(&link.wire, &link.session, reply, Patience::Never);
        if sent.is_err() {
            self.close_link(number);
        } else if is_far {
            self.watch_for_room(number);
        }
    }
}

/// Sends a reply; what its values name, the client holds once more.
pub(super) fn send_reply(
    wire: &Wire,
    session: &Session,
    reply: &mut Reply,
    patience: Patience,
) -> Result<(), Failure> {
    let mut outgoing = Outgoing::new(wire.heap());
    outgoing.handles.append(&mut reply.handles);
    for slot in &reply.named {
        session.hold(slot);
    }
    let sent = wire.send(&reply.bytes, &mut outgoing, patience);
    let Err(failure) = sent else {
        reply.named.clear();
        return Ok(());
    };
    for slot in reply.named.drain(..) {
        session.release(slot.number, 1);
    }
    match failure {
        // Too large for what memory there is: the client is told that instead.
        Failure::Other(error) => {
            reply.fail(&error);
            wire.send(&reply.bytes, &mut Outgoing::default(), patience)
        }
        other => Err(other),
    }
}

fn call_value(
    fields: &mut Fields<'_>,
    handles: &mut Vec<OwnedFd>,
    session: &Session,
) -> Result<Stored> {
    let field = fields
        .next()
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a name is to be given to no value"))?;
    Stored::keep(&field, handles, session)
}

fn text_of(field: Option<Field<'_>>) -> Result<String> {
    let text = field.and_then(|field| std::str::from_utf8(field.bytes).ok());
    text.map(str::to_owned)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a name for an object is no text"))
}

fn waited(error: std::io::Error) -> Error {
    Error::os("wait for a manager's clients", error)
}
