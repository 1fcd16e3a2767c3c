//! What is asked and what is answered: the trait of the three geocoders, and the
//! types that travel between the pool and its workers.

use serde::{Deserialize, Serialize};

/// Turns the name of a place into its address and position.
pub(crate) trait Geocoder: Send + Sync {
    /// Finds the best match for `place`; what cannot be found is an error, not a guess.
    fn geocode(&self, place: &str) -> Result<Geocoded, GeocodeError>;
}

/// A place that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Geocoded {
    pub(crate) address: String,
    /// Degrees north, -90 to 90.
    pub(crate) latitude: f64,
    /// Degrees east, -180 to 180.
    pub(crate) longitude: f64,
}

impl Geocoded {
    /// Checks a position that came from outside; none if it is not on the globe.
    pub(crate) fn checked(address: String, latitude: f64, longitude: f64) -> Option<Geocoded> {
        let on_globe = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        on_globe.then_some(Geocoded {
            address,
            latitude,
            longitude,
        })
    }
}

/// Why a place was not found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum GeocodeError {
    /// Nothing is called that, nor nearly so.
    #[error("no such place{}", suggestions(closest))]
    NoSuchPlace {
        /// Addresses of what is called most like it, best first.
        closest: Vec<String>,
    },
    /// In "City, Country", the part after the comma is not known.
    #[error("no such country or region: {name}")]
    NoSuchCountry { name: String },
    /// The service did not answer in time.
    #[error("{service}: no answer within {seconds} s")]
    TimedOut { service: String, seconds: f64 },
    /// The service could not be reached, or the connection broke.
    #[error("{service}: {reason}")]
    Unreachable { service: String, reason: String },
    /// The service answered with an HTTP error.
    #[error("{service}: HTTP status {status}")]
    Status { service: String, status: u16 },
    /// The service refused in its own words.
    #[error("{service}: {status}{}", detail(message))]
    Refused {
        service: String,
        status: String,
        message: Option<String>,
    },
    /// The answer is not what the service documents.
    #[error("{service}: unexpected answer: {reason}")]
    Malformed { service: String, reason: String },
}

fn suggestions(closest: &[String]) -> String {
    if closest.is_empty() {
        String::new()
    } else {
        format!(" (closest: {})", closest.join("; "))
    }
}

fn detail(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}
