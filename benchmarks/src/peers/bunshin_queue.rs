//! Bunshin's queues, through their public, typed interface only.

use bunshin::{JoinableQueue, Process, Queue, SimpleQueue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::{self, Result};
use crate::workload::Work;
use crate::workload::link::{self, TypedLink, Values};
use crate::workload::queue::{self, N_EACH, Numbers};

/// Any of the queues.
pub trait Line: Clone + Serialize + DeserializeOwned + 'static {
    fn make() -> bunshin::Result<Self>;
    fn put(&self, number: u64) -> Result<()>;
    fn take(&self) -> Result<u64>;
}

impl Line for Queue<u64> {
    fn make() -> bunshin::Result<Self> {
        Self::new()
    }

    fn put(&self, number: u64) -> Result<()> {
        Ok(self.send(number)?)
    }

    fn take(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

impl Line for SimpleQueue<u64> {
    fn make() -> bunshin::Result<Self> {
        Self::new()
    }

    fn put(&self, number: u64) -> Result<()> {
        Ok(self.send(number)?)
    }

    fn take(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

impl Line for JoinableQueue<u64> {
    fn make() -> bunshin::Result<Self> {
        Self::new()
    }

    fn put(&self, number: u64) -> Result<()> {
        Ok(self.send(number)?)
    }

    /// Each number is a task that is done once it is taken.
    fn take(&self) -> Result<u64> {
        let number = self.recv()?;
        self.task_done()?;
        Ok(number)
    }
}

/// A queue to the other side, and one from it.
struct End<Q> {
    there: Q,
    here: Q,
}

impl<Q: Line> TypedLink<u64> for End<Q> {
    fn send(&mut self, message: u64) -> Result<()> {
        self.there.put(message)
    }

    fn receive(&mut self) -> Result<u64> {
        self.here.take()
    }
}

/// What a process has to say of how its part went.
fn told(done: Result<()>) -> Option<String> {
    done.err().map(|error| error.to_string())
}

fn serve<Q: Line>(there: Q, here: Q, work: Work, core: usize) -> Option<String> {
    told(
        measure::pin(core)
            .and_then(|()| link::serve(&mut Values::new(End { there, here }), work.pattern)),
    )
}

/// One process to one other.
pub fn numbers<Q: Line>(work: &Work) -> Result<f64> {
    let (there, here) = (Q::make()?, Q::make()?);
    let (near_core, far_core) = work.cores()?;
    let child = Process::start(serve::<Q>, (here.clone(), there.clone(), *work, far_core))?;
    measure::pin(near_core)?;
    let seconds = link::drive(&mut Values::new(End { there, here }), work)?;
    child
        .result()?
        .map_or(Ok(seconds), |error| Err(error.into()))
}

impl Numbers for Queue<u64> {
    fn send(&self, number: u64) -> Result<()> {
        Ok(Queue::send(self, number)?)
    }

    fn receive(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

fn produce(items: Queue<u64>, orders: Queue<u64>, reports: Queue<u64>) -> Option<String> {
    told(queue::produce(&items, &orders, &reports))
}

fn consume(items: Queue<u64>, reports: Queue<u64>) -> Option<String> {
    told(queue::consume(&items, &reports))
}

/// Four processes to four others.
pub fn each(work: &Work) -> Result<f64> {
    let (items, orders, reports) = (Queue::new()?, Queue::new()?, Queue::new()?);
    let mut children = Vec::new();
    for _ in 0..N_EACH {
        let own = (items.clone(), orders.clone(), reports.clone());
        children.push(Process::start(produce, own)?);
        children.push(Process::start(consume, (items.clone(), reports.clone()))?);
    }
    let seconds = queue::drive(work, &items, &orders, &reports)?;
    for child in children {
        if let Some(error) = child.result()? {
            return Err(error.into());
        }
    }
    Ok(seconds)
}
