//! A connection over a socket: messages behind their lengths, sent and received by several
//! threads, with and without time limits.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::Patience;
use super::channel::Failure;
use super::prefixed::{Found, Reader, header};
use super::turn::Turn;
use super::wire::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::{self, Interest};

/// A connection that carries messages without looking at them.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Wire,
    limit: usize,
    reader: Turn<Reader>,
    writer: Turn<Unsent>,
    watched: OnceLock<Watched>,
}

/// What is left to write of a message that has been accepted.
///
/// A message of which one byte has gone must go wholly, or the next one could not be found.
/// So one that runs out of time after that is kept here, and goes before the next.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    bytes: Vec<u8>,
    from: usize,
}

/// A handle that is readable while there may be a message.
#[derive(Debug)]
struct Watched {
    /// Readable while bytes lie in this process that the socket does not show any more.
    taken: OwnedFd,
    /// Readable while `taken` or the socket is.
    any: OwnedFd,
}

impl Unsent {
    /// Writes what goes; false if not all of it does now.
    fn flush(&mut self, wire: &Wire) -> io::Result<bool> {
        while self.from < self.bytes.len() {
            match wire.write(&self.bytes[self.from..], &[]) {
                Ok(count) => self.from += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        *self = Self::default();
        wire.flush()
    }

    /// Keeps the parts from `sent` on.
    fn keep(&mut self, first: &[u8], second: &[u8], sent: usize) {
        let (first, second) = split(first, second, sent);
        self.bytes.extend_from_slice(first);
        self.bytes.extend_from_slice(second);
    }
}

/// What is left of two parts in a row once `sent` bytes of them have gone.
fn split<'a>(first: &'a [u8], second: &'a [u8], sent: usize) -> (&'a [u8], &'a [u8]) {
    match first.get(sent..) {
        Some(rest) if !rest.is_empty() => (rest, second),
        _ => (&second[sent - first.len()..], &[]),
    }
}

impl Link {
    pub(crate) fn new(wire: Wire, limit: usize) -> Self {
        Self::resume(wire, limit, Reader::new(limit), Vec::new())
    }

    /// A connection that had begun in another process.
    pub(crate) fn resume(wire: Wire, limit: usize, reader: Reader, unsent: Vec<u8>) -> Self {
        Self {
            wire,
            limit,
            reader: Turn::new(reader),
            writer: Turn::new(Unsent {
                bytes: unsent,
                from: 0,
            }),
            watched: OnceLock::new(),
        }
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The longest message, in both directions.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        if let Some(reader) = self.reader.get_mut() {
            reader.set_limit(limit);
        }
    }

