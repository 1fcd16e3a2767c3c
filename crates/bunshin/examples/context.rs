//! Processes say who they are and who started them; the forkserver loads a table once for
//! all of its children.
//!
//! `cargo run --example context [-- --start-method fork|spawn|forkserver]`

use std::sync::OnceLock;

use bunshin::{
    Context, Process, StartMethod, active_children, cpu_count, current_process, parent_process,
    set_forkserver_preload, start_method,
};

/// What the forkserver loads.
static TABLE: OnceLock<Vec<u64>> = OnceLock::new();

fn load() {
    TABLE.get_or_init(|| (0..1000).map(|n| n * n).collect());
}

fn look_up(number: usize) -> Option<u64> {
    TABLE.get()?.get(number).copied()
}

fn introduce() -> bunshin::Result<String> {
    let own = current_process();
    Ok(match parent_process()? {
        Some(parent) => format!("{}, started by {}", own.name(), parent.name()),
        None => format!("{}, started by nobody here", own.name()),
    })
}

/// Introduces itself and a child of its own.
fn introduce_both(method: StartMethod) -> Result<[String; 2], String> {
    let child = Context::new(method)
        .process()
        .start(|| introduce().unwrap_or_else(|error| error.to_string()), ());
    let child = child.map_err(|error| error.to_string())?;
    let below = child.result().map_err(|error| error.to_string())?;
    Ok([introduce().map_err(|error| error.to_string())?, below])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let context = Context::new(method);
    println!("{}", introduce()?);
    for line in context
        .process()
        .start(introduce_both, (method,))?
        .result()??
    {
        println!("{line}");
    }

    let start = |name: &str| context.process().name(name).start(std::thread::park, ());
    let children = [start("first")?, start("second")?];
    let names: Vec<_> = active_children()
        .iter()
        .map(|child| child.name().to_owned())
        .collect();
    println!("children: {}", names.join(", "));
    for child in children {
        child.interrupt()?;
        println!("{} ended with {}", child.name(), child.join()?);
    }
    println!("children left: {}", active_children().len());

    set_forkserver_preload(load)?;
    let builder = Process::builder().start_method(StartMethod::Forkserver);
    let found = builder.start(look_up, (12,))?.result()?;
    println!("loaded there: {found:?}, here: {:?}", look_up(12));
    println!("at least one process can run: {}", cpu_count() >= 1);
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
