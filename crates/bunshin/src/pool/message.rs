//! Tasks and results in the slots of the table, and the packets beside it.
//!
//! A body is the descriptors of the blocks beside it, then the encoded value. If that does
//! not fit a slot, it lies in a block, and the slot holds that block's descriptor.
//!
//! Packets over a worker's socket: one byte that says which, then a ticket in four bytes
//! where there is one, then the rest.
//!
//! | Byte | From, to | Means | Handles |
//! |---|---|---|---|
//! | `BELL` | both | look at the table | |
//! | `READY` | worker, parent | the initializer has returned | |
//! | `FAILED` | worker, parent | the initializer has failed; the rest says how | |
//! | `WANT` | worker, parent | the ticket's task comes with handles: send them | |
//! | `HANDLES` | both | handles of the ticket's task, or result | 1 to 200 |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::codec::attachments::{Beside, Incoming, Outgoing};
use crate::codec::outcome::Input;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::{Block, Descriptor, Heap};
use crate::shm::table::{BODY, Parcel, Table};
use crate::sys::socket;

pub(crate) const BELL: u8 = b'b';
pub(crate) const READY: u8 = b'r';
pub(crate) const FAILED: u8 = b'f';
pub(crate) const WANT: u8 = b'w';
pub(crate) const HANDLES: u8 = b'h';

/// The whole body lies in a block.
const IN_BLOCK: u16 = 1;
/// The whole body lies in memory behind the last handle.
const IN_HANDLE: u16 = 2;
/// The result is a failure.
const IS_FAILURE: u16 = 4;

/// The longest packet.
pub(crate) const PACKET: usize = 4096;

/// Writes a task or a result into a slot. The handles stay in `outgoing`.
///
/// On an error nothing of it counts.
pub(crate) fn write(
    table: &Table,
    slot: u32,
    parcel: Parcel,
    bytes: &[u8],
    is_failure: bool,
    outgoing: &mut Outgoing,
) -> Result<()> {
    let named = outgoing.blocks.len() * Descriptor::SIZE;
    let mut flags = if is_failure { IS_FAILURE } else { 0 };
    let mut blocks = outgoing.blocks.len() as u32;
    let len = if named + bytes.len() <= BODY {
        let mut at = 0;
        for descriptor in &outgoing.blocks {
            table.put(slot, at, &descriptor.to_bytes());
            at += Descriptor::SIZE;
        }
        table.put(slot, at, bytes);
        at + bytes.len()
    } else {
        let mut body: Vec<u8> = Vec::with_capacity(named + bytes.len());
        body.extend(
            outgoing
                .blocks
                .iter()
                .flat_map(|descriptor| descriptor.to_bytes()),
        );
        body.extend_from_slice(bytes);
        let beside = outgoing.place(&body)?;
        blocks = (named / Descriptor::SIZE) as u32;
        match beside {
            Beside::Block(index) => {
                flags |= IN_BLOCK;
                table.put(slot, 0, &outgoing.blocks[index as usize].to_bytes());
            }
            Beside::Handle(_, len) => {
                flags |= IN_HANDLE;
                table.put(
                    slot,
                    0,
                    &Descriptor {
                        index: 0,
                        times: 0,
                        len,
                    }
                    .to_bytes(),
                );
            }
        }
        Descriptor::SIZE
    };
    let handles = u16::try_from(outgoing.handles.len()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            "a task or result holds more handles than can be sent",
        )
    })?;
    table.set_parcel(
        slot,
        Parcel {
            len: len as u32,
            blocks,
            handles,
            flags,
            ..parcel
        },
    );
    Ok(())
}

/// A task or result that has been read from a slot.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) input: Input,
    pub(crate) incoming: Incoming,
    pub(crate) is_failure: bool,
}

