//! Workers that make something once and use it in each of their tasks.
//!
//! `cargo run --example stateful_pool [-- --start-method fork|spawn|forkserver]`

use std::collections::HashMap;

use bunshin::{Pool, StartMethod, start_method};

/// A dictionary that takes long to load, and how often it was used.
struct Dictionary {
    words: HashMap<String, String>,
    lookups: u32,
}

fn load(pairs: Vec<(String, String)>) -> Dictionary {
    Dictionary {
        words: pairs.into_iter().collect(),
        lookups: 0,
    }
}

fn translate(dictionary: &mut Dictionary, word: String) -> (String, u32) {
    dictionary.lookups += 1;
    let known = dictionary.words.get(&word).cloned();
    (
        known.unwrap_or_else(|| format!("[{word}]")),
        dictionary.lookups,
    )
}

fn forget(dictionary: &mut Dictionary, word: String) -> bool {
    if word == "crash" {
        std::process::abort();
    }
    dictionary.words.remove(&word).is_some()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pairs = [("body", "shin"), ("double", "bun"), ("copy", "utsushi")];
    let pairs: Vec<_> = pairs.map(|(a, b)| (a.to_string(), b.to_string())).into();
    // One worker, so that it is always the same one that remembers.
    let pool = Pool::builder()
        .workers(1)
        .start_method(chosen()?)
        .state(load, (pairs,))
        .build()?;

    let words = ["double", "body", "none"].map(String::from);
    for (word, lookups) in pool.map(translate, words)? {
        println!("lookup {lookups}: {word}");
    }
    println!("forgotten: {}", pool.apply(forget, "body".to_string())?);
    let (word, lookups) = pool.apply(translate, "body".to_string())?;
    println!("lookup {lookups}: {word}");

    // Another worker comes in its place, and makes a state of its own.
    let lost = pool.apply(forget, "crash".to_string());
    println!("the worker was lost: {}", lost.unwrap_err().is_lost());
    let (word, lookups) = pool.apply(translate, "body".to_string())?;
    println!("lookup {lookups}: {word}");
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
