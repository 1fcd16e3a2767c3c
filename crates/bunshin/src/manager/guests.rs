//! A server's clients over a network: connections that have shown the key.
//!
//! A guest is a session as any client is, and the same thread serves it: a call that waits is a
//! note in its object, whoever made it. Only what leads to the session differs. It is a
//! connection instead of a door, and when that ends, all that the guest had goes on to others
//! and its other connections are closed.
//!
//! | Connection | Begins as | Ends |
//! |---|---|---|
//! | new | any that has shown the key | when it has not said what it is within the time for a handshake |
//! | session | a process that becomes a client | with the process, or when it is cut |
//! | calls | a thread's of that process | when it has been idle for too long, or with its session |
//! | direct | the same, for the program's own objects | likewise; its thread here ends with it |
//! | lease | a proxy's that is on its way in a message | with the message |
//!
//! Nothing here waits: what does not go out now is kept, and no more is read from that guest
//! until it has gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::direct;
use super::message::{GuestHello, Op, Request, Token, Welcome};
use super::object::{Caller, Reply};
use super::registry::{Session, Slot};
use super::server::{Door, Link, Server};
use super::serving::{Event, Limits};
use super::wire::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{network, thread};
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::link;

/// Requests of one guest that are served in a row; then others have their turn.
const IN_A_ROW: usize = 16;

/// A connection over a network.
pub(super) struct Guest {
    link: Arc<link::Link>,
    role: Role,
    limits: Arc<Limits>,
    /// When it came, or brought something last.
    since: Instant,
    /// It has not taken all that was sent to it.
    is_stalled: bool,
}

enum Role {
    New,
    Session(Token, Arc<Session>),
    /// Of the session with that number.
    Calls(u64),
    Direct(u64),
    Lease(Vec<Arc<Slot>>),
}

impl Guest {
    /// When it has had its time, unless it waits for an answer.
    fn deadline(&self, is_waiting: bool) -> Option<Instant> {
        let limit = match self.role {
            Role::New => Some(self.limits.handshake),
            Role::Calls(_) if !is_waiting => self.limits.idle,
            // A direct one's thread sees to its time; the others say nothing by their nature.
            _ => None,
        };
        limit.and_then(|limit| self.since.checked_add(limit))
    }

    fn look_at(&self, is_waiting: bool, now: Instant) -> Look {
        match self.deadline(is_waiting) {
            Some(deadline) if deadline <= now => Look::Over,
            // It may begin to be idle at any time after this.
            None if is_waiting => Look::At(self.limits.idle.and_then(|idle| now.checked_add(idle))),
            deadline => Look::At(deadline),
        }
    }
}

/// What is to be done about a guest's time.
enum Look {
    /// It has had it.
    Over,
    /// It is to be looked at again then, if ever.
    At(Option<Instant>),
}

fn refuse(link: &link::Link, call: u32, error: &Error) {
    let mut reply = Reply::default();
    reply.begin(call);
    reply.fail(error);
    // It is closed next, whether it was told why or not.
    let _ = link.send(&reply.bytes, Patience::Never);
}

impl Server {
    /// Sees to what other threads have left for this one.
    pub(super) fn open_inbox(&mut self) {
        for event in self.inbox.take() {
            match event {
                Event::Arrived(link, limits) => self.receive_guest(*link, limits),
                Event::Left(number) => self.close_guest(number),
            }
        }
    }

    fn receive_guest(&mut self, link: link::Link, limits: Arc<Limits>) {
        let is_new = |guest: &&Guest| matches!(guest.role, Role::New);
        if self.guests.values().filter(is_new).count() >= limits.connections {
            // They have shown the key and say no more. Those that do are told when there are
            // too many of them.
            return;
        }
        let number = self.next_number();
        if self.poller.add(link.wire().socket(), number).is_err() {
            return;
        }
        let guest = Guest {
            link: Arc::new(link),
            role: Role::New,
            limits,
            since: Instant::now(),
            is_stalled: false,
        };
        self.look_by(guest.deadline(false));
        self.guests.insert(number, guest);
        // It may have said something before it was watched: under TLS, nothing would tell.
        self.serve_guest(number);
    }

