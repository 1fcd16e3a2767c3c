//! What travels beside a message's bytes: handles of the system, and shared blocks.
//!
//! Inside the bytes they are named by index. `serde` has no way to hand a context to
//! nested values, so that the message being encoded or decoded is found through a
//! thread-local; it is put there for the one call, belongs to the message, and is
//! taken back whether the call returns, fails or panics.

use std::any::Any;
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap::{Block, Descriptor, Heap};
use crate::sys::{memory, socket};

/// Buffers shorter than this stay inside the bytes.
pub(crate) const BESIDE_FROM: usize = 4 << 10;

/// What goes out beside a message.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    heap: Option<Arc<Heap>>,
    /// Buffers shorter than this stay inside the bytes; 0 for [`BESIDE_FROM`].
    beside_from: usize,
    pub(crate) handles: Vec<OwnedFd>,
    pub(crate) blocks: Vec<Descriptor>,
    /// Why the encoding failed, where `serde` can only say that it did.
    failed: Option<Error>,
    /// Buffers stay inside the bytes: whoever keeps those cannot keep a peer's blocks.
    is_plain: bool,
    /// It leaves the machine: handles cannot.
    is_far: bool,
    /// Handles before this one belong to other parts of the message.
    part: usize,
    /// Handles of this part that several values share, by what they lead to.
    common: Vec<(u64, u32, u64)>,
    /// Whose objects are named by number in this message: a server's, or nobody's.
    home: u64,
    /// Those objects, of this part.
    pub(crate) named: Vec<u64>,
}

/// What came beside a message.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Others get the same handles.
    is_common: bool,
    handles: Vec<Option<OwnedFd>>,
    blocks: Vec<Option<Block>>,
    /// Objects that the message names by number, whatever they are to who decodes it.
    named: Vec<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    static OUTGOING: RefCell<Vec<Outgoing>> = const { RefCell::new(Vec::new()) };
    static INCOMING: RefCell<Vec<Incoming>> = const { RefCell::new(Vec::new()) };
}

/// How a piece of memory is named inside the bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Beside {
    /// A block of the heap that both sides know.
    #[serde(rename = "b")]
    Block(u32),
    /// Memory behind a handle, of so many bytes.
    #[serde(rename = "h")]
    Handle(u32, u64),
}

impl Outgoing {
    /// For messages whose reader shares `heap`, if any.
    pub(crate) fn new(heap: Option<Arc<Heap>>) -> Self {
        let mut outgoing = Self::default();
        outgoing.heap = heap;
        outgoing
    }

    /// For a message of several parts, each kept by itself by the server `home`.
    pub(crate) fn to_server(heap: Option<Arc<Heap>>, home: u64) -> Self {
        let mut outgoing = Self::new(heap);
        outgoing.is_plain = true;
        outgoing.home = home;
        outgoing
    }

    /// For a message that the server `home` reads at once.
    pub(crate) fn near_server(heap: Option<Arc<Heap>>, home: u64) -> Self {
        let mut outgoing = Self::new(heap);
        outgoing.home = home;
        outgoing
    }

    /// For a message that the server `home` reads on another machine, or may: bytes alone.
    pub(crate) fn over_network(home: u64) -> Self {
        let mut outgoing = Self::to_server(None, home);
        outgoing.is_far = true;
        outgoing
    }

    /// Begins another part: handles and objects are counted from 0 again.
    pub(crate) fn begin_part(&mut self) {
        self.part = self.handles.len();
        self.common.clear();
        self.named.clear();
    }

    /// For messages whose reader is not known yet: few handles, and blocks of no heap.
    pub(crate) fn for_anyone(beside_from: usize) -> Self {
        let mut outgoing = Self::default();
        outgoing.beside_from = beside_from;
        outgoing
    }

    /// Whether a buffer of that length stays inside the bytes of the message that is being
    /// encoded.
    pub(crate) fn keeps_inside(len: usize) -> bool {
        OUTGOING.with_borrow(|stack| {
            stack.last().is_none_or(|outgoing| {
                outgoing.is_plain || len < outgoing.beside_from.max(BESIDE_FROM)
            })
        })
    }

