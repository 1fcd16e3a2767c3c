//! A child changes a shared value and a shared array, and the parent sees it.
//!
//! `cargo run --example value_array [-- --start-method fork|spawn|forkserver]`

use bunshin::{Array, Process, StartMethod, Value, start_method};

// The article's own number, not a careless constant.
#[allow(clippy::approx_constant)]
fn work(number: Value<f64>, numbers: Array<i32>) -> Result<(), String> {
    number.set(3.141592).map_err(|error| error.to_string())?;
    for element in numbers
        .lock()
        .map_err(|error| error.to_string())?
        .iter_mut()
    {
        *element = -*element;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = Value::new(0.0)?;
    let numbers = Array::from_slice(&(0..10).collect::<Vec<i32>>())?;

    let child = Process::builder()
        .start_method(chosen()?)
        .start(work, (number.clone(), numbers.clone()))?;
    child.result()??;

    println!("{}", number.get()?);
    println!("{:?}", numbers.to_vec()?);
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