/// Reads a task or a result. `handles` are those that came with it; `spare` is memory that
/// the bytes may lie in.
pub(crate) fn read(
    table: &Table,
    heap: &Arc<Heap>,
    slot: u32,
    parcel: Parcel,
    handles: Vec<OwnedFd>,
    mut spare: Vec<u8>,
) -> Result<Arrived> {
    let corrupt = |why: &str| {
        Error::new(
            ErrorKind::Corrupt,
            format!("a slot of a pool is corrupt: {why}"),
        )
    };
    let len = parcel.len as usize;
    let named = parcel.blocks as usize * Descriptor::SIZE;
    if len > BODY || parcel.handles as usize != handles.len() {
        return Err(corrupt("it holds less than it says"));
    }
    spare.resize(len, 0);
    table.get(slot, 0, &mut spare);
    let mut incoming = Incoming::new(handles, Vec::new());
    let is_failure = parcel.flags & IS_FAILURE != 0;
    let input = match parcel.flags & (IN_BLOCK | IN_HANDLE) {
        0 => Input::Bytes(spare, 0),
        place => {
            let whole = spare
                .first_chunk()
                .map(Descriptor::from_bytes)
                .ok_or_else(|| corrupt("it names no block"))?;
            let block = if place == IN_BLOCK {
                heap.claim(whole)?
            } else {
                let last = u32::from(parcel.handles).wrapping_sub(1);
                incoming.take(Beside::Handle(last, whole.len))?
            };
            Input::Block(block, 0)
        }
    };
    let (blocks, failed) = claim_all(
        heap,
        input
            .as_bytes()
            .get(..named)
            .ok_or_else(|| corrupt("it is too short"))?,
    );
    if let Some(error) = failed {
        return Err(error);
    }
    Ok(Arrived {
        input: input.skip(named),
        incoming: incoming.with_blocks(blocks),
        is_failure,
    })
}

/// Claims each block that is named, also after one of them has failed.
fn claim_all(heap: &Arc<Heap>, named: &[u8]) -> (Vec<Block>, Option<Error>) {
    let mut failed = None;
    let blocks = named
        .chunks_exact(Descriptor::SIZE)
        .filter_map(|bytes| Some(Descriptor::from_bytes(bytes.first_chunk()?)))
        .filter_map(|descriptor| {
            heap.claim(descriptor)
                .map_err(|error| failed = Some(error))
                .ok()
        })
        .collect();
    (blocks, failed)
}

/// Sends a packet.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    byte: u8,
    ticket: u32,
    rest: &[u8],
    handles: &[BorrowedFd<'_>],
    wait: bool,
) -> std::io::Result<()> {
    let mut packet = [0; PACKET];
    packet[0] = byte;
    packet[1..5].copy_from_slice(&ticket.to_le_bytes());
    let rest = &rest[..rest.len().min(PACKET - 5)];
    packet[5..5 + rest.len()].copy_from_slice(rest);
    socket::send(fd, &packet[..5 + rest.len()], handles, wait).map(|_| ())
}

/// Sends handles of a task or result, as many packets as it takes.
pub(crate) fn send_handles(
    fd: BorrowedFd<'_>,
    ticket: u32,
    handles: &[OwnedFd],
) -> std::io::Result<()> {
    let handles: Vec<BorrowedFd<'_>> = handles.iter().map(AsFd::as_fd).collect();
    handles
        .chunks(socket::HANDLES_AT_ONCE)
        .try_for_each(|lot| send(fd, HANDLES, ticket, &[], lot, true))
}

/// A packet that has come.
pub(crate) struct Packet {
    pub(crate) byte: u8,
    pub(crate) ticket: u32,
    pub(crate) rest: Vec<u8>,
    pub(crate) handles: Vec<OwnedFd>,
}

/// Receives a packet; `None` if the other side is gone, or there is none and none is waited for.
pub(crate) fn receive(fd: BorrowedFd<'_>, wait: bool) -> std::io::Result<Option<Packet>> {
    let mut bytes = [0; PACKET];
    let mut handles = Vec::new();
    let len = match socket::receive(fd, &mut bytes, &mut handles, wait) {
        Ok(len) if len >= 5 => len,
        Ok(_) => return Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let ticket = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    Ok(Some(Packet {
        byte: bytes[0],
        ticket,
        rest: bytes[5..len].to_vec(),
        handles,
    }))
}
