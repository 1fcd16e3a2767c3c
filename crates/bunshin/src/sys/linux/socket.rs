//! Connected pairs of Unix sockets that carry bytes and handles, and `poll`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::interrupt;

/// Handles sent with one system call; the kernel takes 253.
pub(crate) const HANDLES_AT_ONCE: usize = 200;

/// A connected pair; both ends send and receive, and close on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A connected pair that keeps the bounds of what is sent at once.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A second handle to the same open object, closed on exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// Sends bytes, the handles with the first of them. Never raises SIGPIPE.
///
/// Returns how many bytes went out; `wait` says whether to wait for room.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    handles: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    if !wait {
        flags |= SendFlags::DONTWAIT;
    }
    if handles.is_empty() {
        return retry(|| rustix::net::send(fd, bytes, flags));
    }
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_AT_ONCE))];
    retry(|| {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(handles)) {
            return Err(rustix::io::Errno::TOOBIG);
        }
        rustix::net::sendmsg(fd, &[IoSlice::new(bytes)], &mut ancillary, flags)
    })
}

/// Receives bytes, and appends the handles that came with them.
///
/// Returns how many bytes came; 0 means that the peer has closed.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<usize> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    receive_with(fd, bytes, handles, flags)
}

/// As [`receive`] without waiting, and leaves what it has received for the next call, with
/// copies of the handles.
pub(crate) fn peek(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::PEEK;
    receive_with(fd, bytes, handles, flags)
}

/// Looks at the bytes that come next, and leaves them and the handles that come with them.
pub(crate) fn glance(fd: BorrowedFd<'_>, bytes: &mut [u8], wait: bool) -> io::Result<usize> {
    let mut flags = RecvFlags::PEEK;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    loop {
        match rustix::net::recv(fd, &mut *bytes, flags) {
            Ok((_, count)) => return Ok(count),
            Err(rustix::io::Errno::INTR) if !wait || !interrupt::is_wanted() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_with(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match rustix::net::recvmsg(fd, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR)
                if flags.contains(RecvFlags::DONTWAIT) || !interrupt::is_wanted() => {}
            Err(error) => return Err(error.into()),
        }
    };
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            handles.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "handles were lost on the way: this process has too many open (see `ulimit -n`)",
        ));
    }
    Ok(message.bytes)
}

/// Whether the other end is closed, in all processes that had it.
pub(crate) fn is_closed(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut fds, Some(&zero)) {
        Ok(0) | Err(_) => false,
        Ok(_) => fds[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR),
    }
}

/// What [`poll`] is to wait for on a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read, or the peer gone.
    Readable,
    /// Room to write, something to read, or the peer gone.
    Any,
    /// Room to write, or the peer gone.
    Writable,
}

/// Waits until a handle is ready or the deadline has passed; says which are ready.
///
/// Waits for ever without a deadline. A signal does not end the wait, unless the program has
/// asked for that ([`interrupt`]).
pub(crate) fn poll(
    fds: &[(BorrowedFd<'_>, Interest)],
    deadline: Option<Instant>,
    ready: &mut Vec<bool>,
) -> io::Result<usize> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, interest)| {
            let flags = match interest {
                Interest::Readable => PollFlags::IN,
                Interest::Any => PollFlags::IN | PollFlags::OUT,
                Interest::Writable => PollFlags::OUT,
            };
            PollFd::from_borrowed_fd(*fd, flags)
        })
        .collect();
    loop {
        let timeout =
            deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(count) => {
                ready.clear();
                ready.extend(polled.iter().map(|fd| !fd.revents().is_empty()));
                return Ok(count);
            }
            Err(rustix::io::Errno::INTR) if !interrupt::is_wanted() => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// A counter that is readable while it is not zero.
pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(
        0,
        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
    )?)
}

/// Makes an [`event`] readable.
pub(crate) fn event_set(fd: BorrowedFd<'_>) {
    // It can only fail when the counter is full, and then it is readable.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Makes an [`event`] unreadable.
pub(crate) fn event_clear(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    let _ = rustix::io::read(fd, &mut count);
}

/// One handle that is readable while any of `fds` is.
pub(crate) fn any_of(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let fds: Vec<_> = fds.iter().map(|fd| (*fd, Interest::Readable)).collect();
    any_ready(&fds)
}

/// One handle that is readable while any of `fds` is ready.
pub(crate) fn any_ready(fds: &[(BorrowedFd<'_>, Interest)]) -> io::Result<OwnedFd> {
    use rustix::event::epoll::{self, EventFlags};
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (fd, interest) in fds {
        let flags = match interest {
            Interest::Readable => EventFlags::IN | EventFlags::RDHUP,
            Interest::Any => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
            Interest::Writable => EventFlags::OUT,
        };
        epoll::add(&set, fd, epoll::EventData::new_u64(0), flags)?;
    }
    Ok(set)
}

/// A handle that becomes readable at that moment, and stays so.
#[cfg(feature = "tokio")]
pub(crate) fn timer(at: Instant) -> io::Result<OwnedFd> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
    // No time at all would mean never.
    let left = at.saturating_duration_since(Instant::now());
    let value = Itimerspec {
        it_interval: timespec(Duration::ZERO),
        it_value: timespec(left.max(Duration::from_nanos(1))),
    };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
    Ok(timer)
}

/// Whether `fd` is a connected stream socket.
pub(crate) fn is_stream(fd: &impl AsFd) -> bool {
    rustix::net::sockopt::socket_type(fd).is_ok_and(|kind| kind == SocketType::STREAM)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Ok(value) => return Ok(value),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}
