//! Sockets with addresses: listening, connecting, accepting, and reading and writing
//! without waiting.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};

/// Where a socket is, as the system knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file.
    Path(PathBuf),
    /// A name that belongs to the machine's network, not to its files.
    Abstract(Vec<u8>),
    /// A Unix socket that has no name, as that of most clients.
    Unnamed,
    /// An address and a port.
    Inet(SocketAddr),
}

/// After so long without a sign of life a peer on another machine is asked for one.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// So long after each question that it did not answer follows the next.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// After so many questions it is gone.
const KEEPALIVE_COUNT: u32 = 6;
/// What was sent and has not been received for so long, in milliseconds, is not going to be:
/// while something is on its way no such questions are asked.
const UNRECEIVED_MS: u32 = 120_000;

impl Place {
    fn encode(&self) -> io::Result<SocketAddrAny> {
        Ok(match self {
            Self::Path(path) => SocketAddrUnix::new(path.as_path())?.into(),
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?.into(),
            Self::Unnamed => SocketAddrUnix::new_unnamed().into(),
            Self::Inet(address) => (*address).into(),
        })
    }

    fn decode(address: &SocketAddrAny) -> io::Result<Self> {
        if address.address_family() != AddressFamily::UNIX {
            return Ok(Self::Inet(address.clone().try_into()?));
        }
        let unix = SocketAddrUnix::try_from(address.clone())?;
        Ok(if let Some(path) = unix.path_bytes() {
            Self::Path(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned())
        } else if let Some(name) = unix.abstract_name() {
            Self::Abstract(name.to_vec())
        } else {
            Self::Unnamed
        })
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        let family = match self {
            Self::Path(_) | Self::Abstract(_) | Self::Unnamed => AddressFamily::UNIX,
            Self::Inet(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Inet(SocketAddr::V6(_)) => AddressFamily::INET6,
        };
        // Nothing of one's own may wait inside of `connect` and `accept`.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(
            family,
            SocketType::STREAM,
            flags,
            None,
        )?)
    }
}

/// A socket that takes connections. It is never waited in: `accept` returns at once.
pub(crate) fn listen(place: &Place, backlog: u32) -> io::Result<OwnedFd> {
    let fd = place.socket()?;
    if matches!(place, Place::Inet(_)) {
        // A server that is started again need not wait for old connections to be forgotten.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    rustix::net::bind(&fd, &place.encode()?)?;
    rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(fd)
}

/// Takes a connection if one is waiting; says where it comes from.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, Place)>> {
    loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC) {
            Ok((fd, address)) => {
                let place = address.map_or(Ok(Place::Unnamed), |a| Place::decode(&a))?;
                prepare(fd.as_fd(), &place)?;
                return Ok(Some((fd, place)));
            }
            // One that was given up before it was taken is nobody's error.
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How far an attempt to connect has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connecting {
    /// It is connected.
    Done,
    /// It will be, or will fail, once the socket is writable.
    UntilWritable,
    /// The listener has no room for one more now; there is no sign of when it will.
    Crowded,
}

/// A socket that is to be connected to `place`.
pub(crate) fn caller(place: &Place) -> io::Result<OwnedFd> {
    let fd = place.socket()?;
    prepare(fd.as_fd(), place)?;
    Ok(fd)
}

/// Begins, or tries again, to connect.
pub(crate) fn connect(fd: BorrowedFd<'_>, place: &Place) -> io::Result<Connecting> {
    match rustix::net::connect(fd, &place.encode()?) {
        Ok(()) | Err(Errno::ISCONN) => Ok(Connecting::Done),
        Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => Ok(Connecting::UntilWritable),
        Err(Errno::AGAIN) => Ok(Connecting::Crowded),
        Err(error) => Err(error.into()),
    }
}

/// How an attempt to connect went that is over.
pub(crate) fn connected(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::socket_error(fd)??)
}

/// What every connection over a network gets: no delays, and notice of a dead machine.
pub(crate) fn prepare(fd: BorrowedFd<'_>, place: &Place) -> io::Result<()> {
    if matches!(place, Place::Inet(_)) {
        sockopt::set_tcp_nodelay(fd, true)?;
        sockopt::set_socket_keepalive(fd, true)?;
        sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(fd, KEEPALIVE_COUNT)?;
        sockopt::set_tcp_user_timeout(fd, UNRECEIVED_MS)?;
    }
    Ok(())
}

/// Where this end of a socket is.
pub(crate) fn local(fd: BorrowedFd<'_>) -> io::Result<Place> {
    Place::decode(&rustix::net::getsockname(fd)?)
}

/// Where the other end of a socket is.
pub(crate) fn peer(fd: BorrowedFd<'_>) -> io::Result<Place> {
    rustix::net::getpeername(fd)?.map_or(Ok(Place::Unnamed), |address| Place::decode(&address))
}

/// Reads what there is; 0 means that the peer has closed. `wait` says whether to wait for
/// something.
pub(crate) fn read(fd: BorrowedFd<'_>, bytes: &mut [u8], wait: bool) -> io::Result<usize> {
    let flags = if wait {
        RecvFlags::empty()
    } else {
        RecvFlags::DONTWAIT
    };
    loop {
        match rustix::net::recv(fd, &mut *bytes, flags) {
            Ok((count, _)) => return Ok(count),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes as much as there is room for, without waiting and without SIGPIPE.
pub(crate) fn write(fd: BorrowedFd<'_>, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        let sent = if second.is_empty() {
            rustix::net::send(fd, first, flags)
        } else {
            let parts = [IoSlice::new(first), IoSlice::new(second)];
            rustix::net::sendmsg(fd, &parts, &mut SendAncillaryBuffer::default(), flags)
        };
        match sent {
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a connection in both directions, for all processes that have the socket.
pub(crate) fn shut(fd: BorrowedFd<'_>) {
    // It fails only where there is no connection any more.
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// Bytes that nobody can foresee.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
