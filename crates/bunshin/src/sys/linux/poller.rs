//! A set of descriptors to wait for, however many there are.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{Timespec, epoll};

/// Descriptors that one call takes out of the set at most.
const AT_ONCE: usize = 64;

/// Descriptors, each with a number of the caller's.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor: it is ready while there is something to read, or its peer is gone.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        Ok(epoll::add(&self.0, fd, data, flags)?)
    }

    /// Has a descriptor be ready while there is room to write, and not for what there is to
    /// read; or the other way round again.
    pub(crate) fn expect_room(
        &self,
        fd: BorrowedFd<'_>,
        number: u64,
        is_for_room: bool,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        let flags = if is_for_room {
            epoll::EventFlags::OUT
        } else {
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP
        };
        Ok(epoll::modify(&self.0, fd, data, flags)?)
    }

    /// Takes a descriptor out, before it is closed.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Appends the numbers of those that are ready; waits until the deadline for one.
    pub(crate) fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<u64>) -> io::Result<()> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        self.take(timeout, ready)
    }

    /// Appends the numbers of those that are ready now.
    pub(crate) fn look(&self, ready: &mut Vec<u64>) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.take(Some(zero), ready)
    }

    fn take(&self, timeout: Option<Timespec>, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); AT_ONCE];
        match epoll::wait(&self.0, &mut space, timeout.as_ref()) {
            Ok((events, _)) => ready.extend(events.iter().map(|event| event.data.u64())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
