//! Looking out for what a child is about to do, before one sleeps until it has been done.
//!
//! A child that does little has answered, and ended, sooner than its parent goes to sleep and is
//! roused again, twice. So the parent looks again and again for as long as that has been worth it
//! lately. In between it gives its processor away: the child may be waiting for that very one.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::sys::socket::{self, Interest};
use crate::sys::thread;
use crate::transport::Patience;

/// The longest and the shortest look, in ticks: somewhat more than a tenth of a millisecond, in
/// which a child can be copied and answer, and a few microseconds.
const LONGEST: u64 = 400_000;
const SHORTEST: u64 = 10_000;

/// How long it has been worth looking out for one kind of event, in this process.
pub(super) struct Lookout(AtomicU64);

impl Lookout {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(LONGEST))
    }

    /// Waits until one of the descriptors is ready; see [`socket::poll`].
    pub(super) fn poll(
        &self,
        fds: &[(BorrowedFd<'_>, Interest)],
        patience: Patience,
        ready: &mut Vec<bool>,
    ) -> std::io::Result<usize> {
        // With one processor, to sleep is what lets the child go on.
        if patience == Patience::Never || thread::recent_cpus() == 1 {
            return socket::poll(fds, patience.deadline(), ready);
        }
        let limit = self.0.load(Ordering::Relaxed);
        let start = thread::ticks();
        let took = || thread::ticks().wrapping_sub(start);
        let mut count = 0;
        while count == 0 && took() <= limit && !patience.is_over() {
            count = socket::poll(fds, Some(Instant::now()), ready)?;
            if count == 0 {
                thread::give_way();
            }
        }
        if count == 0 {
            count = socket::poll(fds, patience.deadline(), ready)?;
        }
        // Also what came in a sleep may have been worth the look, had it been longer.
        let next = if count != 0 && took() <= LONGEST {
            (limit * 2).min(LONGEST)
        } else {
            (limit / 2).max(SHORTEST)
        };
        self.0.store(next, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn limit(lookout: &Lookout) -> u64 {
        lookout.0.load(Ordering::Relaxed)
    }

    #[test]
    fn looks_shorter_while_nothing_comes_and_longer_again() {
        let (here, there) = socket::pair().unwrap();
        let (watched, mut ready) = ([(here.as_fd(), Interest::Readable)], Vec::new());
        let lookout = Lookout::new();
        for _ in 0..10 {
            let soon = Patience::within(Duration::from_millis(2));
            assert_eq!(lookout.poll(&watched, soon, &mut ready).unwrap(), 0);
        }
        if thread::cpus() > 1 {
            assert_eq!(limit(&lookout), SHORTEST);
        }
        socket::send(there.as_fd(), b"x", &[], true).unwrap();
        for _ in 0..10 {
            let count = lookout.poll(&watched, Patience::Forever, &mut ready);
            assert_eq!((count.unwrap(), &ready[..]), (1, &[true][..]));
        }
        assert_eq!(limit(&lookout), LONGEST);
        assert_eq!(
            lookout.poll(&watched, Patience::Never, &mut ready).unwrap(),
            1
        );
    }

    #[test]
    fn sleeps_for_what_comes_late() {
        let (here, there) = socket::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                drop(there);
            });
            let mut ready = Vec::new();
            let watched = [(here.as_fd(), Interest::Readable)];
            let count = Lookout::new().poll(&watched, Patience::Forever, &mut ready);
            assert_eq!((count.unwrap(), &ready[..]), (1, &[true][..]));
        });
    }
}
