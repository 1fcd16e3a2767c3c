//! Prints the results: a line for each place, in the order of the places.

use std::io::{self, Write};

use bunshin::TaskError;
use serde::Serialize;

use crate::place::{GeocodeError, Geocoded};

/// What became of one place: an answer, the geocoder's error, or the pool's.
pub(crate) type Outcome = Result<Result<Geocoded, GeocodeError>, TaskError>;

/// Writes the line of one place, in the article's format.
pub(crate) fn text(out: &mut impl Write, place: &str, outcome: &Outcome) -> io::Result<()> {
    match outcome {
        Ok(Ok(Geocoded {
            address,
            latitude,
            longitude,
        })) => {
            writeln!(
                out,
                "{}, {latitude:6.2}, {longitude:6.2}",
                one_line(address)
            )
        }
        Ok(Err(error)) => writeln!(out, "{}: {}", one_line(place), one_line(&error.to_string())),
        Err(error) => writeln!(out, "{}: {}", one_line(place), one_line(&error.to_string())),
    }
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Found {
        query: &'a str,
        address: &'a str,
        lat: f64,
        lng: f64,
    },
    NotFound {
        query: &'a str,
        error: String,
    },
}

/// Writes the JSON object of one place.
pub(crate) fn json(out: &mut impl Write, query: &str, outcome: &Outcome) -> io::Result<()> {
    let line = match outcome {
        Ok(Ok(found)) => Line::Found {
            query,
            address: &found.address,
            lat: found.latitude,
            lng: found.longitude,
        },
        Ok(Err(error)) => Line::NotFound {
            query,
            error: error.to_string(),
        },
        Err(error) => Line::NotFound {
            query,
            error: error.to_string(),
        },
    };
    writeln!(out, "{}", serde_json::to_string(&line)?)
}

/// Text from outside stays on its line and does not command the terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
