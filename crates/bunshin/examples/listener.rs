//! A server that adds numbers for whoever has the key, and clients in other processes.
//!
//! `cargo run --example listener [-- --start-method fork|spawn|forkserver]`

use bunshin::{Client, ErrorKind, Listener, Process, StartMethod, StreamConnection, start_method};

/// Asks the server, and says what came back.
fn ask(address: String, key: String, numbers: Vec<i64>) -> String {
    let client = Client::builder().authkey(key);
    let connection: StreamConnection<Vec<i64>, i64> = match client.connect(&address) {
        Ok(connection) => connection,
        Err(error) if error.kind() == ErrorKind::Authentication => return "not let in".into(),
        Err(error) => return error.to_string(),
    };
    let answer = connection
        .send(numbers)
        .map_err(bunshin::Error::from)
        .and_then(|()| Ok(connection.recv()?));
    answer.map_or_else(|error| error.to_string(), |sum| format!("the sum is {sum}"))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = Listener::builder().authkey("secret").bind("@")?;
    for (key, numbers) in [
        ("secret", vec![1, 2, 3]),
        ("guess", vec![4]),
        ("secret", vec![-5, 6]),
    ] {
        let address = listener.local_addr().to_string();
        let client = Process::builder()
            .start_method(chosen()?)
            .start(ask, (address, key.to_owned(), numbers))?;
        match listener.accept() {
            Ok(connection) => serve(&connection)?,
            Err(error) if error.kind() == ErrorKind::Authentication => {
                println!("server: somebody has another key");
            }
            Err(error) => return Err(error.into()),
        }
        println!("client: {}", client.result()?);
    }
    Ok(())
}

fn serve(connection: &StreamConnection<i64, Vec<i64>>) -> Result<(), Box<dyn std::error::Error>> {
    let numbers = connection.recv()?;
    println!("server: {numbers:?}");
    connection.send(numbers.iter().sum())?;
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
