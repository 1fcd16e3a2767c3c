//! Names in `/dev/shm` do not outlive the process that made them, however it ends.
//!
//! A process cannot clean up after its own SIGKILL. The first time that it makes a named
//! memory it therefore starts a helper: this program again, which does nothing but watch its
//! parent. The helper is told each name before it exists, and when the parent has ended it
//! removes those that are left.
//!
//! | Message | Bytes |
//! |---|---|
//! | watch | 1, device (8), inode (8), length of the name (1), name |
//! | forget | 2, the same |
//! | bequeath | 3, process (8), when it began (8), 0 |
//!
//! With the last one, the names that are watched so far are to stay for as long as that other
//! process lives, which stands above the one that made them; the helper then stays too, while
//! there are any. Nothing is answered: what lies in the socket is read also after its sender has died. A
//! helper that does not take its messages is replaced, and told everything again. A name is
//! removed only while it is that of the same file. Since the helper watches the parent's
//! end itself, copies of the socket in forked children do not matter.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::named::{self, Identity};
use crate::sys::process::{self, Sig, Started};
use crate::sys::socket::{self, Interest};
use crate::sys::thread;

/// What a program that was started as the helper is told to be.
pub(crate) const ROLE: &str = "names";
/// The helper's name in `ps`.
const NAME: &str = "bunshin-shm";

const WATCH: u8 = 1;
const FORGET: u8 = 2;
const BEQUEATH: u8 = 3;
/// How often a helper whose parent has ended looks whether there are names left.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long a helper leaves its messages lie after it has read some.
const REST: Duration = Duration::from_millis(2);
/// How long a helper may leave its messages lie before it is replaced.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a message before the name.
const HEAD: usize = 18;

/// A name and the file that has it; or, without a name, a process and when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    identity: Identity,
    name: String,
}

impl Entry {
    fn heir(pid: u32, began: u64) -> Self {
        Self {
            identity: Identity {
                device: pid.into(),
                inode: began,
            },
            name: String::new(),
        }
    }

    fn message(&self, kind: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(self.identity.device.to_ne_bytes());
        bytes.extend(self.identity.inode.to_ne_bytes());
        bytes.push(self.name.len() as u8);
        bytes.extend(self.name.as_bytes());
        bytes
    }

    /// The first message in `bytes`, if all of it is there, and how many bytes it takes.
    fn parse(bytes: &[u8]) -> Option<(u8, Self, usize)> {
        let len = HEAD + usize::from(*bytes.get(HEAD - 1)?);
        let number = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let entry = Self {
            identity: Identity {
                device: number(1)?,
                inode: number(9)?,
            },
            name: String::from_utf8_lossy(bytes.get(HEAD..len)?).into_owned(),
        };
        Some((bytes[0], entry, len))
    }

    /// Whether the name still is that of this file.
    fn is_there(&self) -> bool {
        Identity::of_name(&self.name).is_ok_and(|now| now == self.identity)
    }

    /// Removes the name, if it still is that of this file.
    fn remove(&self) {
        if self.is_there() {
            let _ = named::unlink(&self.name);
        }
    }
}

struct Tracker {
    helper: Option<(OwnedFd, Started)>,
    names: Vec<Entry>,
    /// How many of the names, the first ones, are left to another process, and to which.
    left: usize,
    heir: Option<Entry>,
    /// How many are left when it is time to look which of them somebody else has removed.
    look_at: usize,
    /// What the helper is to be told with the next message: names to forget that are gone.
    unsaid: Vec<u8>,
    generation: u32,
}

/// Bytes of messages that may wait for the next one.
const UNSAID: usize = 2048;
/// Fewer names that are left than this are not looked at.
const LOOKED_AT_FROM: usize = 64;

static TRACKER: ForkMutex<Option<Tracker>> = ForkMutex::new(None);

