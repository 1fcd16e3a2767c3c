//! A manager's dict: Bunshin's and CPython's, read by one process and by four.
//!
//! Each client begins when all are there, reads for the budget, and tells how often it
//! could. A row's number is the time of one read, over all clients together.

use std::process::Command;
use std::time::{Duration, Instant};

use bunshin::manager::{BarrierProxy, DictProxy};
use bunshin::{Manager, Process};

use crate::measure::Result;
use crate::workload::Work;

/// Keys in the dict.
const KEYS: u32 = 100;
/// Reads between two looks at the clock.
const AT_ONCE: u32 = 200;

fn read(dict: DictProxy<u32, u32>, barrier: BarrierProxy, budget: Duration) -> f64 {
    let one_round = || {
        for n in 0..AT_ONCE {
            let key = n % KEYS;
            assert_eq!(dict.get(&key).expect("the server lives"), Some(key));
        }
    };
    one_round();
    barrier.wait().expect("all clients live");
    let started = Instant::now();
    let mut count = 0.0;
    while started.elapsed() < budget {
        one_round();
        count += f64::from(AT_ONCE);
    }
    count / started.elapsed().as_secs_f64()
}

fn bunshin(work: &Work, clients: usize) -> Result<f64> {
    let manager = Manager::new()?;
    let dict = manager.dict()?;
    dict.update((0..KEYS).map(|key| (key, key)))?;
    let barrier = manager.barrier(clients)?;
    let children = (0..clients)
        .map(|_| Process::start(read, (dict.clone(), barrier.clone(), work.budget)))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let mut rate = 0.0;
    for child in children {
        rate += child.result()?;
    }
    Ok(1.0 / rate)
}

/// One client of Bunshin's.
pub fn bunshin_one(work: &Work) -> Result<f64> {
    bunshin(work, 1)
}

/// Four clients of Bunshin's.
pub fn bunshin_four(work: &Work) -> Result<f64> {
    bunshin(work, 4)
}

/// One client of Bunshin's that is connected over TCP.
pub fn bunshin_remote(work: &Work) -> Result<f64> {
    fn far(address: String, budget: Duration) -> f64 {
        let there = Manager::connect(&address, "key").expect("it is served");
        let found = there.find("both").expect("the server lives");
        let (dict, barrier): (DictProxy<u32, u32>, BarrierProxy) = found.expect("it is published");
        read(dict, barrier, budget)
    }
    let manager = Manager::new()?;
    let dict = manager.dict::<u32, u32>()?;
    dict.update((0..KEYS).map(|key| (key, key)))?;
    manager.publish("both", &(dict, manager.barrier(1)?))?;
    let address = manager.serve("key").bind("127.0.0.1:0")?;
    let child = Process::start(far, (address.to_string(), work.budget))?;
    Ok(1.0 / child.result()?)
}

/// The same in CPython, with `fork`, its quickest start.
const SCRIPT: &str = "
import multiprocessing, sys, time
def read(data, barrier, budget, rates):
    def one_round():
        for n in range(200):
            assert data.get(n % 100) == n % 100
    one_round()
    barrier.wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < budget:
        one_round()
        count += 200
    rates.put(count / (time.perf_counter() - started))
def main():
    clients, budget = int(sys.argv[1]), float(sys.argv[2])
    context = multiprocessing.get_context('fork')
    with context.Manager() as manager:
        data = manager.dict({n: n for n in range(100)})
        barrier, rates = context.Barrier(clients), context.SimpleQueue()
        children = [context.Process(target=read, args=(data, barrier, budget, rates)) for _ in range(clients)]
        for child in children:
            child.start()
        print(sum(rates.get() for _ in children))
        for child in children:
            child.join()
main()
";

/// CPython's over TCP: a server of its own, and a client that is connected to it.
const REMOTE: &str = "
import sys, time
from multiprocessing.managers import SyncManager
class Served(SyncManager): pass
class Far(SyncManager): pass
DATA = {n: n for n in range(100)}
def main():
    budget = float(sys.argv[2])
    from multiprocessing.managers import DictProxy
    Served.register('data', lambda: DATA, DictProxy)
    Far.register('data', proxytype=DictProxy)
    import multiprocessing
    served = Served(('127.0.0.1', 0), b'key', ctx=multiprocessing.get_context('fork'))
    served.start()
    far = Far(served.address, b'key')
    far.connect()
    data = far.data()
    def one_round():
        for n in range(200):
            assert data.get(n % 100) == n % 100
    one_round()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < budget:
        one_round()
        count += 200
    print(count / (time.perf_counter() - started))
    del data
    served.shutdown()
main()
";

/// A client of CPython's over TCP.
pub fn cpython_remote(work: &Work) -> Result<f64> {
    python(work, REMOTE, 1)
}

fn cpython(work: &Work, clients: usize) -> Result<f64> {
    python(work, SCRIPT, clients)
}

fn python(work: &Work, script: &str, clients: usize) -> Result<f64> {
    let output = Command::new("python3")
        .args(["-c", script, &clients.to_string()])
        .arg(work.budget.as_secs_f64().to_string())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let rate: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(1.0 / rate)
}

/// One client of CPython's.
pub fn cpython_one(work: &Work) -> Result<f64> {
    cpython(work, 1)
}

/// Four clients of CPython's.
pub fn cpython_four(work: &Work) -> Result<f64> {
    cpython(work, 4)
}
