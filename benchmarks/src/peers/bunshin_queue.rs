//! Bunshin's `Queue`, through its public, typed interface only.

use bunshin::{Process, Queue};

use crate::measure::{self, Result};
use crate::workload::Work;
use crate::workload::link::{self, TypedLink, Values};
use crate::workload::queue::{self, N_EACH, Numbers};

/// A queue to the other side, and one from it.
struct End {
    there: Queue<u64>,
    here: Queue<u64>,
}

impl TypedLink<u64> for End {
    fn send(&mut self, message: u64) -> Result<()> {
        Ok(self.there.send(message)?)
    }

    fn receive(&mut self) -> Result<u64> {
        Ok(self.here.recv()?)
    }
}

/// What a process has to say of how its part went.
fn told(done: Result<()>) -> Option<String> {
    done.err().map(|error| error.to_string())
}

fn serve(there: Queue<u64>, here: Queue<u64>, work: Work, core: usize) -> Option<String> {
    told(
        measure::pin(core)
            .and_then(|()| link::serve(&mut Values::new(End { there, here }), work.pattern)),
    )
}

/// One process to one other.
pub fn numbers(work: &Work) -> Result<f64> {
    let (there, here) = (Queue::new()?, Queue::new()?);
    let (near_core, far_core) = work.cores()?;
    let child = Process::start(serve, (here.clone(), there.clone(), *work, far_core))?;
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
