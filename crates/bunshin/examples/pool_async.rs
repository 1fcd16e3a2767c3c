//! Tasks that nobody waits for at once: handles, callbacks, lazy results, time limits.
//!
//! `cargo run --example pool_async [-- --start-method fork|spawn|forkserver]`

use std::time::Duration;

use bunshin::{Pool, StartMethod, start_method};

fn collatz(mut number: u64) -> u32 {
    let mut steps = 0;
    while number != 1 {
        number = if number % 2 == 0 {
            number / 2
        } else {
            3 * number + 1
        };
        steps += 1;
    }
    steps
}

fn wait_for_ever() {
    loop {
        std::hint::spin_loop();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(2).start_method(chosen()?).build()?;

    let one = pool.apply_async(collatz, (27,));
    let many = pool.map_async(collatz, 1..=10);
    println!("27 takes {} steps", one.get()?);
    println!("1 to 10 take {:?}", many.get()?);
    let powers = pool.starmap(u64::pow, [(2, 10), (10, 2)])?;
    println!("powers: {powers:?}");

    let told = pool
        .apply_async(u64::pow, (3, 4))
        .callback(|power| println!("called with {power}"));
    told.wait()?;

    // The numbers have no end; as many are taken as it needs.
    let longest = pool
        .imap(|n| (collatz(n), n), 1..)
        .map_while(Result::ok)
        .find(|(steps, _)| *steps > 200);
    println!("the first over 200: {longest:?}");

    let limited = pool.batch().timeout(Duration::from_millis(200));
    let stuck = limited.apply(wait_for_ever, ());
    println!("{}", stuck.unwrap_err());
    println!("and on it goes: {}", pool.apply(collatz, (6,))?);
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
