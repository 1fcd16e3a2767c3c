//! Bunshin's queues, through their public, typed interface only.

use bunshin::{JoinableQueue, Process, Queue, SimpleQueue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::{self, Result};
use crate::workload::Work;
use crate::workload::link::{self, TypedLink, Values};
use crate::workload::queue::{self, N_EACH, Numbers};

impl Numbers for Queue<u64> {
    fn send(&self, number: u64) -> Result<()> {
        Ok(Queue::send(self, number)?)
    }

    fn receive(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

impl Numbers for SimpleQueue<u64> {
    fn send(&self, number: u64) -> Result<()> {
        Ok(SimpleQueue::send(self, number)?)
    }

    fn receive(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

impl Numbers for JoinableQueue<u64> {
    fn send(&self, number: u64) -> Result<()> {
        Ok(Queue::send(self, number)?)
    }

    /// Each number is a task that is done once it is taken.
    fn receive(&self) -> Result<u64> {
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

impl<Q: Numbers> TypedLink<u64> for End<Q> {
    fn send(&mut self, message: u64) -> Result<()> {
        self.there.send(message)
    }

    fn receive(&mut self) -> Result<u64> {
        self.here.receive()
    }
}

/// What a process has to say of how its part went.
fn told(done: Result<()>) -> Option<String> {
    done.err().map(|error| error.to_string())
}

fn serve<Q: Numbers>(there: Q, here: Q, work: Work, core: usize) -> Option<String> {
    told(
        measure::pin(core)
            .and_then(|()| link::serve(&mut Values::new(End { there, here }), work.pattern)),
    )
}

/// One process to one other, by queues that `make` makes.
fn one<Q>(work: &Work, make: fn() -> bunshin::Result<Q>) -> Result<f64>
where
    Q: Numbers + Clone + Serialize + DeserializeOwned + 'static,
{
    let (there, here) = (make()?, make()?);
    let (near_core, far_core) = work.cores()?;
    let own = (here.clone(), there.clone(), *work, far_core);
    let child = Process::start(serve::<Q>, own)?;
    measure::pin(near_core)?;
    let seconds = link::drive(&mut Values::new(End { there, here }), work)?;
    child
        .result()?
        .map_or(Ok(seconds), |error| Err(error.into()))
}

pub fn queue(work: &Work) -> Result<f64> {
    one(work, Queue::new)
}

pub fn simple(work: &Work) -> Result<f64> {
    one(work, SimpleQueue::new)
}

pub fn joinable(work: &Work) -> Result<f64> {
    one(work, JoinableQueue::new)
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
