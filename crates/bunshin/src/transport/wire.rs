//! A socket that is read and written without waiting, as it is or under TLS.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Patience;
use crate::sys::network;
use crate::sys::socket::{self, Interest};

/// A connected stream socket, and what lies over it.
///
/// No call here waits, other than `wait` and `read_waiting`. Several threads may use it; that two of them do
/// not write into each other's messages is not seen to here.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    #[cfg(feature = "tls")]
    tls: Option<super::tls::Session>,
}

impl Wire {
    /// Bytes go as they are.
    pub(crate) fn plain(socket: OwnedFd) -> Self {
        Self {
            socket,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Bytes go under TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn secured(socket: OwnedFd, session: super::tls::Session) -> Self {
        Self {
            socket,
            tls: Some(session),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something lies over the socket, which belongs to this process alone.
    pub(crate) fn is_secured(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Gets ready to carry bytes; false if that needs more from the peer.
    pub(crate) fn shake_hands(&self) -> io::Result<bool> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.shake_hands(self.socket());
        }
        Ok(true)
    }

    /// Reads what there is; 0 at the end, `WouldBlock` if there is nothing now.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.read(self.socket(), bytes);
        }
        network::read(self.socket(), bytes, false)
    }

    /// Reads what there is, and waits for it if nothing lies over the socket.
    pub(crate) fn read_waiting(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_secured() {
            self.read(bytes)
        } else {
            network::read(self.socket(), bytes, true)
        }
    }

    /// Takes as much as there is room for, `WouldBlock` if there is none now.
    pub(crate) fn write(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.write(self.socket(), first, second);
        }
        network::write(self.socket(), first, second)
    }

    /// Passes on to the system what was taken; false if not all of it goes now.
    pub(crate) fn flush(&self) -> io::Result<bool> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.flush(self.socket());
        }
        Ok(true)
    }

    /// Ends the connection for all processes that have the socket.
    pub(crate) fn close(&self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            tls.say_goodbye(self.socket());
        }
        network::shut(self.socket());
    }

    /// Waits until the socket is ready; false if the time has passed.
    pub(crate) fn wait(&self, interest: Interest, patience: Patience) -> io::Result<bool> {
        let mut ready = Vec::new();
        let handles = [(self.socket(), interest)];
        Ok(socket::poll(&handles, patience.deadline(), &mut ready)? > 0)
    }
}

#[cfg(feature = "tls")]
impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(tls) = &self.tls {
            tls.say_goodbye(self.socket.as_fd());
        }
    }
}
