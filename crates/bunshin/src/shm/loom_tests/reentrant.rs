//! The lock that can be glanced past: no glance sees what its holder has not finished.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::super::reentrant::ReentrantLock;
use super::super::system;
use super::explore;

/// Even, but while the holder of the lock changes it.
#[derive(Default)]
struct Guarded {
    lock: ReentrantLock,
    data: AtomicU32,
}

impl Guarded {
    fn change(&self) {
        self.lock.enter(Some(None)).unwrap();
        for _ in 0..2 {
            self.lock.enter(None).unwrap();
            let now = self.data.load(Ordering::Relaxed);
            self.data.store(now + 1, Ordering::Relaxed);
            assert!(self.lock.leave());
        }
        assert!(self.lock.leave());
    }

    fn glance(&self) -> Option<u32> {
        self.lock.glance(|| self.data.load(Ordering::Relaxed))
    }
}

#[test]
fn loom_reentrant_glances_see_what_is_finished() {
    explore(3, || {
        let guarded = Arc::new(Guarded::default());
        let writer = {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || {
                system::run(1, None, || {
                    guarded.change();
                    guarded.change();
                });
            })
        };
        let mut last = 0;
        for _ in 0..2 {
            if let Some(seen) = guarded.glance() {
                assert_eq!(seen % 2, 0, "half changed");
                assert!(seen >= last, "older than what was seen before");
                last = seen;
            }
        }
        writer.join().unwrap();
        assert_eq!(guarded.glance(), Some(4));
    });
}

#[test]
fn loom_reentrant_nobody_glances_past_a_dead_holder() {
    explore(3, || {
        let guarded = Arc::new(Guarded::default());
        let dying = {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || {
                let done = system::run(1, None, || {
                    guarded.lock.enter(Some(None)).unwrap();
                    guarded.data.store(1, Ordering::Relaxed);
                    // Here it is killed.
                });
                assert!(done.is_some());
                guarded.lock.raw().thread_ended();
            })
        };
        assert!(matches!(guarded.glance(), None | Some(0)));
        dying.join().unwrap();
        assert_eq!(guarded.glance(), None);
    });
}
