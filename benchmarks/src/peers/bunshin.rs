//! Bunshin, through its public, typed interface only.
//!
//! Children come from the default start method, the forkserver, except in the rows
//! about starting. Nothing here is tuned for a row but one choice a caller has as well:
//! small messages are received into a buffer that is kept, large ones where they lie.

use bunshin::{Buffer, Connection, Pool, Process, StartMethod, ThreadPool};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::{self, Result};
use crate::workload::link::{self, Bytes, Link, Message, Port, Quote, TypedLink, Values};
use crate::workload::{N_WORKERS, Work, arrays, pool, start};

/// From this size on, messages are looked at where they lie.
const LARGE_BYTES: usize = 4096;

/// `send_bytes` and `recv_bytes`, or for small messages `recv_bytes_into`.
struct BytesEnd {
    connection: Connection<()>,
    small: Option<Vec<u8>>,
}

impl BytesEnd {
    fn new(connection: Connection<()>, incoming_bytes: usize) -> BytesEnd {
        BytesEnd {
            connection,
            small: (incoming_bytes < LARGE_BYTES).then(Vec::new),
        }
    }
}

impl Link for BytesEnd {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.connection.send_bytes(message)?)
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        match &mut self.small {
            Some(message) => {
                self.connection.recv_bytes_into(message)?;
                Ok(look(message))
            }
            None => Ok(look(&self.connection.recv_bytes()?)),
        }
    }
}

/// `send` and `recv` of a `Buffer<u8>`, which takes a copy of the sender's bytes.
struct BufferEnd(Connection<Buffer<u8>>);

impl Link for BufferEnd {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.0
            .send(Buffer::from(message))
            .map_err(|error| error.to_string().into())
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.0.recv()?))
    }
}

/// `send` and `recv` of a value.
struct TypedEnd<M>(Connection<M>);

impl<M: Message + Serialize + DeserializeOwned> TypedLink<M> for TypedEnd<M> {
    fn send(&mut self, message: M) -> Result<()> {
        self.0
            .send(message)
            .map_err(|error| error.to_string().into())
    }

    fn receive(&mut self) -> Result<M> {
        Ok(self.0.recv()?)
    }
}

/// What a child does: pins itself and serves. `None` if all went well.
fn served(mut port: impl Port, work: &Work, core: usize) -> Option<String> {
    measure::pin(core)
        .and_then(|()| link::serve(&mut port, work.pattern))
        .err()
        .map(|error| error.to_string())
}

fn serve_bytes(far: Connection<()>, work: Work, core: usize) -> Option<String> {
    let end = BytesEnd::new(far, work.size_bytes);
    served(Bytes::new(end, work.reply_bytes()), &work, core)
}

fn serve_buffers(far: Connection<Buffer<u8>>, work: Work, core: usize) -> Option<String> {
    served(Bytes::new(BufferEnd(far), work.reply_bytes()), &work, core)
}

fn serve_values<M>(far: Connection<M>, work: Work, core: usize) -> Option<String>
where
    M: Message + Serialize + DeserializeOwned,
{
    served(Values::new(TypedEnd(far)), &work, core)
}

/// Measures from the near end and waits for the child.
fn driven(mut near: impl Port, child: Process<Option<String>>, work: &Work) -> Result<f64> {
    let (core, _) = work.cores()?;
    measure::pin(core)?;
    let seconds = link::drive(&mut near, work)?;
    match child.result()? {
        None => Ok(seconds),
        Some(error) => Err(error.into()),
    }
}

/// Raw bytes.
pub fn bytes(work: &Work) -> Result<f64> {
    let (near, far) = bunshin::pipe::<()>()?;
    let child = Process::start(serve_bytes, (far, *work, work.cores()?.1))?;
    let near = BytesEnd::new(near, work.reply_bytes());
    driven(Bytes::new(near, work.size_bytes), child, work)
}

