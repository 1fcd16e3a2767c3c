//! procspawn: `thread::spawn`, but with processes, over ipc-channel.
//!
//! It has no channel of its own, so its round trip is a call of a pool of one
//! worker. Its `init()` stands in `become_child`.

use procspawn::{JoinHandle, Pool};
use procspawn_ipc_channel::ipc::IpcSharedMemory;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::{self, Result};
use crate::workload::{N_WORKERS, Work, arrays, pool, start};

/// Seconds a call of one worker takes that sends its bytes back.
pub fn round_trip(work: &Work) -> Result<f64> {
    let (near_core, far_core) = work.cores()?;
    let pool = Pool::new(1)?;
    pool.spawn(far_core, |core| {
        measure::pin(core).map_err(|error| error.to_string())
    })
    .join()??;
    measure::pin(near_core)?;
    let n_bytes = work.size_bytes;
    measure::seconds_each(work.budget, u64::MAX, |n_calls| {
        for call in 0..n_calls {
            let sent = vec![call as u8; n_bytes];
            let came = pool.spawn(sent, |bytes| bytes).join()?;
            if came.len() != n_bytes || came.first() != Some(&(call as u8)) {
                return Err("other bytes came back".into());
            }
        }
        Ok(())
    })
}

/// `procspawn::spawn` and `join`.
pub fn spawn_start(work: &Work) -> Result<f64> {
    start::start_to_result(work, |question| {
        Ok(procspawn::spawn(question, start::answer).join()?)
    })
}

/// A pool's `spawn` for one task after the other.
struct Tasks<A, R> {
    pool: Pool,
    task: fn(A) -> R,
}

impl<A, R> Tasks<A, R> {
    fn new(task: fn(A) -> R) -> Result<Tasks<A, R>> {
        Ok(Tasks {
            pool: Pool::new(N_WORKERS)?,
            task,
        })
    }
}

impl<A, R> pool::Workers<A> for Tasks<A, R>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Handle = JoinHandle<R>;
    type Output = R;

    fn submit(&mut self, _index: usize, item: A) -> Result<JoinHandle<R>> {
        Ok(self.pool.spawn(item, self.task))
    }

    fn collect(&mut self, _index: usize, handle: JoinHandle<R>) -> Result<R> {
        Ok(handle.join()?)
    }
}

/// A window of tasks: each queued one holds three descriptors.
pub fn pool_many(work: &Work) -> Result<f64> {
    let mut tasks = Tasks::new(pool::increment)?;
    pool::many(work, |numbers| {
        pool::windowed(&mut tasks, numbers.into_iter(), pool::WINDOW)
    })
}

pub fn pool_one(work: &Work) -> Result<f64> {
    let tasks = Tasks::new(pool::increment)?;
    pool::one_at_a_time(work, |number| {
        Ok(tasks.pool.spawn(number, tasks.task).join()?)
    })
}

/// Arrays in flight: no more than workers. `Pool::spawn` waits until a worker reads
/// a large argument, and a worker reads nothing while its last result has not been
/// fetched; with more in flight each waits for the other.
const WINDOW: usize = N_WORKERS;

/// Tasks over arrays in shared memory. `procspawn::serde::Shmem` would be the
/// crate's own form, but the pool's workers cannot decode it as an argument.
struct ArrayTasks<R>(Tasks<IpcSharedMemory, R>);

impl<R> pool::Workers<&Vec<f64>> for ArrayTasks<R>
where
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Handle = JoinHandle<R>;
    type Output = R;

    fn submit(&mut self, index: usize, array: &Vec<f64>) -> Result<JoinHandle<R>> {
        let array = IpcSharedMemory::from_bytes(arrays::as_bytes(array));
        self.0.submit(index, array)
    }

    fn collect(&mut self, index: usize, handle: JoinHandle<R>) -> Result<R> {
        self.0.collect(index, handle)
    }
}

pub fn map_sum(work: &Work) -> Result<f64> {
    let mut tasks = ArrayTasks(Tasks::new(|array: IpcSharedMemory| {
        arrays::sum(arrays::as_array(&array))
    })?);
    arrays::summed(work, |inputs| {
        pool::windowed(&mut tasks, inputs.iter(), WINDOW)
    })
}

pub fn map_changed(work: &Work) -> Result<f64> {
    let mut tasks = ArrayTasks(Tasks::new(|array: IpcSharedMemory| {
        // Shared memory is read-only here: a changed array is a new one.
        let mut changed = arrays::as_array(&array).to_vec();
        arrays::change(&mut changed);
        IpcSharedMemory::from_bytes(arrays::as_bytes(&changed))
    })?);
    arrays::changed(
        work,
        |inputs| pool::windowed(&mut tasks, inputs.iter(), WINDOW),
        |array| arrays::as_array(array),
    )
}
