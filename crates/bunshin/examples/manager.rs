//! A server process holds a dict, a list and an object of the program's own for all of its
//! children.
//!
//! `cargo run --example manager [-- --start-method fork|spawn|forkserver]`

use bunshin::manager::{DictProxy, ListProxy, LockProxy};
use bunshin::{CallError, Manager, Process, StartMethod, managed, start_method};

/// An account in the bank, which lives in the server.
struct Account {
    balance: i64,
}

#[managed]
impl Account {
    pub(crate) fn open(balance: i64) -> Self {
        Self { balance }
    }

    pub(crate) fn withdraw(&mut self, amount: i64) -> i64 {
        assert!(amount <= self.balance, "{amount} is more than there is");
        self.balance -= amount;
        self.balance
    }

    pub(crate) fn balance(&self) -> i64 {
        self.balance
    }
}

fn work(
    number: u32,
    squares: DictProxy<u32, u32>,
    lines: ListProxy<String>,
    lock: LockProxy,
    account: AccountProxy,
) -> Result<(), String> {
    let told = |error: bunshin::Error| error.to_string();
    squares.insert(&number, &(number * number)).map_err(told)?;
    let _guard = lock.lock().map_err(|error| error.to_string())?;
    let count = lines.len().map_err(told)?;
    lines.push(&format!("line {count}")).map_err(told)?;
    let left = account.withdraw(10).map_err(|error| error.to_string())?;
    assert!(left >= 0);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let manager = Manager::builder().start_method(method).build()?;
    let squares = manager.dict()?;
    let lines = manager.list(Vec::new())?;
    let lock = manager.lock()?;
    let account = AccountProxy::open(&manager, 35)?;

    let children: Vec<_> = (1..=3)
        .map(|number| {
            let (squares, lines) = (squares.clone(), lines.clone());
            let arguments = (number, squares, lines, lock.clone(), account.clone());
            Process::builder()
                .start_method(method)
                .start(work, arguments)
        })
        .collect::<Result<_, _>>()?;
    for child in children {
        child.result()??;
    }

    let mut squares = squares.items()?;
    squares.sort_unstable();
    println!("{squares:?}");
    println!("{:?}", lines.to_vec()?);
    println!("{}", account.balance()?);
    match account.withdraw(10) {
        Err(CallError::Panicked(panic)) => println!("refused: {}", panic.message()),
        other => println!("not what was expected: {other:?}"),
    }
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
