//! Which forked processes may use an end of a ring.
//!
//! A child that is forked for a closure has a copy of every end that its parent has, and the
//! engine learns only at the first use whether the closure means to use it. Until then, and until
//! it has ended, such a child may still come to use the end: the other side must not take the
//! death of one such process for the end of all.
//!
//! # An entry
//!
//! | Bits | Means |
//! |---|---|
//! | 0..=29 | the process, 0 if the entry is free |
//! | 30 | it is forking: a child that may use the end is about to be there |
//! | 31 | it has used the end, or has it for itself |
//!
//! | From | To | By |
//! |---|---|---|
//! | free | forking | a process that has the end, before it forks |
//! | forking | process | the same, after it has forked |
//! | process | used | the process, at its first use; its parent, if the end was moved into its closure |
//! | any | free | the process, when it gives the end up; whoever finds that the process has ended |
//!
//! Nobody waits for an entry: each is one word of its own.

use super::atomic::{AtomicU32, Ordering};
use super::segment::Shared;

/// Entries of a list. With more processes than that, only the sockets tell that all are gone.
pub(crate) const ROOM: usize = if cfg!(loom) { 4 } else { 252 };
/// Bytes of a list.
pub(crate) const SIZE: usize = 252 * 4;

const FORKING: u32 = 1 << 30;
const USED: u32 = 1 << 31;
const PROCESS: u32 = FORKING - 1;

/// The list of one end; valid when zeroed.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Holders {
    entries: [AtomicU32; ROOM],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Holders>() == SIZE);

impl Default for Holders {
    fn default() -> Self {
        Self {
            entries: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

// SAFETY: atomics of any value.
unsafe impl Shared for Holders {}

/// A process that may use an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    at: usize,
    entry: u32,
}

impl Holder {
    pub(crate) fn pid(self) -> u32 {
        self.entry & PROCESS
    }

    /// Whether it has used the end, or somebody who will have it is being forked.
    pub(crate) fn is_certain(self) -> bool {
        self.entry & (USED | FORKING) != 0
    }
}

impl Holders {
    /// Those listed now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Holder> + '_ {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(at, entry)| {
            let entry = entry.load(Ordering::Acquire);
            (entry & PROCESS != 0).then_some(Holder { at, entry })
        })
    }

    /// Lists a process that is about to fork; `None` if there is no room.
    pub(crate) fn begin_fork(&self, pid: u32) -> Option<Holder> {
        self.put(pid & PROCESS | FORKING)
    }

    /// Lists the child in place of the fork.
    pub(crate) fn end_fork(&self, fork: Holder, child: u32) {
        self.exchange(fork, child & PROCESS);
    }

    /// Lists a process that uses the end, or may come to; false if there is no room.
    pub(crate) fn add(&self, pid: u32, is_used: bool) -> bool {
        let used = if is_used { USED } else { 0 };
        let known = self
            .iter()
            .find(|known| known.pid() == pid && known.entry & FORKING == 0);
        match known {
            Some(known) => self.exchange(known, known.entry | used),
            None => self.put(pid & PROCESS | used).is_some(),
        }
    }

    fn put(&self, entry: u32) -> Option<Holder> {
        let free = |at: &usize| {
            self.entries[*at]
                .compare_exchange(0, entry, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let at = (0..self.entries.len()).find(free)?;
        Some(Holder { at, entry })
    }

    fn exchange(&self, holder: Holder, entry: u32) -> bool {
        self.entries[holder.at]
            .compare_exchange(holder.entry, entry, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes one off the list, if it is as it was found.
    pub(crate) fn remove(&self, holder: Holder) {
        self.exchange(holder, 0);
    }

    /// Takes a process off the list; says whether it was there.
    pub(crate) fn remove_process(&self, pid: u32) -> bool {
        let of = |holder: &Holder| holder.pid() == pid && holder.entry & FORKING == 0;
        self.iter()
            .find(of)
            .is_some_and(|found| self.exchange(found, 0))
    }

    /// Has the end be that process's, and of those who have used it. The process is not listed
    /// again if it has given the end up already.
    pub(crate) fn give_to(&self, pid: u32) {
        for holder in self.iter().filter(|holder| !holder.is_certain()) {
            if holder.pid() == pid {
                self.exchange(holder, holder.entry | USED);
            } else {
                self.remove(holder);
            }
        }
    }

    pub(crate) fn clear(&self) {
        for entry in &self.entries {
            entry.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(holders: &Holders) -> Vec<u32> {
        holders.iter().map(Holder::pid).collect()
    }

    #[test]
    fn a_fork_becomes_its_child() {
        let holders = Holders::default();
        let fork = holders.begin_fork(10).unwrap();
        assert!(fork.is_certain());
        assert!(!holders.remove_process(10), "the fork is not over");
        holders.end_fork(fork, 11);
        assert_eq!(pids(&holders), [11]);
        assert!(holders.iter().all(|holder| !holder.is_certain()));
        assert!(holders.add(11, true));
        assert_eq!(pids(&holders), [11], "it is listed once");
        assert!(holders.iter().all(Holder::is_certain));
        assert!(holders.remove_process(11));
        assert!(pids(&holders).is_empty());
    }

    #[test]
    fn what_is_given_away_is_nobody_elses() {
        let holders = Holders::default();
        for pid in 1..=4 {
            assert!(holders.add(pid, pid == 2));
        }
        holders.give_to(4);
        assert_eq!(pids(&holders), [2, 4]);
        assert!(holders.iter().all(Holder::is_certain));
        assert!(holders.remove_process(4));
        holders.give_to(4);
        assert_eq!(pids(&holders), [2]);
    }

    #[test]
    fn a_full_list_says_so() {
        let holders = Holders::default();
        assert!((1..=ROOM as u32).all(|pid| holders.add(pid, false)));
        assert!(!holders.add(1000, false));
        assert!(holders.begin_fork(1000).is_none());
        let old = holders.iter().next().unwrap();
        holders.remove(old);
        holders.remove(old);
        assert!(holders.add(1000, false));
        assert_eq!(pids(&holders).len(), ROOM);
    }
}
