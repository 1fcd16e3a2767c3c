//! Three processes start together, share two desks, and report under one lock.
//!
//! `cargo run --example sync [-- --start-method fork|spawn|forkserver]`

use bunshin::{
    Barrier, Condition, Context, Event, LockError, Semaphore, StartMethod, Value, start_method,
};
use serde::{Deserialize, Serialize};

/// What the processes wait for each other with; it travels like any other value.
#[derive(Clone, Serialize, Deserialize)]
struct Office {
    open: Event,
    all_here: Barrier,
    desks: Semaphore,
    done: Value<u32>,
    changed: Condition,
}

fn work(office: Office) -> Result<(), Box<dyn std::error::Error>> {
    office.open.wait();
    office.all_here.wait()?;
    let desk = office.desks.acquire()?;
    *office.done.lock()? += 1;
    office.changed.notify_all();
    drop(desk);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = Context::new(chosen()?);
    let office = Office {
        open: Event::new()?,
        all_here: Barrier::with_action(3, || println!("all three are here"))?,
        desks: Semaphore::new(2)?,
        done: Value::new(0)?,
        changed: Condition::new()?,
    };
    let workers = (0..3)
        .map(|_| {
            let run = |office| work(office).map_err(|error| error.to_string());
            context.process().start(run, (office.clone(),))
        })
        .collect::<bunshin::Result<Vec<_>>>()?;

    println!("the office opens");
    office.open.set();
    let done = office.done.lock()?;
    let done = office.changed.wait_for(done, |done| **done == 3)?;
    println!("{} have worked at {} desks", *done, 2);
    drop(done);
    for worker in workers {
        worker.result()??;
    }

    // Somebody is killed at a desk: it is free again, and the next one is told.
    let careless = context.process().start(
        |desks: Semaphore| {
            let _desk = desks.acquire();
            std::process::abort();
            #[allow(unreachable_code)]
            ()
        },
        (office.desks.clone(),),
    )?;
    careless.join()?;
    let left = [office.desks.acquire(), office.desks.acquire()];
    let untidy = |desk: &&Result<_, _>| matches!(desk, Err(LockError::Abandoned(_)));
    println!(
        "{} of 2 desks was left untidy",
        left.iter().filter(untidy).count()
    );
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