    /// Sends a message. One that fails with `NotYet` has not gone, and no part of it has.
    pub(crate) fn send(&self, body: &[u8], patience: Patience) -> Result<(), Failure> {
        if body.len() > self.limit {
            let (len, limit) = (body.len(), self.limit);
            return Err(Failure::Other(Error::new(
                ErrorKind::InvalidInput,
                format!("send a message of {len} bytes: the limit is {limit}"),
            )));
        }
        let mut unsent = self.writer.take(patience).ok_or(Failure::NotYet)?;
        while !unsent.flush(&self.wire).map_err(send_failed)? {
            if !self.wait_for_room(patience)? {
                return Err(Failure::NotYet);
            }
        }
        let head = header(body.len());
        let total = head.bytes().len() + body.len();
        let mut sent = 0;
        while sent < total {
            let (first, second) = split(head.bytes(), body, sent);
            match self.wire.write(first, second) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait_for_room(patience)? {
                        continue;
                    }
                    if sent == 0 {
                        return Err(Failure::NotYet);
                    }
                    unsent.keep(head.bytes(), body, sent);
                    return Ok(());
                }
                Err(error) => return Err(send_failed(error)),
            }
        }
        while !self.wire.flush().map_err(send_failed)? {
            if !self.wait_for_room(patience)? {
                // It is on its way; the next call passes it on.
                break;
            }
        }
        Ok(())
    }

    /// Sends a message as far as it goes now, and keeps the rest.
    pub(crate) fn post(&self, body: &[u8]) -> Result<(), Failure> {
        let mut unsent = self.writer.take(Patience::Forever).ok_or(Failure::NotYet)?;
        unsent.keep(header(body.len()).bytes(), body, 0);
        unsent.flush(&self.wire).map_err(send_failed)?;
        Ok(())
    }

    /// Passes on what earlier calls have kept; false if not all of it goes in time.
    pub(crate) fn flush(&self, patience: Patience) -> Result<bool, Failure> {
        let Some(mut unsent) = self.writer.take(patience) else {
            return Ok(false);
        };
        while !unsent.flush(&self.wire).map_err(send_failed)? {
            if !self.wait_for_room(patience)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends the connection for all processes that have it.
    pub(crate) fn close(&self) {
        // What was kept goes if it can go now.
        let _ = self.flush(Patience::Never);
        self.wire.close();
    }

    fn wait_for_room(&self, patience: Patience) -> Result<bool, Failure> {
        self.wire
            .wait(Interest::Writable, patience)
            .map_err(|error| Failure::Other(Error::os("wait for a connection", error)))
    }

    /// What to wait for when there is nothing to receive: also for room, if there is
    /// something that was kept and nobody else sees to it.
    pub(crate) fn interest(&self) -> Interest {
        let Some(mut unsent) = self.writer.take(Patience::Never) else {
            return Interest::Readable;
        };
        match unsent.flush(&self.wire) {
            Ok(false) => Interest::Any,
            // What cannot be written is noticed by reading, or by the next send.
            Ok(true) | Err(_) => Interest::Readable,
        }
    }

    /// Receives a message. What has come of one that is not whole yet is kept.
    pub(crate) fn receive(&self, patience: Patience) -> Result<Vec<u8>, Failure> {
        let mut reader = self.reader.take(patience).ok_or(Failure::NotYet)?;
        let result = match self.find(&mut reader, patience) {
            Ok(true) => reader.take(),
            Ok(false) => Err(Failure::NotYet),
            Err(error) => Err(Failure::Other(error)),
        };
        self.show(&mut reader);
        result
    }

    /// Waits until there is a message or the end; takes nothing.
    pub(crate) fn poll(&self, patience: Patience) -> Result<bool> {
        let Some(mut reader) = self.reader.take(patience) else {
            return Ok(false);
        };
        let found = self.find(&mut reader, patience);
        self.show(&mut reader);
        found
    }

    fn find(&self, reader: &mut Reader, patience: Patience) -> Result<bool> {
        // What was kept goes with this call, as far as it goes now.
        let interest = self.interest();
        // Half of the system calls of what follows, where there is nothing else to see to.
        if patience == Patience::Forever
            && interest == Interest::Readable
            && reader.fill(&mut |bytes| self.wire.read_waiting(bytes))? != Found::NotYet
        {
            return Ok(true);
        }
        loop {
            if reader.fill(&mut |bytes| self.wire.read(bytes))? != Found::NotYet {
                return Ok(true);
            }
            if patience == Patience::Never {
                return Ok(false);
            }
            let waited = self.wire.wait(self.interest(), patience);
            if !waited.map_err(|error| Error::os("wait for a connection", error))? {
                return Ok(false);
            }
        }
    }

    /// A handle that is readable while there may be a message, or the end.
    pub(crate) fn fileno(&self) -> Result<BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        if self.watched.get().is_none() {
            let failed = |error| Error::os("make a descriptor to watch a connection", error);
            let taken = socket::event().map_err(failed)?;
            let any = socket::any_of(&[self.wire.socket(), taken.as_fd()]).map_err(failed)?;
            // Another thread may have been faster; its handle is as good.
            let _ = self.watched.set(Watched { taken, any });
            if let Some(mut reader) = self.reader.take(Patience::Never) {
                self.show(&mut reader);
            }
        }
        match self.watched.get() {
            Some(watched) => Ok(watched.any.as_fd()),
            None => Ok(self.wire.socket()),
        }
    }

    /// Has the watched handle say what lies in this process.
    fn show(&self, reader: &mut Reader) {
        use std::os::fd::AsFd as _;
        let Some(watched) = self.watched.get() else {
            return;
        };
        // A TLS session reads more from the socket than it gives: what it still has must
        // be looked at here, as the socket does not show it.
        let is_there = if self.wire.is_secured() {
            !matches!(
                reader.fill(&mut |bytes| self.wire.read(bytes)),
                Ok(Found::NotYet)
            )
        } else {
            reader.is_there()
        };
        if is_there {
            socket::event_set(watched.taken.as_fd());
        } else {
            socket::event_clear(watched.taken.as_fd());
        }
    }

    /// What another process needs to go on: the begun message, and what was not sent.
    pub(crate) fn state(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let busy = || {
            Error::new(
                ErrorKind::Busy,
                "another thread is using the connection that is to be sent",
            )
        };
        let reader = self.reader.take(Patience::Never).ok_or_else(busy)?;
        let unsent = self.writer.take(Patience::Never).ok_or_else(busy)?;
        Ok((reader.begun(), unsent.bytes[unsent.from..].to_vec()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What was kept has one more chance; nobody could be told of more.
        if let Some(unsent) = self.writer.get_mut() {
            let _ = unsent.flush(&self.wire);
        }
    }
}

fn send_failed(error: io::Error) -> Failure {
    // A machine that is gone answers no more than a process that is.
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => Failure::Disconnected,
        _ => Failure::from(Error::os("send to a connection", error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair(limit: usize) -> (Link, Link) {
        let (one, two) = socket::pair().unwrap();
        (
            Link::new(Wire::plain(one), limit),
            Link::new(Wire::plain(two), limit),
        )
    }

    #[test]
    fn a_message_of_which_a_part_has_gone_goes_wholly() {
        let (here, there) = pair(64 << 20);
        let long = vec![5; 8 << 20];
        here.send(&long, Patience::Never).unwrap();
        assert!(matches!(
            here.send(b"next", Patience::Never),
            Err(Failure::NotYet)
        ));
        assert!(matches!(
            there.receive(Patience::Never),
            Err(Failure::NotYet)
        ));
        // Receiving passes on what was kept.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(there.receive(Patience::Forever).unwrap(), long);
                there.send(b"thanks", Patience::Forever).unwrap();
            });
            assert_eq!(here.receive(Patience::Forever).unwrap(), b"thanks");
        });
        here.send(b"next", Patience::Never).unwrap();
        assert_eq!(there.receive(Patience::Never).unwrap(), b"next");
    }

    #[test]
    fn a_receive_that_timed_out_has_lost_nothing() {
        let (here, there) = pair(100);
        let bytes = [header(50).bytes(), &[9; 50]].concat();
        for byte in &bytes {
            let soon = Patience::within(Duration::from_micros(10));
            assert!(matches!(there.receive(soon), Err(Failure::NotYet)));
            assert_eq!(here.wire.write(&[*byte], &[]).unwrap(), 1);
        }
        assert!(there.poll(Patience::Never).unwrap());
        assert_eq!(there.receive(Patience::Never).unwrap(), [9; 50]);
    }

    #[test]
    fn a_message_beyond_the_limit_stays() {
        let (here, there) = pair(10);
        let Err(Failure::Other(error)) = here.send(&[0; 11], Patience::Forever) else {
            panic!("it was sent");
        };
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        here.send(&[0; 10], Patience::Forever).unwrap();
        assert_eq!(there.receive(Patience::Forever).unwrap().len(), 10);
    }
}
