//! Events of children arrive in the parent, with the name of the process and the task; so
//! does a panic.
//!
//! `cargo run --features tracing --example log [-- --start-method fork|spawn|forkserver]`

use bunshin::{Context, StartMethod, TaskError, start_method};
use tracing::{info, info_span, warn};

fn halve(number: u32) -> u32 {
    let _span = info_span!("halve", number).entered();
    if number == 0 {
        warn!("there is little to halve");
    }
    assert!(number % 2 == 0, "{number} is odd");
    info!(half = number / 2, "done");
    number / 2
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .without_time()
        .init();
    let records = bunshin::log::forward()?;
    // One worker, so that the order is always the same.
    let pool = Context::new(chosen()?).pool(1)?;
    let halves = pool.map_each(halve, [4, 0, 7]);
    pool.close();
    pool.join()?;
    records.flush();
    for half in halves {
        match half {
            Ok(half) => println!("{half}"),
            Err(TaskError::Panicked(panic)) => println!("panicked: {}", panic.message()),
            Err(error) => return Err(error.into()),
        }
    }
    println!("lost: {}", records.lost());
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
