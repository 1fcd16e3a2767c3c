//! Making pipes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::duplex::Connection;
use super::receiver::Receiver;
use super::sender::Sender;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::Heap;
use crate::shm::layout::{Kind, PIPE_FIRST, PIPE_FIXED, PIPE_HEAP};
use crate::shm::ring::{End, Ring};
use crate::shm::segment::Segment;
use crate::sys::socket;
use crate::transport::channel::{Pair, Side};

/// A pipe's memory, as one of its two sides sees it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) segment: Arc<Segment>,
    pub(crate) heap: Arc<Heap>,
    /// 0 or 1: which side.
    pub(crate) side: u8,
}

impl Memory {
    fn create() -> Result<(Self, Self)> {
        let segment = Segment::create_first(Kind::Pipe, PIPE_FIXED, PIPE_FIRST)?;
        Ok((Self::of(&segment, 0), Self::of(&segment, 1)))
    }

    fn of(segment: &Arc<Segment>, side: u8) -> Self {
        Self {
            segment: Arc::clone(segment),
            heap: Heap::new(Arc::clone(segment), PIPE_HEAP, side.into()),
            side,
        }
    }

    /// Maps a pipe's memory that came in a message.
    pub(crate) fn attach(fd: OwnedFd, side: u8) -> Result<Self> {
        if side > 1 {
            return Err(Error::new(ErrorKind::Corrupt, "a pipe has two sides"));
        }
        Ok(Self::of(
            &Segment::attach_first(fd, Kind::Pipe, PIPE_FIXED, PIPE_FIRST)?,
            side,
        ))
    }

    /// The ring that this side sends on, or receives from.
    fn ring(&self, end: End) -> Ring {
        let number = match end {
            End::Sender => self.side,
            End::Receiver => 1 - self.side,
        };
        Ring::new(Arc::clone(&self.segment), number.into())
    }

    pub(crate) fn end(&self, end: End, socket: OwnedFd, pair: Option<Arc<Pair>>) -> Side {
        Side::new(self.ring(end), Arc::clone(&self.heap), socket, end, pair)
    }
}

/// Makes one channel of a pipe, from the side of `from` to that of `to`.
fn connect<T>(from: &Memory, to: &Memory) -> Result<(Sender<T>, Receiver<T>)> {
    let (send, receive) = socket::pair().map_err(|error| Error::os("make a pipe", error))?;
    let pair = Pair::new(&send, &receive);
    let sender = from.end(End::Sender, send, Some(Arc::clone(&pair)));
    let receiver = to.end(End::Receiver, receive, Some(pair));
    sender.ring.open(End::Sender);
    receiver.ring.open(End::Receiver);
    // The first message leaves a byte, too: where the receiver is given to several processes, it is
    // what they watch.
    receiver.ring.arm(End::Receiver);
    Ok((
        Sender::new(sender, from.clone()),
        Receiver::new(receiver, to.clone(), VecDeque::new()),
    ))
}

/// Makes a pipe with two ends that both send and receive values of one type.
///
/// Messages arrive in the order they were sent, also those sent before the other end is
/// given to a child. An end is moved to another process as an argument of
/// [`Process::start`](crate::Process::start) or inside a message; a closure run by
/// [`scope`](crate::scope) may simply capture it.
///
/// # Shape and units
/// 64 KiB of small messages fit in each direction; then `send` waits. Values that encode to
/// more than 8 KiB, and [`Buffer`](crate::Buffer)s, lie outside of that.
///
/// # Errors
/// `OutOfMemory`, or `Os` where the process has too many files open.
///
/// # Source
/// CPython's `multiprocessing.Pipe(duplex=True)`.
///
/// # Examples
/// ```
/// let (here, there) = bunshin::pipe::<String>()?;
/// here.send("some string".into())?;
/// assert_eq!(there.recv()?, "some string");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Pipe")]
pub fn pipe<T>() -> Result<(Connection<T>, Connection<T>)> {
    duplex()
}

/// Makes a pipe whose two directions carry different types.
///
/// The first end sends `A` and receives `B`; the second the other way round.
///
/// # Errors
/// As [`pipe`].
///
/// # Examples
/// ```
/// let (client, server) = bunshin::duplex::<u32, String>()?;
/// client.send(7)?;
/// server.send(format!("got {}", server.recv()?))?;
/// assert_eq!(client.recv()?, "got 7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn duplex<A, B>() -> Result<(Connection<A, B>, Connection<B, A>)> {
    let (one, two) = Memory::create()?;
    let (to_two, at_two) = connect(&one, &two)?;
    let (to_one, at_one) = connect(&two, &one)?;
    Ok((
        Connection::join(to_two, at_one),
        Connection::join(to_one, at_two),
    ))
}

/// Makes a one-way pipe.
///
/// # Errors
/// As [`pipe`].
///
/// # Source
/// CPython's `multiprocessing.Pipe(duplex=False)`; the shape is that of
/// [`std::sync::mpsc::channel`].
///
/// # Examples
/// ```
/// let (sender, receiver) = bunshin::channel::<i32>()?;
/// sender.send(42)?;
/// drop(sender);
/// assert_eq!(receiver.recv()?, 42);
/// assert!(receiver.recv().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Pipe")]
pub fn channel<T>() -> Result<(Sender<T>, Receiver<T>)> {
    let (one, two) = Memory::create()?;
    connect(&one, &two)
}
