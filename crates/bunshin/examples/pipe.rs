//! Five messages through a pipe, sent before the child that receives them is started.
//!
//! `cargo run --example pipe [-- --start-method fork|spawn|forkserver]`

use std::collections::BTreeMap;
use std::fmt;

use bunshin::{Connection, Process, StartMethod, pipe, start_method};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
struct CustomClass {
    _attribute: u8,
}

#[derive(Clone, Serialize, Deserialize)]
enum Item {
    Number(i64),
    Text(String),
    Map(BTreeMap<String, i64>),
    Custom(Box<CustomClass>),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::Map(map) => write!(f, "{map:?}"),
            // Where the object lies: not at the same place in both processes.
            Self::Custom(object) => write!(f, "<CustomClass object at {:p}>", &**object),
        }
    }
}

fn work(connection: Connection<Option<Item>>) {
    while let Ok(Some(item)) = connection.recv() {
        println!("child: received: {item}");
    }
}

fn main() -> bunshin::Result<()> {
    let (parent_conn, child_conn) = pipe()?;
    let items = [
        Some(Item::Number(42)),
        Some(Item::Text("some string".into())),
        Some(Item::Map(BTreeMap::from([("one".into(), 1)]))),
        Some(Item::Custom(Box::new(CustomClass { _attribute: 1 }))),
        None,
    ];
    for item in &items {
        match item {
            Some(item) => println!("parent: sending: {item}"),
            None => println!("parent: sending: None"),
        }
        parent_conn.send(item.clone())?;
    }

    let child = Process::builder()
        .start_method(chosen()?)
        .start(work, (child_conn,))?;
    child.join()?;
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
