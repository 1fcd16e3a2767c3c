//! Messages on a stream of bytes, each behind its length: the form that CPython's
//! `multiprocessing.connection` gives them. [PROTOCOL.md](self) has the bytes.
//!
//! Nothing here knows a socket: bytes come from a function that has some, or has none yet.

use std::io;

use crate::error::{Error, ErrorKind};
use crate::transport::channel::Failure;

/// Lengths up to this one take four bytes.
const SHORT_MAX: usize = 0x7fff_ffff;
/// Bytes of the longest header: the mark of a long one, then its length.
const HEADER_MAX: usize = 12;
const SHORT: usize = 4;
/// Memory that a length alone is worth. More comes only as the bytes do, so that a peer
/// which announces much and sends little costs little.
const TRUST: usize = 64 << 10;

/// The header of a message of that many bytes.
pub(crate) fn header(len: usize) -> Header {
    let mut bytes = [0; HEADER_MAX];
    if len > SHORT_MAX {
        bytes[..SHORT].copy_from_slice(&(-1i32).to_be_bytes());
        bytes[SHORT..].copy_from_slice(&(len as u64).to_be_bytes());
        Header(bytes, HEADER_MAX)
    } else {
        bytes[..SHORT].copy_from_slice(&(len as u32).to_be_bytes());
        Header(bytes, SHORT)
    }
}

/// See [`header`].
pub(crate) struct Header([u8; HEADER_MAX], usize);

impl Header {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Puts messages together from bytes that come in pieces.
///
/// It reads exactly to the end of a message and no further: what belongs to the next one
/// stays where it is, so that a socket is readable while a message waits in it.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: usize,
    header: [u8; HEADER_MAX],
    n_header: usize,
    /// The length of the message whose body is being read.
    len: Option<usize>,
    body: Vec<u8>,
    /// Bytes of the body that are there; beyond them it is zeros.
    n_body: usize,
    end: Option<End>,
}

/// Why nothing more can be read.
#[derive(Debug)]
enum End {
    /// The peer closed after a whole message.
    Closed,
    /// It was noticed in the middle of a message; not yet told.
    Cut(String),
    /// What came is not a message.
    Corrupt(String),
}

/// What [`Reader::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A whole message.
    Message,
    /// No message yet, and no more bytes now.
    NotYet,
    /// There will be no more messages.
    End,
}

