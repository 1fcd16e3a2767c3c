//! Four children count words in one map.
//!
//! `cargo run --example shared_map [-- --start-method fork|spawn|forkserver]`

use bunshin::{Process, SharedMap, StartMethod, start_method};

const LINES: [&str; 4] = [
    "the old pond",
    "a frog leaps in",
    "the sound of the water",
    "the old old pond",
];

fn count(line: String, counts: SharedMap<String, u32>) -> Result<(), String> {
    for word in line.split(' ') {
        let counted = counts.update(word, |n| Some(n.unwrap_or(0) + 1));
        counted.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let counts = SharedMap::new()?;
    let children = LINES
        .map(|line| {
            let arguments = (line.to_owned(), counts.clone());
            Process::builder()
                .start_method(method)
                .start(count, arguments)
        })
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    for child in children {
        child.result()??;
    }

    let mut all = counts.iter().collect::<Result<Vec<(String, u32)>, _>>()?;
    all.sort_by(|(a, n), (b, m)| m.cmp(n).then(a.cmp(b)));
    for (word, n) in &all[..3] {
        println!("{n} {word}");
    }
    println!("{} words in all", counts.len());
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
