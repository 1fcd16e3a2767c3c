//! The pool's surface over threads: closures capture, and nothing is encoded.
//!
//! `cargo run --example thread_pool`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bunshin::{TaskError, ThreadPool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ThreadPool::new(3)?;
    let text = Arc::new("thread pools share what their tasks capture".to_string());
    let seen = Arc::new(AtomicUsize::new(0));

    let (words, count) = (Arc::clone(&text), Arc::clone(&seen));
    let length = move |at: usize| {
        count.fetch_add(1, Ordering::Relaxed);
        words.split(' ').nth(at).map(str::len)
    };
    println!("lengths: {:?}", pool.map(length, 0..8)?);
    println!(
        "tasks that shared one counter: {}",
        seen.load(Ordering::Relaxed)
    );

    let later = pool.apply_async(move || text.to_uppercase());
    let told = pool
        .apply_async(|| 6 * 7)
        .callback(|answer| println!("called with {answer}"));
    told.wait()?;
    println!("{}", later.get()?);

    // The numbers have no end; four for each thread are taken ahead.
    let first = pool
        .imap(|n: u64| n * n, 1..)
        .map_while(Result::ok)
        .find(|square| *square > 500);
    println!("the first square over 500: {first:?}");

    let half = |n: u32| {
        assert!(n % 2 == 0, "{n} is odd");
        n / 2
    };
    for result in pool.map_each(half, [4, 5, 6]) {
        match result {
            Ok(half) => println!("{half}"),
            Err(TaskError::Panicked(panic)) => println!("panicked: {}", panic.message()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
