//! Many connections that one thread serves, for fronts.
//!
//! A connection is either polled (something came over it lately) or armed (its peer rings
//! when it sends). With none polled, or when all were quiet for about as long as a wake-up
//! takes, the server sleeps until a bell rings.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::duplex::Connection;
use crate::error::{Error, Result};
use crate::shm::ring::End;
use crate::sys::awake::Turns;
use crate::sys::poller::Poller;
use crate::sys::{socket, thread};

/// Ticks without a message after which the server sleeps; about as long as a wake-up takes.
const SPIN: u64 = 150_000;
/// Ticks between two looks at everything but polled connections.
const LOOK_EVERY: u64 = 60_000;
/// Ticks after which a connection that was quiet is not polled any more.
const QUIET: u64 = 4_000_000;

/// The number of what wakes the server itself.
const WAKE: u64 = 0;

/// Connections that one thread serves.
///
/// Others may add connections, and close it, at any time.
pub struct Hub<T> {
    poller: Poller,
    wake: OwnedFd,
    added: Mutex<Vec<Arc<Connection<T>>>>,
    has_added: AtomicBool,
    is_closed: AtomicBool,
    links: Mutex<Links<T>>,
}

struct Links<T> {
    by_number: HashMap<u64, Link<T>>,
    polled: Vec<u64>,
    last: u64,
    looked: u64,
    turns: Turns,
}

struct Link<T> {
    connection: Arc<Connection<T>>,
    is_polled: bool,
    last_used: u64,
    /// The processor that the peer was on when that was last looked at.
    peer_cpu: Option<u32>,
}

impl<T> std::fmt::Debug for Hub<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Hub<T> {
    /// A hub without connections.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> Result<Self> {
        let os = |error| Error::os("make a hub of connections", error);
        let poller = Poller::new().map_err(os)?;
        let wake = socket::event().map_err(os)?;
        poller.add(wake.as_fd(), WAKE).map_err(os)?;
        Ok(Self {
            poller,
            wake,
            added: Mutex::default(),
            has_added: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            links: Mutex::new(Links {
                by_number: HashMap::new(),
                polled: Vec::new(),
                last: WAKE,
                looked: 0,
                turns: Turns::default(),
            }),
        })
    }

    /// Adds a connection, which the server hears from from then on.
    pub fn add(&self, connection: Arc<Connection<T>>) {
        locked(&self.added).push(connection);
        self.has_added.store(true, Ordering::Release);
        socket::event_set(self.wake.as_fd());
    }

    /// Ends the server's wait, now and for ever.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        socket::event_set(self.wake.as_fd());
    }

    /// Forgets a connection; for the thread that waits.
    pub fn remove(&self, number: u64) {
        if let Some(link) = locked(&self.links).by_number.remove(&number) {
            self.poller
                .remove(link.connection.receiver().untyped().side.socket());
        }
    }

    /// Waits until something came, or a connection has ended, and gives those with their
    /// numbers; false when the hub is closed. One thread calls this, and then receives from
    /// each, without waiting.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self, ready: &mut Vec<(u64, Arc<Connection<T>>)>) -> Result<bool> {
        let mut links = locked(&self.links);
        let mut since = thread::ticks();
        let mut numbers = Vec::new();
        loop {
            if self.is_closed.load(Ordering::Acquire) {
                return Ok(false);
            }
            if self.has_added.swap(false, Ordering::Acquire) {
                self.take_added(&mut links)?;
            }
            let now = thread::ticks();
            links.look(now, ready);
            if now.wrapping_sub(links.looked) > LOOK_EVERY {
                links.looked = now;
                self.poller.look(&mut numbers).map_err(waited)?;
                self.attend(&mut links, &mut numbers, now, ready)?;
                links.rest(now);
            }
            if !ready.is_empty() {
                links.give_way(true, now);
                return Ok(true);
            }
            if now.wrapping_sub(since) > SPIN || links.polled.is_empty() {
                if links.arm_all() {
                    continue;
                }
                self.poller.wait(None, &mut numbers).map_err(waited)?;
                since = thread::ticks();
                links.looked = since;
                self.attend(&mut links, &mut numbers, since, ready)?;
                if !ready.is_empty() {
                    return Ok(true);
                }
            } else if !links.give_way(false, now) {
                (0..8).for_each(|_| std::hint::spin_loop());
            }
        }
    }

    fn take_added(&self, links: &mut Links<T>) -> Result<()> {
        for connection in std::mem::take(&mut *locked(&self.added)) {
            links.last += 1;
            let number = links.last;
            let socket = connection.receiver().untyped().side.socket();
            self.poller.add(socket, number).map_err(waited)?;
            links.by_number.insert(
                number,
                Link {
                    connection,
                    is_polled: true,
                    last_used: thread::ticks(),
                    peer_cpu: None,
                },
            );
            links.polled.push(number);
        }
        Ok(())
    }

    /// Answers bells; those that ring have something, or have ended.
    fn attend(
        &self,
        links: &mut Links<T>,
        numbers: &mut Vec<u64>,
        now: u64,
        ready: &mut Vec<(u64, Arc<Connection<T>>)>,
    ) -> Result<()> {
        for number in numbers.drain(..) {
            if number == WAKE {
                socket::event_clear(self.wake.as_fd());
                continue;
            }
            let Some(link) = links.by_number.get_mut(&number) else {
                continue;
            };
            // What is wrong with one connection is found out when it is received from.
            let has_something = link.connection.receiver().untyped().end_watch();
            if !link.is_polled {
                link.is_polled = true;
                links.polled.push(number);
            }
            if !matches!(has_something, Ok(false)) {
                link.last_used = now;
                if !ready.iter().any(|(known, _)| *known == number) {
                    ready.push((number, Arc::clone(&link.connection)));
                }
            }
        }
        Ok(())
    }
}

