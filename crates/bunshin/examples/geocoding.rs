//! Geocodes places with a pool of processes, as the article's last program does.
//!
//! `cargo run --release --example geocoding` looks up the article's ten places, four
//! of them misspelt, with four processes. `-- --help` says what else it can do.
//!
//! The pool is all in this file: [`run`] builds it and maps the places,
//! [`connect`] runs once in every worker, [`fetch_place`] runs for every place.

#[path = "geocoding/areas.rs"]
mod areas;
#[path = "geocoding/args.rs"]
mod args;
#[path = "geocoding/countries.rs"]
mod countries;
#[path = "geocoding/fold.rs"]
mod fold;
#[path = "geocoding/fuzzy.rs"]
mod fuzzy;
#[path = "geocoding/gazetteer.rs"]
mod gazetteer;
#[path = "geocoding/geonames.rs"]
mod geonames;
#[path = "geocoding/google.rs"]
mod google;
#[path = "geocoding/input.rs"]
mod input;
#[path = "geocoding/nominatim.rs"]
mod nominatim;
#[path = "geocoding/output.rs"]
mod output;
#[path = "geocoding/pace.rs"]
mod pace;
#[path = "geocoding/place.rs"]
mod place;
#[path = "geocoding/progress.rs"]
mod progress;
#[path = "geocoding/regions.rs"]
mod regions;
#[path = "geocoding/service.rs"]
mod service;
#[path = "geocoding/web.rs"]
mod web;

use std::env;
use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use bunshin::Pool;

use args::{Args, Command};
use output::Outcome;
use place::{GeocodeError, Geocoded, Geocoder};
use progress::Progress;
use service::Service;

const PLACES: [&str; 10] = [
    "Reykjavik",
    "Vien",
    "Zadar",
    "Venice",
    "Wrocow",
    "Bolognia",
    "Berlin",
    "Dehil",
    "New York",
    "Osaka",
];

/// Each worker's geocoder.
static GEOCODER: OnceLock<Box<dyn Geocoder>> = OnceLock::new();

/// Runs once in every worker, before its first task.
fn connect(service: Service) {
    GEOCODER.get_or_init(|| service.into_geocoder());
}

/// Runs in a worker for every place.
fn fetch_place(place: String) -> Result<Geocoded, GeocodeError> {
    let geocoder = GEOCODER.get().expect("every worker has been connected");
    geocoder.geocode(&place)
}

/// Looks the places up; true if all were found.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let places = places(args)?;
    let service = Service::open(args)?;
    let pool = Pool::builder()
        .workers(args.n_workers)
        .start_method(args.start_method)
        .initializer(connect, (service,))
        .build()?;

    let mut progress = Progress::new(places.len(), args.progress);
    let outcomes = pool
        .batch()
        .progress(|done, total| progress.show(done, total))
        .map_each(fetch_place, places.iter().cloned());
    progress.finish();

    present(args, &places, &outcomes)?;
    Ok(outcomes.iter().all(|outcome| matches!(outcome, Ok(Ok(_)))))
}

/// The places named on the command line and in files, or the article's.
fn places(args: &Args) -> Result<Vec<String>, input::InputError> {
    if args.places.is_empty() && args.files.is_empty() {
        return Ok(PLACES.map(String::from).to_vec());
    }
    let mut places = args.places.clone();
    for file in &args.files {
        input::read_places(file, &mut places)?;
    }
    Ok(places)
}

/// Prints a line for each place, in order.
fn present(args: &Args, places: &[String], outcomes: &[Outcome]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for (place, outcome) in places.iter().zip(outcomes) {
        if args.json {
            output::json(&mut out, place, outcome)?;
        } else {
            output::text(&mut out, place, outcome)?;
        }
    }
    out.flush()
}

fn main() -> ExitCode {
    let args = match args::parse(env::args_os().skip(1)) {
        Ok(Command::Geocode(args)) => args,
        Ok(Command::Help) => {
            // A reader that leaves early has seen enough.
            let _ = io::stdout().write_all(args::HELP.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("geocoding: {error}\nTry `geocoding --help`.");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Whoever stopped reading, as in `geocoding | head`, knows that they did.
            let broken_pipe = error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
            if broken_pipe {
                return ExitCode::SUCCESS;
            }
            eprintln!("geocoding: {error}");
            ExitCode::from(2)
        }
    }
}