/// Has the name removed when this process ends. To be called before the name exists.
pub(crate) fn watch(name: &str, identity: Identity) -> Result<()> {
    let entry = Entry {
        identity,
        name: name.to_owned(),
    };
    with(|tracker| {
        let message = entry.message(WATCH);
        tracker.names.push(entry);
        tracker.tell(&message).inspect_err(|_| {
            tracker.names.pop();
        })
    })
}

/// Leaves the name alone from now on, also at the end of this process.
pub(crate) fn forget(name: &str, identity: Identity) {
    with(|tracker| {
        let Some(entry) = tracker.take(name, identity) else {
            return;
        };
        tracker.tend();
        // Without a helper there is nobody who would have to forget it.
        tracker.tell_helper(&entry.message(FORGET));
    });
}

/// Leaves a name alone that has been removed.
///
/// The helper is told with what it is told next: meanwhile it knows a name that is not there, or
/// not that file's, which it would not touch.
pub(crate) fn forget_removed(name: &str, identity: Identity) {
    with(|tracker| {
        let Some(entry) = tracker.take(name, identity) else {
            return;
        };
        tracker.tend();
        if tracker.helper.is_some() {
            tracker.unsaid.extend(entry.message(FORGET));
        }
        if tracker.unsaid.len() >= UNSAID {
            tracker.tell_helper(&[]);
        }
    });
}

/// The file that is watched by this name.
pub(crate) fn known(name: &str) -> Option<Identity> {
    with(|tracker| {
        // The last one: an earlier one has lost its name to it.
        let mut entries = tracker.names.iter().rev();
        entries
            .find(|entry| entry.name == name)
            .map(|entry| entry.identity)
    })
}

/// Lets the names that this process has made so far stay while `heir` lives, a process above
/// this one. Says whether there are any.
pub(crate) fn bequeath(heir: u32) -> Result<bool> {
    with(|tracker| {
        if tracker.left == tracker.names.len() {
            return Ok(!tracker.names.is_empty());
        }
        tracker.drop_removed();
        // One that has ended leaves them to this process.
        let Some(began) = process::began(heir) else {
            return Ok(true);
        };
        let entry = Entry::heir(heir, began);
        let message = entry.message(BEQUEATH);
        tracker.left = tracker.names.len();
        tracker.heir = Some(entry);
        tracker.tell(&message).map(|()| true)
    })
}

/// Whether this process has made a name that it has not removed.
pub(crate) fn is_watching() -> bool {
    let slot = TRACKER.lock();
    slot.as_ref().is_some_and(|tracker| {
        tracker.generation == thread::generation() && !tracker.names.is_empty()
    })
}

fn with<R>(work: impl FnOnce(&mut Tracker) -> R) -> R {
    let mut slot = TRACKER.lock();
    let generation = thread::generation();
    // The names that a forked child has inherited are its parent's, as is the helper.
    if slot
        .as_ref()
        .is_none_or(|tracker| tracker.generation != generation)
    {
        *slot = Some(Tracker {
            helper: None,
            names: Vec::new(),
            left: 0,
            heir: None,
            look_at: LOOKED_AT_FROM,
            unsaid: Vec::new(),
            generation,
        });
    }
    work(slot.as_mut().expect("it was put there"))
}

