//! A manager that is served over TCP: programs that are no relatives find its objects by name,
//! from this machine or another.
//!
//! `cargo run --example manager_remote [-- --start-method fork|spawn|forkserver]`

use bunshin::manager::{DictProxy, LockProxy, QueueProxy};
use bunshin::{ErrorKind, Manager, Process, StartMethod, managed, start_method};

/// What is known of the jobs, in the server.
struct Journal {
    lines: Vec<String>,
}

#[managed]
impl Journal {
    pub(crate) fn begin() -> Self {
        Self { lines: Vec::new() }
    }

    pub(crate) fn note(&mut self, line: String) -> usize {
        self.lines.push(line);
        self.lines.len()
    }

    pub(crate) fn sorted(&self) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.sort_unstable();
        lines
    }
}

type Shared = (QueueProxy<String>, DictProxy<String, usize>, LockProxy);

/// What would be a program of its own on another machine: it knows an address and a key.
fn work(address: String) -> Result<(), String> {
    let run = || -> Result<(), Box<dyn std::error::Error>> {
        let there = Manager::connect(&address, "between us")?;
        let (jobs, lengths, lock): Shared = there.find("shared")?.ok_or("nothing is shared")?;
        let journal: JournalProxy = there.find("journal")?.ok_or("there is no journal")?;
        while let Ok(word) = jobs.try_recv() {
            let guard = lock.lock().map_err(|error| error.to_string())?;
            let known = lengths.get("all of them")?.unwrap_or(0);
            lengths.insert("all of them", &(known + word.len()))?;
            drop(guard);
            lengths.insert(&word, &word.len())?;
            journal.note(format!("{word} is done"))?;
            jobs.task_done()?;
        }
        Ok(())
    };
    run().map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let manager = Manager::builder().start_method(method).build()?;
    let (jobs, lengths) = (
        manager.queue::<String>(0)?,
        manager.dict::<String, usize>()?,
    );
    let journal = JournalProxy::begin(&manager)?;
    for word in ["one", "three", "seven", "eleven"] {
        jobs.send(word.to_owned())?;
    }
    manager.publish("shared", &(jobs.clone(), lengths.clone(), manager.lock()?))?;
    manager.publish("journal", &journal)?;
    let address = manager.serve("between us").bind("localhost:0")?;

    let workers: Vec<_> = (0..2)
        .map(|_| {
            let arguments = (address.to_string(),);
            Process::builder()
                .start_method(method)
                .start(work, arguments)
        })
        .collect::<Result<_, _>>()?;
    jobs.join()?;
    for worker in workers {
        worker.result()??;
    }
    println!("{:?}", journal.sorted()?);
    println!("all of them: {:?}", lengths.get("all of them")?);

    // Who does not have the key learns nothing; what is found is of the type that it was.
    let stranger = Manager::connect(&address, "another key").map_err(|error| error.kind());
    println!("a stranger: {:?}", stranger.unwrap_err());
    let there = Manager::connect(&address, "between us")?;
    let wrong = there
        .find::<LockProxy>("journal")
        .map_err(|error| error.kind());
    assert_eq!(wrong.unwrap_err(), ErrorKind::TypeMismatch);
    // Pipes and shared memory stay on their machine.
    let refused = there
        .list([bunshin::Value::new(1)?])
        .map_err(|error| error.kind());
    println!("a shared value: {:?}", refused.unwrap_err());
    manager.shutdown()?;
    println!(
        "then: {:?}",
        there.list([1]).map_err(|error| error.kind()).unwrap_err()
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