/// Bytes in a `Buffer<u8>`, which a typed message can hold anywhere.
pub fn buffers(work: &Work) -> Result<f64> {
    let (near, far) = bunshin::pipe::<Buffer<u8>>()?;
    let child = Process::start(serve_buffers, (far, *work, work.cores()?.1))?;
    driven(Bytes::new(BufferEnd(near), work.size_bytes), child, work)
}

fn values<M>(work: &Work) -> Result<f64>
where
    M: Message + Serialize + DeserializeOwned + 'static,
{
    let (near, far) = bunshin::pipe::<M>()?;
    let child = Process::start(serve_values::<M>, (far, *work, work.cores()?.1))?;
    driven(Values::new(TypedEnd(near)), child, work)
}

/// A pipe of `u64`.
pub fn numbers(work: &Work) -> Result<f64> {
    values::<u64>(work)
}

/// A pipe of sixty-four byte structs.
pub fn quotes(work: &Work) -> Result<f64> {
    values::<Quote>(work)
}

fn started(work: &Work, method: StartMethod) -> Result<f64> {
    start::start_to_result(work, |question| {
        let child = Process::builder()
            .start_method(method)
            .start(start::answer, (question,))?;
        // Waits for the result and then for the child's end.
        Ok(child.result()?)
    })
}

pub fn fork_start(work: &Work) -> Result<f64> {
    started(work, StartMethod::Fork)
}

pub fn spawn_start(work: &Work) -> Result<f64> {
    started(work, StartMethod::Spawn)
}

pub fn forkserver_start(work: &Work) -> Result<f64> {
    started(work, StartMethod::Forkserver)
}

/// A map with a chunk size of one.
pub fn pool_many(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        Ok(pool.batch().chunk_size(1).map(pool::increment, numbers)?)
    })
}

/// A map of one number, again and again.
pub fn pool_one(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    pool::one_at_a_time(work, |number| {
        let results = pool.map(pool::increment, [number])?;
        Ok(results.into_iter().next().ok_or("no result")?)
    })
}

/// A call that waits for its result, again and again.
pub fn pool_apply(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    pool::one_at_a_time(work, |number| Ok(pool.apply(pool::increment, (number,))?))
}

/// Many calls that wait for nothing, and then all their results.
pub fn pool_burst(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let handles: Vec<_> = numbers
            .into_iter()
            .map(|number| pool.apply_async(pool::increment, (number,)))
            .collect();
        let results = handles.into_iter().map(|handle| handle.get());
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

/// Results one by one.
pub fn pool_imap(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let results = pool.imap(pool::increment, numbers);
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

pub fn threads_apply(work: &Work) -> Result<f64> {
    let pool = ThreadPool::new(N_WORKERS)?;
    pool::one_at_a_time(work, |number| {
        Ok(pool.apply(move || pool::increment(number))?)
    })
}

pub fn threads_burst(work: &Work) -> Result<f64> {
    let pool = ThreadPool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let handles: Vec<_> = numbers
            .into_iter()
            .map(|number| pool.apply_async(move || pool::increment(number)))
            .collect();
        let results = handles.into_iter().map(|handle| handle.get());
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

pub fn threads_imap(work: &Work) -> Result<f64> {
    let pool = ThreadPool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let results = pool.imap(pool::increment, numbers);
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

fn sum(array: Buffer<f64>) -> f64 {
    arrays::sum(&array)
}

fn change(mut array: Buffer<f64>) -> Buffer<f64> {
    arrays::change(array.as_mut_slice());
    array
}

pub fn map_sum(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    arrays::summed(work, |inputs| {
        let buffers = inputs.drain(..).map(Buffer::from);
        Ok(pool.batch().chunk_size(1).map(sum, buffers)?)
    })
}

pub fn map_changed(work: &Work) -> Result<f64> {
    let pool = Pool::new(N_WORKERS)?;
    arrays::changed(
        work,
        |inputs| {
            let buffers = inputs.drain(..).map(Buffer::from);
            Ok(pool.batch().chunk_size(1).map(change, buffers)?)
        },
        |array: &Buffer<f64>| array,
    )
}
