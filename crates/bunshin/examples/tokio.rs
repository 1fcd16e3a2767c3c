//! One thread waits for a process, a queue and a pool at once.
//!
//! `cargo run --example tokio --features tokio [-- --start-method spawn|forkserver]`

use std::time::Duration;

use bunshin::tokio::{Process, Queue};
use bunshin::{Pool, StartMethod, TaskError, start_method};
use tokio::time::timeout;
use tokio_stream::StreamExt;

/// Reads a sensor, five times.
fn read_sensor(readings: bunshin::Queue<(String, i32)>, name: String) -> usize {
    for reading in 0..5 {
        readings
            .send((name.clone(), reading * reading))
            .expect("it is open");
    }
    5
}

/// Something long, which crashes at 3.
fn analyse(number: u64) -> u64 {
    if number == 3 {
        std::process::abort();
    }
    (1..=number).product()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let readings = bunshin::Queue::bounded(2)?;
    let sensor = Process::new(
        bunshin::Process::builder()
            .start_method(method)
            .start(read_sensor, (readings.clone(), "north".to_owned()))?,
    )?;
    let readings = Queue::new(readings)?;
    let pool = Pool::builder().workers(2).start_method(method).build()?;

    let collect = async {
        let mut found = Vec::new();
        while found.len() < 5 {
            found.push(readings.recv().await?);
        }
        Ok::<_, bunshin::Error>(found)
    };
    let (found, factorial) =
        tokio::join!(collect, async { pool.apply_async(analyse, (10,)).await });
    for (name, reading) in found? {
        println!("{name}: {reading}");
    }
    println!("10! is {}", factorial?);
    println!("the sensor was read {} times", sensor.result().await?);

    // Nothing more comes: the wait is given up, and has taken nothing.
    let more = timeout(Duration::from_millis(20), readings.recv()).await;
    println!(
        "another reading: {}",
        if more.is_ok() { "yes" } else { "no" }
    );

    // The numbers have no end; as many are taken as are wanted.
    let mut results = pool.imap(analyse, 1..).into_stream();
    for number in 1..=5 {
        match results.next().await {
            Some(Ok(result)) => println!("{number}! is {result}"),
            Some(Err(TaskError::Lost(_))) => println!("{number}! was lost with its worker"),
            other => println!("{number}! gave {other:?}"),
        }
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
