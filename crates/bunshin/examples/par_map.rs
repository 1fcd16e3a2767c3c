//! A closure that borrows, over a slice, in forked processes: one of them crashes.
//!
//! `cargo run --example par_map`

use bunshin::TaskError;

struct City {
    name: &'static str,
    east: f64,
    north: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let city = |name, east, north| City { name, east, north };
    let cities = [
        city("Aston", 0.0, 0.0),
        city("Bray", 3.0, 4.0),
        city("Coln", 30.0, 40.0),
        city("Dell", 6.0, 8.0),
    ];
    // Neither of these travels: each process is a copy of this one.
    let home = &cities[0];
    let distance = |city: &City| (city.east - home.east).hypot(city.north - home.north);

    let distances = bunshin::scope(|scope| scope.par_map(&cities, distance))?;
    for (city, distance) in cities.iter().zip(&distances) {
        println!("{} to {}: {distance}", home.name, city.name);
    }

    let limit = 45.0;
    let careful = bunshin::scope(|scope| {
        scope.par().workers(2).map_each(&cities, |city| {
            if distance(city) > limit {
                std::process::abort();
            }
            city.name.len()
        })
    });
    for (city, result) in cities.iter().zip(careful) {
        match result {
            Ok(length) => println!("{}: {length} letters", city.name),
            Err(TaskError::Lost(_)) => println!("{}: lost with its process", city.name),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