    /// Runs `encode`, whose handles and blocks are added here.
    pub(crate) fn collect<R>(&mut self, encode: impl FnOnce() -> Result<R>) -> Result<R> {
        struct Back<'a>(&'a mut Outgoing);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if let Some(outgoing) = OUTGOING.with_borrow_mut(Vec::pop) {
                    *self.0 = outgoing;
                }
            }
        }
        let taken = std::mem::take(self);
        OUTGOING.with_borrow_mut(|stack| stack.push(taken));
        let back = Back(self);
        let result = encode();
        drop(back);
        match self.failed.take() {
            Some(error) => Err(error),
            None => result,
        }
    }

    /// Runs `encode`, during which nothing can be attached, also not to a message that is
    /// being encoded around it.
    pub(crate) fn none<R>(encode: impl FnOnce() -> R) -> R {
        struct Back(Vec<Outgoing>);
        impl Drop for Back {
            fn drop(&mut self) {
                OUTGOING.with_borrow_mut(|stack| std::mem::swap(stack, &mut self.0));
            }
        }
        let _back = Back(OUTGOING.take());
        encode()
    }

    /// Has the encoding that is under way end with this error; gives the words for `serde`.
    pub(crate) fn fail(error: Error) -> String {
        let words = error.to_string();
        OUTGOING.with_borrow_mut(|stack| {
            if let Some(outgoing) = stack.last_mut() {
                outgoing.failed.get_or_insert(error);
            }
        });
        words
    }

    /// Adds a handle to the message that is being encoded; gives its index.
    pub(crate) fn attach(handle: OwnedFd) -> Result<u32> {
        Self::current(|outgoing| outgoing.push(handle))
    }

    /// The handle of this message that leads to `whereto`, and what was noted with it; both
    /// are made if there are none yet, which the last value tells.
    ///
    /// `make` may send messages of its own.
    pub(crate) fn attach_common(
        whereto: u64,
        make: impl FnOnce() -> Result<(OwnedFd, u64)>,
    ) -> Result<(u32, u64, bool)> {
        Self::current(|outgoing| {
            let known = outgoing.common.iter().find(|(to, ..)| *to == whereto);
            if let Some((_, index, note)) = known {
                return Ok((*index, *note, false));
            }
            let (handle, note) = make()?;
            let index = outgoing.push(handle)?;
            outgoing.common.push((whereto, index, note));
            Ok((index, note, true))
        })
    }

    /// Names an object of the server that the message goes to; nothing if it goes elsewhere.
    pub(crate) fn name(home: u64, object: u64) -> Result<Option<u32>> {
        Self::current(|outgoing| {
            if outgoing.home != home {
                return Ok(None);
            }
            outgoing.named.push(object);
            Ok(Some(outgoing.named.len() as u32 - 1))
        })
    }

    fn push(&mut self, handle: OwnedFd) -> Result<u32> {
        if self.is_far {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a connection, a queue, a lock, shared memory, or another manager's proxy is a \
                 handle of this machine's, and stays on it",
            ));
        }
        self.handles.push(handle);
        Ok((self.handles.len() - self.part) as u32 - 1)
    }

    /// Puts bytes beside the message that is being encoded: the one copy they take.
    pub(crate) fn put(bytes: &[u8]) -> Result<Beside> {
        Self::current(|outgoing| outgoing.place(bytes))
    }

    /// Puts bytes beside this message.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> Result<Beside> {
        if let Some(heap) = self.heap.clone() {
            if let Some(mut block) = heap.alloc(bytes.len())? {
                if let Some(to) = block.bytes_mut() {
                    memory::copy_for_another(to, bytes);
                    if let Some(descriptor) = block.send_by(&heap) {
                        self.blocks.push(descriptor);
                        return Ok(Beside::Block(self.blocks.len() as u32 - 1));
                    }
                }
            }
        }
        let (mut block, handle) = Block::alone(bytes.len())?;
        if let Some(to) = block.bytes_mut() {
            memory::copy_for_another(to, bytes);
        }
        Ok(Beside::Handle(self.push(handle)?, bytes.len() as u64))
    }

    /// Hands a block on without copying it, if the reader can reach it.
    pub(crate) fn pass_on(block: &Block) -> Result<Option<Beside>> {
        Self::current(|outgoing| {
            let Some(descriptor) = outgoing.heap.as_ref().and_then(|heap| block.send_by(heap))
            else {
                return Ok(None);
            };
            outgoing.blocks.push(descriptor);
            Ok(Some(Beside::Block(outgoing.blocks.len() as u32 - 1)))
        })
    }

    /// Whether a message of this crate is being encoded by this thread.
    pub(crate) fn is_collecting() -> bool {
        OUTGOING.with_borrow(|stack| !stack.is_empty())
    }

    fn current<R>(work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        // Taken out for the time of the work, which may call back in here.
        let Some(mut outgoing) = OUTGOING.with_borrow_mut(Vec::pop) else {
            return Err(outside("encoded"));
        };
        let result = work(&mut outgoing);
        OUTGOING.with_borrow_mut(|stack| stack.push(outgoing));
        result
    }

    /// The message has gone out: what went beside it is its reader's now.
    pub(crate) fn sent(&mut self) {
        self.handles.clear();
        self.blocks.clear();
    }

    /// The message does not go out.
    pub(crate) fn discard(&mut self) {
        self.handles.clear();
        if let Some(heap) = &self.heap {
            for descriptor in self.blocks.drain(..) {
                heap.recall(descriptor);
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Also when encoding has panicked.
        self.discard();
    }
}

impl Incoming {
    pub(crate) fn new(handles: Vec<OwnedFd>, blocks: Vec<Block>) -> Self {
        Self {
            handles: handles.into_iter().map(Some).collect(),
            blocks: blocks.into_iter().map(Some).collect(),
            is_common: false,
            named: Vec::new(),
        }
    }

    /// For a message that goes to several readers: they must not write to what came with it.
    pub(crate) fn common(handles: Vec<OwnedFd>) -> Self {
        Self {
            is_common: true,
            ..Self::new(handles, Vec::new())
        }
    }

    pub(crate) fn with_blocks(mut self, blocks: Vec<Block>) -> Self {
        self.blocks = blocks.into_iter().map(Some).collect();
        self
    }

    /// Runs `decode`, for which nothing came, also not with a message that is being decoded
    /// around it.
    pub(crate) fn none<R>(decode: impl FnOnce() -> R) -> R {
        struct Back(Vec<Incoming>);
        impl Drop for Back {
            fn drop(&mut self) {
                INCOMING.with_borrow_mut(|stack| std::mem::swap(stack, &mut self.0));
            }
        }
        let _back = Back(INCOMING.take());
        decode()
    }

    /// With objects that the bytes name by number.
    pub(crate) fn with_named(mut self, named: Vec<Box<dyn Any + Send>>) -> Self {
        self.named = named.into_iter().map(Some).collect();
        self
    }

    /// Takes an object that the message being decoded names.
    pub(crate) fn take_named(index: u32) -> Result<Box<dyn Any + Send>> {
        Self::current(|incoming| {
            let slot = incoming.named.get_mut(index as usize);
            slot.and_then(Option::take).ok_or_else(|| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("a message names object {index}, which it has not"),
                )
            })
        })
    }

    /// Copies a handle of the message that is being decoded, which others may want too.
    pub(crate) fn share(index: u32) -> Result<OwnedFd> {
        Self::current(|incoming| {
            let Some(Some(handle)) = incoming.handles.get(index as usize) else {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("a message names handle {index}, which it has not"),
                ));
            };
            socket::duplicate(handle.as_fd()).map_err(|error| Error::os("copy a handle", error))
        })
    }

    /// Whether shared memory came with the message.
    pub(crate) fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// The handles that nobody has taken.
    pub(crate) fn take_handles(&mut self) -> Vec<OwnedFd> {
        self.handles.drain(..).flatten().collect()
    }

    /// Runs `decode`, which may take what came.
    pub(crate) fn provide<R>(&mut self, decode: impl FnOnce() -> Result<R>) -> Result<R> {
        struct Back<'a>(&'a mut Incoming);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if let Some(incoming) = INCOMING.with_borrow_mut(Vec::pop) {
                    *self.0 = incoming;
                }
            }
        }
        let taken = std::mem::take(self);
        INCOMING.with_borrow_mut(|stack| stack.push(taken));
        let _back = Back(self);
        decode()
    }

    /// Takes a handle of the message that is being decoded.
    pub(crate) fn detach(index: u32) -> Result<OwnedFd> {
        Self::current(|incoming| incoming.handle(index))
    }

    pub(crate) fn handle(&mut self, index: u32) -> Result<OwnedFd> {
        let slot = self.handles.get_mut(index as usize).and_then(Option::take);
        slot.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("a message names handle {index}, which it has not"),
            )
        })
    }

    /// Takes memory that came beside the message that is being decoded.
    pub(crate) fn get(beside: Beside) -> Result<Block> {
        Self::current(|incoming| incoming.take(beside))
    }

    /// Takes memory that came beside this message.
    pub(crate) fn take(&mut self, beside: Beside) -> Result<Block> {
        match beside {
            Beside::Block(index) => {
                let slot = self.blocks.get_mut(index as usize).and_then(Option::take);
                slot.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("a message names block {index}, which it has not"),
                    )
                })
            }
            Beside::Handle(index, len) => {
                let len = usize::try_from(len)
                    .map_err(|_| Error::new(ErrorKind::Corrupt, "a payload is too long"))?;
                Block::attach(&self.handle(index)?, len, self.is_common)
            }
        }
    }

    /// Whether a message of this crate is being decoded by this thread.
    pub(crate) fn is_providing() -> bool {
        INCOMING.with_borrow(|stack| !stack.is_empty())
    }

    fn current<R>(work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        INCOMING
            .with_borrow_mut(|stack| stack.last_mut().map(work))
            .unwrap_or_else(|| Err(outside("decoded")))
    }
}

fn outside(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("a handle of another process can only be {what} inside a message of this crate"),
    )
}