impl<T> Links<T> {
    /// Finds those of the polled ones that have something.
    fn look(&mut self, now: u64, ready: &mut Vec<(u64, Arc<Connection<T>>)>) {
        let by_number = &mut self.by_number;
        self.polled.retain(|number| {
            let Some(link) = by_number.get_mut(number) else {
                return false;
            };
            let ring = &link.connection.receiver().untyped().side.ring;
            if ring.has_data() || ring.is_closed(End::Sender) {
                link.last_used = now;
                ready.push((*number, Arc::clone(&link.connection)));
            }
            true
        });
    }

    /// Those that have been quiet for a while ring from now on.
    fn rest(&mut self, now: u64) {
        let by_number = &mut self.by_number;
        self.polled.retain(|number| {
            let Some(link) = by_number.get_mut(number) else {
                return false;
            };
            if now.wrapping_sub(link.last_used) > QUIET {
                link.is_polled = link.connection.receiver().untyped().begin_watch();
            }
            link.is_polled
        });
    }

    /// Has all ring when they send; whether one has sent meanwhile.
    fn arm_all(&mut self) -> bool {
        let by_number = &mut self.by_number;
        let mut is_busy = false;
        self.polled.retain(|number| {
            let Some(link) = by_number.get_mut(number) else {
                return false;
            };
            link.is_polled = link.connection.receiver().untyped().begin_watch();
            is_busy |= link.is_polled;
            link.is_polled
        });
        is_busy
    }

    /// Gives the processor away if a polled peer waits on it; see [`Turns`].
    fn give_way(&mut self, is_busy: bool, now: u64) -> bool {
        let (polled, by_number) = (&self.polled, &mut self.by_number);
        self.turns.give_way(is_busy, now, |is_turn| {
            polled.iter().filter_map(move |number| {
                let link = by_number.get_mut(number)?;
                if is_turn {
                    let ring = &link.connection.receiver().untyped().side.ring;
                    ring.set_cpu(End::Receiver, thread::cpu());
                    let ring = &link.connection.sender().untyped().side.ring;
                    link.peer_cpu = ring.cpu(End::Receiver);
                }
                Some((link.peer_cpu, link.last_used))
            })
        })
    }
}

fn waited(error: std::io::Error) -> Error {
    Error::os("wait for clients", error)
}
