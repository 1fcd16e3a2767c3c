//! Reports of three lines each from three processes: no line of another one comes in between, and
//! no more than two are being written at a time.
//!
//! `cargo run --example locks [-- --start-method fork|spawn|forkserver]`

use bunshin::{BoundedSemaphore, Context, RLock, SimpleQueue, StartMethod, start_method};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
struct Office {
    desks: BoundedSemaphore,
    paper: RLock,
    lines: SimpleQueue<String>,
}

/// Writes a line. The lock may be held by the caller: it is then taken once more.
fn write(office: &Office, line: String) -> Result<(), Box<dyn std::error::Error>> {
    let _held = office.paper.lock()?;
    office.lines.send(line)?;
    Ok(())
}

fn report(office: Office, city: String) -> Result<(), Box<dyn std::error::Error>> {
    let _desk = office.desks.acquire()?;
    let _together = office.paper.lock()?;
    for number in 1..=3 {
        write(&office, format!("{city} {number}"))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = Context::new(chosen()?);
    let office = Office {
        desks: BoundedSemaphore::new(2)?,
        paper: RLock::new()?,
        lines: SimpleQueue::new()?,
    };
    let cities = ["Bologna", "Osaka", "Zadar"];
    let reporters = cities
        .iter()
        .map(|city| {
            let run = |office, city| report(office, city).map_err(|error| error.to_string());
            context
                .process()
                .start(run, (office.clone(), city.to_string()))
        })
        .collect::<bunshin::Result<Vec<_>>>()?;
    for reporter in reporters {
        reporter.result()??;
    }

    let lines = (0..9)
        .map(|_| office.lines.recv())
        .collect::<Result<Vec<_>, _>>()?;
    let mut reports: Vec<_> = lines.chunks(3).collect();
    reports.sort();
    for report in reports {
        println!("{}", report.join(", "));
    }

    // All desks are free: one more than there are would be a mistake.
    println!("{} desks are free", office.desks.value());
    if let Err(error) = office.desks.release() {
        println!("{error}");
    }
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
