//! Two workers share the tasks of one queue, and one of them crashes.
//!
//! `cargo run --example queue [-- --start-method fork|spawn|forkserver]`

use bunshin::{JoinError, JoinableQueue, Process, Queue, StartMethod, start_method};

/// Squares numbers until there are no more. At 13, it crashes.
fn square(tasks: JoinableQueue<u64>, results: Queue<(u64, u64)>) {
    for number in tasks.iter() {
        let number = number.expect("a number");
        if number == 13 {
            std::process::abort();
        }
        let result = (number, number * number);
        results.send(result).expect("it is open");
        tasks.task_done().expect("it was taken");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    // Room for three: the parent waits when the workers do not keep up.
    let tasks = JoinableQueue::bounded(3)?;
    let results = Queue::new()?;
    let mut workers = Vec::new();
    for _ in 0..2 {
        let worker = Process::builder()
            .start_method(method)
            .start(square, (tasks.clone(), results.clone()))?;
        workers.push(worker);
    }
    for number in 10..20 {
        tasks.send(number)?;
    }

    match tasks.join() {
        Err(JoinError::Lost(count)) => println!("{count} task was lost with its worker"),
        other => other?,
    }
    println!("{} results are there", results.len());

    tasks.close()?;
    let mut ends: Vec<_> = workers
        .iter()
        .map(|worker| worker.join().map(|status| status.signal()))
        .collect::<Result<_, _>>()?;
    ends.sort_unstable();
    println!("the workers ended by signal: {ends:?}");

    results.close()?;
    let mut squares: Vec<_> = results.iter().collect::<Result<_, _>>()?;
    squares.sort_unstable();
    for (number, square) in squares {
        println!("{number} * {number} = {square}");
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
