//! TLS over a socket that is never waited for.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::Connection;

use crate::sys::network;

/// Bytes that wait to be written, at most.
const BUFFERED: usize = 64 << 10;

/// One end of a TLS connection.
///
/// The lock is held for as long as bytes are moved, never while somebody waits: one thread
/// may send while another one receives.
#[derive(Debug)]
pub(crate) struct Session(Mutex<Connection>);

/// The socket as `rustls` wants it.
struct Socket<'a>(BorrowedFd<'a>);

impl io::Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        network::read(self.0, bytes, false)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        network::write(self.0, bytes, &[])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    pub(crate) fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(BUFFERED));
        Self(Mutex::new(connection))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shake_hands(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut tls = self.lock();
        loop {
            let all_out = write_out(&mut tls, fd)?;
            if !tls.is_handshaking() {
                return Ok(true);
            }
            if !all_out {
                return Ok(false);
            }
            match read_in(&mut tls, fd) {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn read(&self, fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
        let mut tls = self.lock();
        loop {
            match tls.reader().read(bytes) {
                // A peer that was killed says no goodbye; that messages are whole is known
                // from their lengths.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            read_in(&mut tls, fd)?;
        }
    }

    pub(crate) fn write(
        &self,
        fd: BorrowedFd<'_>,
        first: &[u8],
        second: &[u8],
    ) -> io::Result<usize> {
        let mut tls = self.lock();
        // What was taken before goes first, so that little is ever kept here.
        if !write_out(&mut tls, fd)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        let taken = tls.writer().write_vectored(&parts)?;
        write_out(&mut tls, fd)?;
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    pub(crate) fn flush(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        write_out(&mut self.lock(), fd)
    }

    /// Tells the peer that nothing more comes, if that takes no waiting.
    pub(crate) fn say_goodbye(&self, fd: BorrowedFd<'_>) {
        let mut tls = self.lock();
        tls.send_close_notify();
        let _ = write_out(&mut tls, fd);
    }
}

/// Writes what is ready to go; false if not all of it goes now.
fn write_out(tls: &mut Connection, fd: BorrowedFd<'_>) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(&mut Socket(fd)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Reads from the socket and takes apart what came; false at the end.
fn read_in(tls: &mut Connection, fd: BorrowedFd<'_>) -> io::Result<bool> {
    let count = tls.read_tls(&mut Socket(fd))?;
    if let Err(error) = tls.process_new_packets() {
        // The peer is told what was wrong with it, if that takes no waiting.
        let _ = write_out(tls, fd);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    // Answers to what came, such as new keys.
    write_out(tls, fd)?;
    Ok(count > 0)
}
