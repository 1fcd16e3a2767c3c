//! ipc-channel: Servo's channels.
//!
//! The transport rows use `bytes_channel`, its fastest form for bytes, and
//! `channel` for values; both ends are made before a fork, so that what is measured
//! is the channel and not how the child came by it. The start row is the crate's own
//! way: a one-shot server whose name goes to a child through its arguments.

use std::ffi::OsString;
use std::process::Command;

use ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender,
    IpcSharedMemory,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::Result;
use crate::workload::link::{self, Link, Message, Quote, TypedLink};
use crate::workload::{N_WORKERS, Work, arrays, pool, start};

struct BytesEnd {
    sender: IpcBytesSender,
    receiver: IpcBytesReceiver,
}

impl Link for BytesEnd {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.sender.send(message)?)
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.receiver.recv()?))
    }
}

/// `bytes_channel`, one each way.
pub fn bytes(work: &Work) -> Result<f64> {
    let (near_sender, far_receiver) = ipc::bytes_channel()?;
    let (far_sender, near_receiver) = ipc::bytes_channel()?;
    let near = BytesEnd {
        sender: near_sender,
        receiver: near_receiver,
    };
    let far = BytesEnd {
        sender: far_sender,
        receiver: far_receiver,
    };
    link::forked_bytes(work, near, far)
}

struct SharedEnd {
    sender: IpcSender<IpcSharedMemory>,
    receiver: IpcReceiver<IpcSharedMemory>,
}

impl Link for SharedEnd {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.sender.send(IpcSharedMemory::from_bytes(message))?)
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.receiver.recv()?))
    }
}

/// Each message in an `IpcSharedMemory`: the crate's form for large data.
pub fn shared_memory(work: &Work) -> Result<f64> {
    let (near_sender, far_receiver) = ipc::channel()?;
    let (far_sender, near_receiver) = ipc::channel()?;
    let near = SharedEnd {
        sender: near_sender,
        receiver: near_receiver,
    };
    let far = SharedEnd {
        sender: far_sender,
        receiver: far_receiver,
    };
    link::forked_bytes(work, near, far)
}

struct TypedEnd<M> {
    sender: IpcSender<M>,
    receiver: IpcReceiver<M>,
}

impl<M: Message + Serialize + DeserializeOwned> TypedLink<M> for TypedEnd<M> {
    fn send(&mut self, message: M) -> Result<()> {
        Ok(self.sender.send(message)?)
    }

    fn receive(&mut self) -> Result<M> {
        Ok(self.receiver.recv()?)
    }
}

fn typed<M: Message + Serialize + DeserializeOwned>(work: &Work) -> Result<f64> {
    let (near_sender, far_receiver) = ipc::channel::<M>()?;
    let (far_sender, near_receiver) = ipc::channel::<M>()?;
    let near = TypedEnd {
        sender: near_sender,
        receiver: near_receiver,
    };
    let far = TypedEnd {
        sender: far_sender,
        receiver: far_receiver,
    };
    link::forked_values(work, near, far)
}

/// `channel::<u64>`.
pub fn numbers(work: &Work) -> Result<f64> {
    typed::<u64>(work)
}

/// `channel` of sixty-four byte structs.
pub fn quotes(work: &Work) -> Result<f64> {
    typed::<Quote>(work)
}

/// The first argument of a child of [`one_shot_start`].
pub const CHILD_ROLE: &str = "ipc-channel-child";

/// A one-shot server, and this binary once more as its client.
pub fn one_shot_start(work: &Work) -> Result<f64> {
    start::start_to_result(work, |question| {
        let (server, name) = IpcOneShotServer::<u64>::new()?;
        let mut child = Command::new("/proc/self/exe")
            .args([CHILD_ROLE, &format!("{question}@{name}")])
            .spawn()?;
        let (_receiver, found) = server.accept()?;
        let status = child.wait()?;
        if !status.success() {
            return Err(status.to_string().into());
        }
        Ok(found)
    })
}

/// The child of [`one_shot_start`].
pub fn one_shot_child(argument: Option<OsString>) -> Result<()> {
    let argument = argument.ok_or("a child without its argument")?;
    let argument = argument.to_string_lossy();
    let (question, name) = argument.split_once('@').ok_or("no server name")?;
    let sender = IpcSender::<u64>::connect(name.to_owned())?;
    Ok(sender.send(start::answer(question.parse()?))?)
}

/// Two forked workers, each array in an `IpcSharedMemory`.
struct ArrayWorkers<R> {
    ends: Vec<(IpcSender<IpcSharedMemory>, IpcReceiver<R>)>,
}

impl<R: Serialize + DeserializeOwned> ArrayWorkers<R> {
    fn start(task: fn(IpcSharedMemory) -> R) -> Result<ArrayWorkers<R>> {
        let mut ends = Vec::new();
        for _ in 0..N_WORKERS {
            let (near_sender, far_receiver) = ipc::channel::<IpcSharedMemory>()?;
            let (far_sender, near_receiver) = ipc::channel()?;
            link::fork_into(|| {
                loop {
                    far_sender.send(task(far_receiver.recv()?))?;
                }
            })?;
            ends.push((near_sender, near_receiver));
        }
        Ok(ArrayWorkers { ends })
    }
}

impl<R: Serialize + DeserializeOwned> pool::Workers<&Vec<f64>> for ArrayWorkers<R> {
    type Handle = ();
    type Output = R;

    fn submit(&mut self, index: usize, array: &Vec<f64>) -> Result<()> {
        let array = IpcSharedMemory::from_bytes(arrays::as_bytes(array));
        Ok(self.ends[index % N_WORKERS].0.send(array)?)
    }

    fn collect(&mut self, index: usize, (): ()) -> Result<R> {
        Ok(self.ends[index % N_WORKERS].1.recv()?)
    }
}

/// Arrays in flight.
const WINDOW: usize = 2 * N_WORKERS;

pub fn map_sum(work: &Work) -> Result<f64> {
    let mut workers = ArrayWorkers::start(|array| arrays::sum(arrays::as_array(&array)))?;
    arrays::summed(work, |inputs| {
        pool::windowed(&mut workers, inputs.iter(), WINDOW)
    })
}

pub fn map_changed(work: &Work) -> Result<f64> {
    let mut workers = ArrayWorkers::start(|array| {
        // Shared memory is read-only here: a changed array is a new one.
        let mut changed = arrays::as_array(&array).to_vec();
        arrays::change(&mut changed);
        IpcSharedMemory::from_bytes(arrays::as_bytes(&changed))
    })?;
    arrays::changed(
        work,
        |inputs| pool::windowed(&mut workers, inputs.iter(), WINDOW),
        |array| arrays::as_array(array),
    )
}
