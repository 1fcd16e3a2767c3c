//! Children fill the rows of a shared matrix.
//!
//! `cargo run --features ndarray --example ndarray [-- --start-method fork|spawn|forkserver]`

use bunshin::{Array, Process, StartMethod, start_method};

const SHAPE: (usize, usize) = (3, 4);

fn fill(matrix: Array<f64>, row: usize) -> Result<(), String> {
    let mut guard = matrix.lock().map_err(|error| error.to_string())?;
    let mut view = guard.view_mut(SHAPE).map_err(|error| error.to_string())?;
    for (column, element) in view.row_mut(row).iter_mut().enumerate() {
        *element = (row * 10 + column) as f64;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let method = chosen()?;
    let matrix = Array::<f64>::new(SHAPE.0 * SHAPE.1)?;
    let children = (0..SHAPE.0)
        .map(|row| {
            let child = Process::builder().start_method(method);
            child.start(fill, (matrix.clone(), row))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for child in children {
        child.result()??;
    }
    let guard = matrix.lock()?;
    let view = guard.view(SHAPE)?;
    println!("{view}");
    println!("column 1: {}", view.column(1));
    println!("sum: {}", view.sum());
    Ok(())
}

/// The start method that the command line asks for.
fn chosen() -> bunshin::Result<StartMethod> {
    let named = std::env::args()
        .skip_while(|argument| argument != "--start-method")
        .nth(1);
    named.map_or(Ok(start_method()), |name| name.parse())
}
