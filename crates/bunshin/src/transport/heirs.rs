//! Ends of pipes in forked children: who may use which, and who is told when nobody is left.
//!
//! A child that is forked for a closure has copies of all ends, whatever the closure uses. Each end
//! lists such children (`shm::holders`) from the moment of the fork on, until they have ended
//! or given the end up. Once one of them has used the end, it counts as theirs: the other side is
//! told that it is gone when nobody is left in the list, and watches one of the listed processes
//! meanwhile, as their copies keep the socket from telling.
//!
//! - A child that uses one end of a pipe has given up the other.
//! - An end that was moved into a closure is that child's alone, from the fork on.
//! - The process that forks is listed too once it has used the end itself.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::channel::{self, BELL, Entry};
use crate::shm::holders::Holder;
use crate::shm::lock::Taken;
use crate::shm::ring::{End, Ring};
use crate::sys::socket::{self, Interest};
use crate::sys::{process, thread};

/// Lists a child that is about to be forked with all ends of this process.
///
/// If the parent `keeps` its ends, it is listed as well, as in a raw fork.
pub(crate) fn begin_fork(keeps: bool) {
    let (pid, generation) = (std::process::id(), thread::generation());
    for entry in channel::open_ends().values_mut() {
        if !entry.is_usable() {
            continue;
        }
        entry.was_forked = true;
        let is_used = entry.used == generation;
        if (is_used || keeps) && entry.listed != generation {
            entry.listed = generation;
            list(&entry.ring, entry.end, pid, is_used);
        }
        entry.ring.copy(entry.end);
        let holders = entry.ring.holders(entry.end);
        entry.fork = holders.begin_fork(pid).or_else(|| {
            remove_dead(&entry.ring, entry.end);
            holders.begin_fork(pid)
        });
        if entry.fork.is_none() {
            entry.ring.crowd(entry.end);
        }
    }
}

/// Ends [`begin_fork`] in the parent: there is a child, or none.
pub(crate) fn end_fork(child: Option<u32>) {
    for entry in channel::open_ends().values_mut() {
        if let Some(fork) = entry.fork.take() {
            let holders = entry.ring.holders(entry.end);
            match child {
                Some(child) => holders.end_fork(fork, child),
                None => holders.remove(fork),
            }
        }
    }
}

/// Takes a child of this process that has been collected off all lists: its number may come back.
pub(crate) fn forget(child: u32) {
    for entry in channel::open_ends().values() {
        if entry.was_forked {
            entry.ring.holders(entry.end).remove_process(child);
        }
    }
}

/// Notes that this process has used an end that it did not inherit.
pub(super) fn first_use(fd: RawFd) {
    let (pid, generation) = (std::process::id(), thread::generation());
    if let Some(entry) = channel::open_ends().get_mut(&fd) {
        entry.used = generation;
        // Its children may have ended: then the end is not only theirs all the same.
        if entry.was_forked {
            entry.listed = generation;
            list(&entry.ring, entry.end, pid, true);
        }
    }
}

/// Notes that this child uses an end that it has inherited, and not the other one, which is still
/// open under the number `other`.
pub(super) fn adopt(fd: RawFd, other: RawFd) {
    let (pid, generation) = (std::process::id(), thread::generation());
    let mut open = channel::open_ends();
    if let Some(entry) = open.get_mut(&fd) {
        entry.settle(pid);
        entry.used = generation;
        entry.listed = generation;
        list(&entry.ring, entry.end, pid, true);
        entry.ring.claim(entry.end);
        // Who sleeps has to watch this process from now on.
        tell(&entry.ring, entry.end, fd);
    }
    if let Some(entry) = open.get_mut(&other) {
        give_up(entry, other);
    }
}

/// Takes this process off the list of an end that it will not use any more.
pub(super) fn give_up(entry: &mut Entry, fd: RawFd) {
    let pid = std::process::id();
    let is_listed = entry.fork.is_some() || entry.listed == thread::generation();
    entry.settle(pid);
    if is_listed && entry.ring.holders(entry.end).remove_process(pid) {
        entry.listed = channel::NEVER;
        if entry.ring.is_told_by_holders(entry.end) {
            tell(&entry.ring, entry.end, fd);
        }
    }
}

/// Gives an end that was moved into a closure to the child that runs it.
pub(super) fn bequeath(entry: &mut Entry, fd: RawFd, child: u32) {
    let pid = std::process::id();
    let holders = entry.ring.holders(entry.end);
    if entry.listed == thread::generation() {
        holders.remove_process(pid);
    }
    holders.give_to(child);
    if holders.iter().all(|holder| holder.pid() == child) {
        entry.ring.uncopy(entry.end);
    }
    entry.ring.claim(entry.end);
    tell(&entry.ring, entry.end, fd);
}