/// Sends a message; `false` if the helper does not take it.
fn send(socket: &OwnedFd, mut message: &[u8]) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !message.is_empty() {
        match socket::send(socket.as_fd(), message, &[], false) {
            Ok(sent) => message = &message[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let watched = [(socket.as_fd(), Interest::Any)];
                if !socket::poll(&watched, Some(deadline), &mut Vec::new()).is_ok_and(|n| n > 0) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Collects a helper that somebody else has ended, and replaces it if there are names.
///
/// To be called now and then: nobody waits for its end.
pub(crate) fn tend() {
    // Whoever has the lock tends as well.
    let Some(mut slot) = TRACKER.try_lock() else {
        return;
    };
    if let Some(tracker) = slot.as_mut() {
        // A forked child has no say in its parent's helper.
        if tracker.generation == thread::generation() {
            tracker.tend();
        }
    }
}

impl Tracker {
    fn tend(&mut self) {
        let has_ended = self.helper.as_ref().is_some_and(|(_, process)| {
            // A failure means that it was collected by somebody else.
            !matches!(process::wait(process.pidfd.as_fd(), false), Ok(None))
        });
        if has_ended {
            self.helper = None;
            if !self.names.is_empty() {
                // If that fails, the next one tries again.
                let _ = self.replace();
            }
        }
    }

    /// Drops names that were left before and that are gone, so that a process that makes one
    /// after the other does not keep them all.
    fn drop_removed(&mut self) {
        if self.left < self.look_at {
            return;
        }
        let own = self.names.split_off(self.left);
        let (there, gone): (Vec<_>, Vec<_>) = self.names.drain(..).partition(Entry::is_there);
        self.left = there.len();
        self.look_at = LOOKED_AT_FROM.max(2 * there.len());
        self.names = there;
        self.names.extend(own);
        if let Some((socket, _)) = &self.helper {
            // A helper that does not take it knows more names than there are, which is no harm.
            let _ = gone
                .iter()
                .all(|entry| send(socket, &entry.message(FORGET)));
        }
    }

    /// Takes an entry off the list.
    fn take(&mut self, name: &str, identity: Identity) -> Option<Entry> {
        let is_it = |entry: &Entry| entry.identity == identity && entry.name == name;
        let at = self.names.iter().position(is_it)?;
        if at < self.left {
            self.left -= 1;
        }
        Some(self.names.remove(at))
    }

    /// Tells the helper, if there is one; another one if it does not listen.
    fn tell_helper(&mut self, message: &[u8]) {
        if self.helper.is_some() {
            // If that fails, the next one tries again.
            let _ = self.tell(message);
        }
    }

    fn tell(&mut self, message: &[u8]) -> Result<()> {
        let told = match &self.helper {
            None => false,
            Some((socket, _)) if self.unsaid.is_empty() => send(socket, message),
            Some((socket, _)) => {
                self.unsaid.extend_from_slice(message);
                send(socket, &self.unsaid)
            }
        };
        if told {
            self.unsaid.clear();
            return Ok(());
        }
        self.replace()
    }

    /// Starts a helper, which is told all names.
    fn replace(&mut self) -> Result<()> {
        // It is told the names that are there, and no others.
        self.unsaid.clear();
        let failed = |error| Error::os("start the process that removes names", error);
        let (ours, theirs) = socket::pair().map_err(failed)?;
        let process = process::start_apart(ROLE, theirs.as_fd()).map_err(failed)?;
        drop(theirs);
        let (left, own) = self.names.split_at(self.left);
        let watch = |entry: &Entry| send(&ours, &entry.message(WATCH));
        let is_told = left.iter().all(watch)
            && (left.is_empty()
                || self
                    .heir
                    .iter()
                    .all(|heir| send(&ours, &heir.message(BEQUEATH))))
            && own.iter().all(watch);
        let new = (ours, process);
        if !is_told {
            end(&new);
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        // Only now: if this process is killed before, the old one still knows what it knew.
        if let Some(old) = self.helper.replace(new) {
            end(&old);
        }
        Ok(())
    }
}

/// Ends a helper before its socket is closed, which it must not take for the end of its parent.
fn end((_, process): &(OwnedFd, Started)) {
    let _ = process::signal(process.pidfd.as_fd(), Sig::KILL);
    let _ = process::wait(process.pidfd.as_fd(), true);
}

/// What the helper knows.
#[derive(Default)]
struct Known {
    /// Names that go when the parent has ended.
    names: Vec<Entry>,
    /// Names that go when the heir has ended.
    left: Vec<Entry>,
    /// A handle to the heir's end.
    heir: Option<OwnedFd>,
}

impl Known {
    fn take(&mut self, kind: u8, entry: Entry) {
        match kind {
            WATCH => self.names.push(entry),
            FORGET => {
                self.names.retain(|known| *known != entry);
                self.left.retain(|known| *known != entry);
            }
            BEQUEATH => {
                let pid = u32::try_from(entry.identity.device).unwrap_or(0);
                let heir = process::watch(pid).ok();
                // Asked after the handle was opened: if the process is the one that was meant,
                // the handle is on it.
                if heir.is_some() && process::began(pid) == Some(entry.identity.inode) {
                    self.left.append(&mut self.names);
                    self.heir = heir;
                }
            }
            _ => {}
        }
    }
}

/// What the helper does: it waits for its parent's end, and for that of the heir if there is one.
pub(crate) fn serve(control: OwnedFd, parent: u32) -> ! {
    process::set_thread_name(NAME);
    process::step_aside();
    let parent_end = process::watch_parent(parent).ok().flatten();
    let mut known = Known::default();
    let mut unread = Vec::new();
    // Whoever makes names one after the other is not to wake this process for each of them: what
    // it says is read also if it has ended meanwhile.
    let mut rest: Option<Instant> = None;
    while let Some(end) = &parent_end {
        let mut watched = vec![(end.as_fd(), Interest::Readable)];
        let heir_end = known.heir.as_ref();
        watched.extend(heir_end.map(|end| (end.as_fd(), Interest::Readable)));
        let has_heir = watched.len() > 1;
        if rest.is_none() {
            watched.push((control.as_fd(), Interest::Readable));
        }
        let mut ready = Vec::new();
        let polled = socket::poll(&watched, rest.take(), &mut ready);
        if polled.is_err() || ready.first() == Some(&true) {
            break;
        }
        if has_heir && ready.get(1) == Some(&true) {
            // What it was left goes; the parent may still make names of its own.
            known.heir = None;
            known.left.drain(..).for_each(|entry| entry.remove());
        }
        match read(&control, &mut unread, &mut known) {
            Read::Ended => break,
            Read::Something => rest = Some(Instant::now() + REST),
            Read::Nothing => {}
        }
    }
    // What it said last.
    read(&control, &mut unread, &mut known);
    known.names.iter().for_each(Entry::remove);
    drop(control);
    while let Some(end) = &known.heir {
        known.left.retain(Entry::is_there);
        let soon = Instant::now() + LOOK_AGAIN;
        let watched = [(end.as_fd(), Interest::Readable)];
        let polled = socket::poll(&watched, Some(soon), &mut Vec::new());
        if known.left.is_empty() || polled.map_or(true, |ready| ready > 0) {
            break;
        }
    }
    known.left.iter().for_each(Entry::remove);
    process::exit_now(0)
}

/// What there was to read.
enum Read {
    Something,
    Nothing,
    /// Nothing will come any more.
    Ended,
}

/// Reads all that is there.
fn read(control: &OwnedFd, unread: &mut Vec<u8>, known: &mut Known) -> Read {
    let mut bytes = [0; 4096];
    let mut outcome = Read::Nothing;
    let outcome = loop {
        match socket::receive(control.as_fd(), &mut bytes, &mut Vec::new(), false) {
            Ok(0) => break Read::Ended,
            Ok(len) => {
                unread.extend_from_slice(&bytes[..len]);
                outcome = Read::Something;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break outcome,
            Err(_) => break Read::Ended,
        }
    };
    let mut at = 0;
    while let Some((kind, entry, len)) = Entry::parse(&unread[at..]) {
        at += len;
        known.take(kind, entry);
    }
    unread.drain(..at);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole_or_not_at_all() {
        let entry = Entry {
            identity: Identity {
                device: 5,
                inode: u64::MAX,
            },
            name: "n".repeat(255),
        };
        let bytes = entry.message(WATCH);
        for cut in 0..bytes.len() {
            assert!(Entry::parse(&bytes[..cut]).is_none(), "{cut}");
        }
        assert_eq!(Entry::parse(&bytes), Some((WATCH, entry, bytes.len())));
    }
}