    fn look_by(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let before = self.look_at_guests.unwrap_or(deadline);
            self.look_at_guests = Some(before.min(deadline));
        }
    }

    /// Closes the guests whose time is over.
    pub(super) fn expire_guests(&mut self) {
        let now = Instant::now();
        if self.look_at_guests.is_none_or(|at| at > now) {
            return;
        }
        self.look_at_guests = None;
        let mut over = Vec::new();
        let mut first: Option<Instant> = None;
        for (number, guest) in &self.guests {
            match guest.look_at(self.is_waiting(*number), now) {
                Look::Over => over.push(*number),
                Look::At(again) => first = [first, again].into_iter().flatten().min(),
            }
        }
        self.look_at_guests = first;
        for number in over {
            // This process may have been stopped since it looked: what came meanwhile was in time.
            self.serve_guest(number);
            let is_waiting = self.is_waiting(number);
            let guest = self.guests.get(&number);
            match guest.map(|guest| guest.look_at(is_waiting, now)) {
                Some(Look::Over) => self.close_guest(number),
                Some(Look::At(again)) => self.look_by(again),
                None => {}
            }
        }
    }

    /// Whether a guest's call waits for something.
    fn is_waiting(&self, number: u64) -> bool {
        let link = self.links.get(&number);
        link.is_some_and(|link| link.waiting.is_some())
    }

    /// A guest's connection is ready, or may be.
    pub(super) fn serve_guest(&mut self, number: u64) {
        for _ in 0..IN_A_ROW {
            let Some(guest) = self.guests.get_mut(&number) else {
                return;
            };
            if guest.is_stalled {
                match guest.link.flush(Patience::Never) {
                    Ok(true) => {
                        guest.is_stalled = false;
                        let socket = guest.link.wire().socket();
                        if self.poller.expect_room(socket, number, false).is_err() {
                            return self.close_guest(number);
                        }
                    }
                    Ok(false) => return,
                    Err(_) => return self.close_guest(number),
                }
            }
            let message = match guest.link.receive(Patience::Never) {
                Ok(message) => message,
                Err(Failure::NotYet) => return,
                Err(_) => return self.close_guest(number),
            };
            guest.since = Instant::now();
            let is_secured = guest.link.wire().is_secured();
            let is_kept = match guest.role {
                Role::New => self.welcome_guest(number, &message),
                Role::Calls(_) => self.serve_call(number, &message),
                // These have nothing to say, and the thread of a direct one listens itself.
                Role::Session(..) | Role::Lease(_) | Role::Direct(_) => false,
            };
            if !is_kept {
                return self.close_guest(number);
            }
            if matches!(self.guests.get(&number), Some(guest) if matches!(guest.role, Role::Direct(_)))
            {
                return;
            }
            self.watch_for_room(number);
            if !is_secured {
                // If there is more, the socket shows it.
                return;
            }
        }
        // There may be more, and a TLS session does not show what it has.
        self.unserved.push(number);
    }

    /// Something was sent. If it has not gone yet, waits for room rather than for more.
    pub(super) fn watch_for_room(&mut self, number: u64) {
        let Some(guest) = self.guests.get_mut(&number) else {
            return;
        };
        // A call may have waited for long; its client counts from the answer.
        guest.since = Instant::now();
        match guest.link.flush(Patience::Never) {
            Ok(true) => {}
            Ok(false) if guest.is_stalled => {}
            Ok(false) => {
                guest.is_stalled = true;
                let socket = guest.link.wire().socket();
                if self.poller.expect_room(socket, number, true).is_err() {
                    self.close_guest(number);
                }
            }
            Err(_) => self.close_guest(number),
        }
    }

    /// Does what a request asks for; false if the guest breaks the rules.
    fn serve_call(&mut self, number: u64, message: &[u8]) -> bool {
        let Some(link) = self.links.get_mut(&number) else {
            return false;
        };
        // A second one while the first waits: there is one answer at a time.
        if link.waiting.is_some() {
            return false;
        }
        let Ok(request) = Request::parse(message) else {
            return false;
        };
        let session = Arc::clone(&link.session);
        if request.op.is_for_guests() {
            self.answer(number, &request, &mut Vec::new(), &session);
            return true;
        }
        let who = Caller {
            connection: number,
            session: session.number,
            call: request.call,
        };
        let error = not_from_far(request.op);
        self.tell(who, &error);
        true
    }

    /// Reads the first message of a new guest; false if it is not to stay.
    fn welcome_guest(&mut self, number: u64, message: &[u8]) -> bool {
        let Some(guest) = self.guests.get(&number) else {
            return false;
        };
        let (link, limits) = (Arc::clone(&guest.link), Arc::clone(&guest.limits));
        let welcomed = GuestHello::parse(message).and_then(|hello| {
            let is_old = |guest: &&Guest| !matches!(guest.role, Role::New);
            let count = self.guests.values().filter(is_old).count();
            if count >= limits.connections {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("the manager's server has {count} connections, as many as it takes"),
                ));
            }
            self.admit(number, hello, &link, &limits)
        });
        match welcomed {
            Ok(()) => true,
            Err(error) => {
                refuse(&link, 0, &error);
                false
            }
        }
    }

    fn admit(
        &mut self,
        number: u64,
        hello: GuestHello,
        link: &Arc<link::Link>,
        limits: &Arc<Limits>,
    ) -> Result<()> {
        let mut reply = Reply::default();
        reply.begin(0);
        let role = match hello {
            GuestHello::Session => {
                let mut token = Token::default();
                network::random(&mut token)
                    .map_err(|error| Error::os("make a token for a guest", error))?;
                let welcome = Welcome {
                    token,
                    limit: limits.message_bytes as u64,
                    idle_ms: limits.idle.map_or(0, |idle| {
                        u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1)
                    }),
                };
                reply.push_bytes(&welcome.write())?;
                let session = Session::new(number);
                self.tokens.insert(token, (number, Arc::clone(&session)));
                self.sessions += 1;
                Role::Session(token, session)
            }
            GuestHello::Link(token) => {
                let (owner, session) = self.session_of(&token)?;
                let link = Link {
                    wire: Wire::Far(Arc::clone(link)),
                    session,
                    waiting: None,
                    is_polled: false,
                    last_used: thread::ticks(),
                    client_cpu: None,
                };
                self.links.insert(number, link);
                Role::Calls(owner)
            }
            GuestHello::Direct(token) => {
                let (owner, session) = self.session_of(&token)?;
                // Its thread reads and writes from now on.
                self.poller.remove(link.wire().socket());
                link.send(&reply.bytes, Patience::Never)
                    .map_err(|_| gone())?;
                let (wire, inbox) = (Wire::Far(Arc::clone(link)), Arc::clone(&self.inbox));
                direct::start(
                    wire,
                    session,
                    Arc::clone(&self.registry),
                    limits.idle,
                    move || inbox.put(Event::Left(number)),
                )?;
                if let Some(guest) = self.guests.get_mut(&number) {
                    guest.role = Role::Direct(owner);
                }
                return Ok(());
            }
            GuestHello::Lease(token, lease) => {
                let (_, session) = self.session_of(&token)?;
                self.leases.insert((session.number, lease), number);
                Role::Lease(Vec::new())
            }
        };
        if let Some(guest) = self.guests.get_mut(&number) {
            guest.role = role;
            let deadline = guest.deadline(false);
            self.look_by(deadline);
        }
        link.send(&reply.bytes, Patience::Never).map_err(|_| gone())
    }

    fn session_of(&self, token: &Token) -> Result<(u64, Arc<Session>)> {
        let found = self.tokens.get(token);
        found
            .map(|(number, session)| (*number, Arc::clone(session)))
            .ok_or_else(gone)
    }

    /// Has a door, or a connection that stands for one, keep an object.
    pub(super) fn lease(&mut self, door: u64, slot: Arc<Slot>) -> bool {
        if let Some(Door { leased, .. }) = self.doors.get_mut(&door) {
            leased.push(slot);
            return true;
        }
        match self.guests.get_mut(&door) {
            Some(Guest {
                role: Role::Lease(leased),
                ..
            }) => {
                leased.push(slot);
                true
            }
            _ => false,
        }
    }

    /// Ends a guest's connection; if it was a session, all that belongs to it.
    pub(super) fn close_guest(&mut self, number: u64) {
        let Some(guest) = self.guests.remove(&number) else {
            return;
        };
        self.poller.remove(guest.link.wire().socket());
        // Whoever else uses it, a thread of its own or the client, sees its end.
        guest.link.close();
        self.close_link(number);
        match guest.role {
            Role::Session(token, session) => {
                self.tokens.remove(&token);
                self.sessions -= 1;
                let belongs = |guest: &Guest| matches!(guest.role, Role::Calls(owner) | Role::Direct(owner) if owner == number);
                let others = self.guests.iter().filter(|(_, guest)| belongs(guest));
                let others: Vec<u64> = others.map(|(other, _)| *other).collect();
                for other in others {
                    self.close_guest(other);
                }
                self.bereave(&session);
            }
            Role::Lease(_) => self.leases.retain(|_, lease| *lease != number),
            Role::New | Role::Calls(_) | Role::Direct(_) => {}
        }
    }

    fn tell(&mut self, who: Caller, error: &Error) {
        let mut reply = Reply::default();
        reply.begin(who.call);
        reply.fail(error);
        self.send(who.connection, &mut reply);
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the manager's server has ended this client's session",
    )
}

/// What a guest asked for and cannot have.
pub(super) fn not_from_far(op: Op) -> Error {
    let why = match op {
        Op::Make | Op::Enter => {
            "objects of a program's own, and pools, are made on the server's machine, since \
             their code is named by its place in the program; publish them there, and find \
             them by their names"
        }
        Op::Serve => "only processes of the server's machine have it serve at another address",
        _ => "only the process that started a manager's server ends it",
    };
    Error::new(ErrorKind::Unsupported, why)
}

/// The time for which a guest's connection may carry nothing.
pub(super) fn patience(idle: Option<Duration>) -> Patience {
    idle.map_or(Patience::Forever, Patience::within)
}
