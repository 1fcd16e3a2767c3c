//! A fork copies the process: what the parent does to its memory before is in the
//! child's copy, what either does afterwards is its own.
//!
//! `cargo run --example fork`

use bunshin::{Fork, channel, fork};

fn main() -> bunshin::Result<()> {
    let mut pids = vec![std::process::id()];
    // Only for the order of the lines below: the child waits until this is dropped.
    let (printed, until_printed) = channel::<()>()?;

    match fork()? {
        Fork::Parent(child) => {
            pids.push(std::process::id());
            println!();
            println!("parent: hello, I am the parent process");
            println!("parent: the child's PID is {}", child.pid());
            println!("parent: the PIDs I know are {pids:?}");
            drop(printed);
            child.join()?;
        }
        Fork::Child => {
            let _ = until_printed.recv();
            pids.push(std::process::id());
            println!();
            println!("child: hello, I am the child process");
            println!("child: the PIDs I know are {pids:?}");
        }
    }
    Ok(())
}