impl Reader {
    /// Reads messages of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            header: [0; HEADER_MAX],
            n_header: 0,
            len: None,
            body: Vec::new(),
            n_body: 0,
            end: None,
        }
    }

    /// Goes on from what [`Reader::begun`] gave.
    pub(crate) fn resume(limit: usize, begun: &[u8]) -> Result<Self, Error> {
        let mut reader = Self::new(limit);
        let mut rest = begun;
        let found = reader.fill(&mut |bytes: &mut [u8]| {
            if rest.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(rest.len());
            bytes[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            Ok(count)
        })?;
        if rest.is_empty() && found != Found::End {
            Ok(reader)
        } else {
            Err(Error::new(
                ErrorKind::Corrupt,
                "a connection arrived with more than one message begun",
            ))
        }
    }

    /// The bytes of a message that has been begun, header included.
    pub(crate) fn begun(&self) -> Vec<u8> {
        let mut bytes = self.header[..self.n_header].to_vec();
        bytes.extend_from_slice(&self.body[..self.n_body]);
        bytes
    }

    /// Whether `take` would give a message or the end.
    pub(crate) fn is_there(&self) -> bool {
        self.end.is_some() || self.len == Some(self.n_body)
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Reads on until a message is whole, or there are no more bytes now.
    ///
    /// `source` gives bytes; 0 of them at the end; `WouldBlock` if there are none now.
    ///
    /// An error here leaves everything as it was; what is wrong with the bytes themselves
    /// is an end, which `take` tells.
    pub(crate) fn fill(
        &mut self,
        source: &mut impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Found, Error> {
        loop {
            if self.end.is_some() {
                return Ok(Found::End);
            }
            let Some(len) = self.len else {
                let wanted = self.header_len();
                if self.n_header < wanted {
                    match self.read_header(wanted, source) {
                        Some(found) => return Ok(found),
                        None => continue,
                    }
                }
                self.believe_header();
                continue;
            };
            if self.n_body == len {
                return Ok(Found::Message);
            }
            if self.n_body == self.body.len() {
                self.grow(len)?;
            }
            match source(&mut self.body[self.n_body..]) {
                Ok(count) if count > 0 => self.n_body += count,
                other => return Ok(self.stopped(other)),
            }
        }
    }

    fn header_len(&self) -> usize {
        if self.n_header >= SHORT && self.header[..SHORT] == (-1i32).to_be_bytes() {
            HEADER_MAX
        } else {
            SHORT
        }
    }

    fn read_header(
        &mut self,
        wanted: usize,
        source: &mut impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Option<Found> {
        match source(&mut self.header[self.n_header..wanted]) {
            Ok(count) if count > 0 => {
                self.n_header += count;
                None
            }
            other => Some(self.stopped(other)),
        }
    }

    /// Checks a whole header; memory follows later, and piece by piece.
    fn believe_header(&mut self) {
        let [a, b, c, d, long @ ..] = self.header;
        let short = i32::from_be_bytes([a, b, c, d]);
        let len = match u64::try_from(short) {
            Ok(len) => len,
            Err(_) if short == -1 => u64::from_be_bytes(long),
            Err(_) => {
                let why = format!("a length of {short} bytes was announced");
                self.end = Some(End::Corrupt(why));
                return;
            }
        };
        match usize::try_from(len) {
            Ok(len) if len <= self.limit => self.len = Some(len),
            _ => {
                let limit = self.limit;
                self.end = Some(End::Corrupt(format!(
                    "a message of {len} bytes was announced; the limit is {limit}"
                )));
            }
        }
    }

    fn grow(&mut self, len: usize) -> Result<(), Error> {
        let more = (len - self.n_body).min(self.n_body.max(TRUST));
        self.body.try_reserve_exact(more).map_err(|error| {
            let what = format!("receive a message of {len} bytes");
            Error::because(ErrorKind::OutOfMemory, what, error)
        })?;
        self.body.resize(self.n_body + more, 0);
        Ok(())
    }

    /// What it means that the source gave no bytes.
    fn stopped(&mut self, result: io::Result<usize>) -> Found {
        let why = match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Found::NotYet,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.end = Some(End::Corrupt(error.to_string()));
                return Found::End;
            }
            Ok(_) => "it has closed".to_owned(),
            Err(error) => error.to_string(),
        };
        self.end = Some(if self.n_header == 0 {
            End::Closed
        } else {
            let (got, of) = (self.n_body, self.len.map_or("?".into(), |l| l.to_string()));
            End::Cut(format!("{got} of its {of} bytes have come ({why})"))
        });
        Found::End
    }

    /// Takes what [`Reader::fill`] found.
    pub(crate) fn take(&mut self) -> Result<Vec<u8>, Failure> {
        match &self.end {
            Some(End::Closed) => return Err(Failure::Disconnected),
            Some(End::Cut(why)) => {
                let why = format!("the peer has ended in the middle of a message: {why}");
                self.end = Some(End::Closed);
                return Err(Failure::Other(Error::new(ErrorKind::Disconnected, why)));
            }
            Some(End::Corrupt(why)) => {
                let why = format!("what the peer sends is not a message: {why}");
                return Err(Failure::Other(Error::new(ErrorKind::Corrupt, why)));
            }
            None => {}
        }
        if self.len != Some(self.n_body) {
            return Err(Failure::NotYet);
        }
        self.len = None;
        self.n_header = 0;
        self.n_body = 0;
        Ok(std::mem::take(&mut self.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives these bytes in pieces of `step`, then `last`.
    fn pieces<'a>(
        bytes: &'a [u8],
        step: usize,
        last: io::ErrorKind,
    ) -> impl FnMut(&mut [u8]) -> io::Result<usize> + 'a {
        let mut rest = bytes;
        move |into| {
            if rest.is_empty() {
                return if last == io::ErrorKind::UnexpectedEof {
                    Ok(0)
                } else {
                    Err(last.into())
                };
            }
            let count = into.len().min(rest.len()).min(step);
            into[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            Ok(count)
        }
    }

    fn message(body: &[u8]) -> Vec<u8> {
        [header(body.len()).bytes(), body].concat()
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let long = vec![7; 200_000];
        let all = [message(b""), message(b"abc"), message(&long)].concat();
        for step in [1, 3, 5000, usize::MAX] {
            let mut source = pieces(&all, step, io::ErrorKind::UnexpectedEof);
            let mut reader = Reader::new(1 << 20);
            for expected in [&b""[..], b"abc", &long] {
                assert_eq!(reader.fill(&mut source).unwrap(), Found::Message);
                assert_eq!(reader.take().unwrap(), expected);
            }
            assert_eq!(reader.fill(&mut source).unwrap(), Found::End);
            assert!(matches!(reader.take(), Err(Failure::Disconnected)));
        }
    }

    #[test]
    fn a_long_header_is_read_as_a_short_one() {
        let mut bytes = (-1i32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&3u64.to_be_bytes());
        bytes.extend_from_slice(b"abc");
        let mut reader = Reader::new(10);
        let mut source = pieces(&bytes, 5, io::ErrorKind::WouldBlock);
        assert_eq!(reader.fill(&mut source).unwrap(), Found::Message);
        assert_eq!(reader.take().unwrap(), b"abc");
    }

    #[test]
    fn long_lengths_are_written_as_cpython_does() {
        assert_eq!(header(5).bytes(), [0, 0, 0, 5]);
        assert_eq!(header(0x7fff_ffff).bytes(), [0x7f, 0xff, 0xff, 0xff]);
        let long = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0];
        assert_eq!(header(0x8000_0000).bytes(), long);
    }

    #[test]
    fn too_much_and_nonsense_are_refused_for_good() {
        for bad in [vec![0, 0, 0, 11], vec![0x80, 0, 0, 0], vec![0xff; 12]] {
            let mut reader = Reader::new(10);
            let mut source = pieces(&bad, 4, io::ErrorKind::WouldBlock);
            for _ in 0..2 {
                assert_eq!(reader.fill(&mut source).unwrap(), Found::End);
                let Err(Failure::Other(error)) = reader.take() else {
                    panic!("{bad:?} was taken");
                };
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!(reader.body.capacity(), 0);
            }
        }
    }

    #[test]
    fn an_announcement_alone_takes_little_memory() {
        let mut bytes = header(1 << 30).bytes().to_vec();
        bytes.extend_from_slice(&[1; 1000]);
        let mut reader = Reader::new(1 << 30);
        let mut source = pieces(&bytes, 100, io::ErrorKind::WouldBlock);
        assert_eq!(reader.fill(&mut source).unwrap(), Found::NotYet);
        assert!(reader.body.capacity() <= TRUST);
    }

    #[test]
    fn a_message_cut_short_is_told_once() {
        let mut reader = Reader::new(10);
        let mut source = pieces(b"\0\0\0\x05ab", 4, io::ErrorKind::UnexpectedEof);
        assert_eq!(reader.fill(&mut source).unwrap(), Found::End);
        let Err(Failure::Other(error)) = reader.take() else {
            panic!("half a message was taken");
        };
        assert!(error.is_disconnected() && error.to_string().contains("2 of its 5"));
        assert!(matches!(reader.take(), Err(Failure::Disconnected)));
    }

    #[test]
    fn what_was_begun_goes_on_elsewhere() {
        let whole = message(&[3; 100]);
        for at in 0..=whole.len() {
            let mut first = Reader::new(100);
            let mut source = pieces(&whole[..at], 7, io::ErrorKind::WouldBlock);
            first.fill(&mut source).unwrap();
            let mut second = Reader::resume(100, &first.begun()).unwrap();
            let mut source = pieces(&whole[at..], 7, io::ErrorKind::WouldBlock);
            assert_eq!(second.fill(&mut source).unwrap(), Found::Message);
            assert_eq!(second.take().unwrap(), [3; 100]);
        }
        assert!(Reader::resume(100, &[whole.clone(), whole].concat()).is_err());
    }
}