fn list(ring: &Ring, end: End, pid: u32, is_used: bool) {
    let holders = ring.holders(end);
    if holders.add(pid, is_used) {
        return;
    }
    remove_dead(ring, end);
    if !holders.add(pid, is_used) {
        ring.crowd(end);
    }
}

/// Wakes the other side if it sleeps, to look at the list again. `fd` is a socket of this side.
fn tell(ring: &Ring, end: End, fd: RawFd) {
    let lock = ring.lock(end);
    // If this process is killed between the bell and the byte, the next one who uses this side
    // rings again, as it finds the lock abandoned. If somebody else has the lock, they are awake.
    let taken = lock.try_lock();
    if ring.is_news(end) {
        process::ring_inherited(fd, BELL);
    }
    match taken {
        Ok(Taken::Clean) => _ = lock.unlock(),
        Ok(Taken::Abandoned) => _ = lock.unlock_abandoned(),
        Err(_) => {}
    }
}

fn remove_dead(ring: &Ring, end: End) {
    let holders = ring.holders(end);
    for holder in holders.iter() {
        if matches!(look_at(holder), Life::Ended) {
            holders.remove(holder);
        }
    }
}

enum Life {
    Living(OwnedFd),
    Ended,
    Unknown,
}

fn look_at(holder: Holder) -> Life {
    match process::watch(holder.pid()) {
        Ok(handle) if has_ended(&handle) => Life::Ended,
        Ok(handle) => Life::Living(handle),
        // Not only that there is no such process: this one may have too many files open.
        Err(_) if process::is_there(holder.pid()) => Life::Unknown,
        Err(_) => Life::Ended,
    }
}

fn has_ended(handle: &OwnedFd) -> bool {
    let mut ready = Vec::new();
    let looked = socket::poll(
        &[(handle.as_fd(), Interest::Readable)],
        Some(std::time::Instant::now()),
        &mut ready,
    );
    looked.is_ok_and(|count| count != 0)
}

/// What [`Watched::nobody_is_left`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Before a sleep, in which the end of who is watched is noticed.
    Asleep,
    /// The same without a limit in time, by a process that has forked children with copies of both
    /// ends, and has not given the other one away.
    ForEver,
    /// At once.
    Anew,
}

/// Whether children that may use an end were forked from this process, which has it still.
pub(super) fn was_forked(fd: RawFd) -> bool {
    let open = channel::open_ends();
    open.get(&fd).is_some_and(|entry| entry.was_forked)
}

/// A process that is watched in place of all who have the other side.
#[derive(Debug, Default)]
pub(crate) struct Watched(Option<(u32, OwnedFd)>);

impl Watched {
    pub(super) fn handle(&self) -> Option<&OwnedFd> {
        self.0.as_ref().map(|(_, handle)| handle)
    }

    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// Whether nobody is left who may use that end, as far as the list tells. If somebody is, it
    /// is watched from now on; if it was watched already, it is looked at again only to look `Anew`.
    pub(super) fn nobody_is_left(&mut self, ring: &Ring, end: End, look: Look) -> bool {
        // Nobody can ever come to use it if this is the only thread, and its children are gone.
        let is_told = || {
            ring.is_told_by_holders(end)
                || look == Look::ForEver
                    && ring.is_complete(end)
                    && thread::count().is_ok_and(|threads| threads == 1)
        };
        if look != Look::ForEver && !is_told() {
            self.0 = None;
            return false;
        }
        let own = std::process::id();
        let holders = ring.holders(end);
        let known = self.0.take();
        if let Some((pid, handle)) = known {
            let is_listed = holders.iter().any(|holder| holder.pid() == pid);
            if is_listed && (look != Look::Anew || !has_ended(&handle)) {
                self.0 = Some((pid, handle));
                return false;
            }
        }
        for holder in holders.iter() {
            if holder.pid() == own {
                // It cannot use that end while it waits at this one, unless by another thread.
                if holder.is_certain() && thread::count().is_ok_and(|threads| threads > 1) {
                    return false;
                }
                continue;
            }
            match look_at(holder) {
                Life::Living(handle) => {
                    self.0 = Some((holder.pid(), handle));
                    return false;
                }
                Life::Unknown => return false,
                Life::Ended => holders.remove(holder),
            }
        }
        // Nobody was left a moment ago; a list that was full meanwhile says nothing.
        is_told()
    }
}
