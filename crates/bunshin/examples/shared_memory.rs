//! Bytes with a name and a list, changed by a child that opens them by their names.
//!
//! `cargo run --example shared_memory [-- --start-method fork|spawn|forkserver]`

use std::sync::atomic::Ordering;

use bunshin::{ListItem, Process, ShareableList, SharedMemory, StartMethod, start_method};

fn work(memory: String, list: String) -> Result<(), String> {
    let change = || -> bunshin::Result<()> {
        let memory = SharedMemory::open(&memory)?;
        memory.write_at(8, b"hello from the child")?;
        memory.atomic::<u64>(0)?.fetch_add(1, Ordering::SeqCst);
        let list = ShareableList::open(&list)?;
        list.set(0, "HOWDY")?;
        list.set(2, ())
    };
    change().map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [bytes, items] = ["bytes", "items"].map(|kind| {
        let own = std::process::id();
        format!("bunshin-example-{kind}-{own}")
    });
    let memory = SharedMemory::create(&bytes, 64)?;
    let list = ShareableList::create(&items, [ListItem::from("howdy"), 2.5.into(), 42.into()])?;

    let child = Process::builder()
        .start_method(chosen()?)
        .start(work, (bytes.clone(), items))?;
    child.result()??;

    let mut text = [0; 20];
    memory.read_at(8, &mut text)?;
    let changes = memory.atomic::<u64>(0)?.load(Ordering::SeqCst);
    println!("{} ({changes} change)", String::from_utf8_lossy(&text));
    println!("{:?}", list.to_vec()?);
    drop((memory, list));
    println!("still there: {}", SharedMemory::open(&bytes).is_ok());
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
