//! Whether children that were killed were killed for lack of memory.
//!
//! The system does not say whom it has killed, only how many. So the number is looked at before
//! there are children, and whenever one was killed: as many as it has grown by since the last look
//! were killed by the system. A kill by somebody else is taken for one only where the system has
//! killed another process, of the same control group, since the last look.

use std::time::{Duration, Instant};

use crate::sys::mutex::ForkMutex;
use crate::sys::{oom, thread};

/// How long after the system has killed a process its end may come: it gives large memory back
/// first.
const DYING: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Looked {
    /// In which process; a forked child has a copy of its parent's.
    generation: u32,
    /// What the number was.
    kills: Option<u64>,
    /// How many of those have not been seen to end.
    left: u64,
    /// Until when they may.
    until: Instant,
}

static LOOKED: ForkMutex<Option<Looked>> = ForkMutex::new(None);

/// To be called before a child is started. Costs nothing but the first time, or if `anew`.
pub(crate) fn look(anew: bool) {
    let generation = thread::generation();
    let has_looked = |looked: &Option<Looked>| {
        looked.is_some_and(|looked: Looked| looked.generation == generation)
    };
    if !anew && has_looked(&LOOKED.lock()) {
        return;
    }
    // Not under the lock: it reads files.
    let kills = oom::kills();
    let mut looked = LOOKED.lock();
    match &mut *looked {
        Some(looked) if looked.generation == generation => {
            looked.blame(kills, Instant::now(), 0);
        }
        _ => {
            *looked = Some(Looked {
                generation,
                kills,
                left: 0,
                until: Instant::now(),
            });
        }
    }
}

/// So many children were killed by a signal that nobody has told us of: how many of them were
/// killed for lack of memory.
pub(crate) fn blame(killed: usize) -> usize {
    let kills = oom::kills();
    let mut looked = LOOKED.lock();
    match &mut *looked {
        Some(looked) if looked.generation == thread::generation() => {
            looked.blame(kills, Instant::now(), killed)
        }
        _ => 0,
    }
}

impl Looked {
    fn blame(&mut self, kills: Option<u64>, now: Instant, killed: usize) -> usize {
        if now > self.until {
            self.left = 0;
        }
        if let (Some(kills), Some(before)) = (kills, self.kills) {
            let new = kills.saturating_sub(before);
            if new > 0 {
                self.left += new;
                self.until = now + DYING;
            }
        }
        // Another thread may have looked later and been here before.
        self.kills = kills.map(|kills| kills.max(self.kills.unwrap_or(0)));
        let blamed = self.left.min(killed as u64);
        self.left -= blamed;
        blamed as usize
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{DYING, Looked};

    fn looked(kills: Option<u64>) -> (Looked, Instant) {
        let now = Instant::now();
        let looked = Looked {
            generation: 0,
            kills,
            left: 0,
            until: now,
        };
        (looked, now)
    }

    #[test]
    fn a_kill_without_an_event_is_somebody_elses() {
        let (mut looked, now) = looked(Some(7));
        assert_eq!(looked.blame(Some(7), now, 1), 0);
        assert_eq!(looked.blame(None, now, 3), 0);
        // It could not be read for a while: what came meanwhile is nobody's.
        assert_eq!(looked.blame(Some(9), now, 1), 0);
    }

    #[test]
    fn an_event_is_put_down_to_one_end() {
        let (mut looked, now) = looked(Some(0));
        assert_eq!(looked.blame(Some(1), now, 1), 1);
        assert_eq!(looked.blame(Some(1), now, 1), 0);
        assert_eq!(looked.blame(Some(3), now, 5), 2);
        // Told late of what was counted already.
        assert_eq!(looked.blame(Some(1), now, 1), 0);
        assert_eq!(looked.blame(Some(3), now, 1), 0);
    }

    #[test]
    fn who_dies_slowly_is_not_forgotten_and_an_old_event_is() {
        let (mut looked, now) = looked(Some(0));
        assert_eq!(looked.blame(Some(2), now, 1), 1);
        assert_eq!(looked.blame(Some(2), now + DYING / 2, 1), 1);
        assert_eq!(looked.blame(Some(3), now + DYING, 0), 0);
        assert_eq!(looked.blame(Some(3), now + 3 * DYING, 1), 0);
    }
}
