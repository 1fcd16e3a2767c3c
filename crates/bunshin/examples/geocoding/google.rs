//! The second geocoder: Google's Geocoding API, as the article uses it.
//!
//! <https://developers.google.com/maps/documentation/geocoding/requests-geocoding>

use serde::{Deserialize, Serialize};

use crate::place::{GeocodeError, Geocoded, Geocoder};
use crate::web::{Answer, Client};

/// The address of the service itself.
pub(crate) const URL: &str = "https://maps.googleapis.com/maps/api/geocode/json";

/// Google asks for no more than 3,000 requests a minute.
pub(crate) const PER_SECOND: f64 = 50.0;

/// A caller of the Geocoding API. No `Debug`: it holds the key.
#[derive(Serialize, Deserialize)]
pub(crate) struct Google {
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) client: Client,
}

#[derive(Deserialize)]
struct Response {
    status: String,
    error_message: Option<String>,
    #[serde(default)]
    results: Vec<Match>,
}

#[derive(Deserialize)]
struct Match {
    formatted_address: String,
    geometry: Geometry,
}

#[derive(Deserialize)]
struct Geometry {
    location: Location,
}

#[derive(Deserialize)]
struct Location {
    lat: f64,
    lng: f64,
}

impl Geocoder for Google {
    fn geocode(&self, place: &str) -> Result<Geocoded, GeocodeError> {
        let parameters = [("address", place), ("language", "en"), ("key", &self.key)];
        self.client
            .get(&self.url, &parameters, |body| self.understand(body))
    }
}

impl Google {
    fn understand(&self, body: &[u8]) -> Result<Answer<Geocoded>, GeocodeError> {
        let response: Response = self.client.parse(body)?;
        let refused = || {
            self.client
                .refused(response.status.clone(), response.error_message)
        };
        match response.status.as_str() {
            "OK" => {}
            "ZERO_RESULTS" => {
                return Err(GeocodeError::NoSuchPlace {
                    closest: Vec::new(),
                });
            }
            // Of the second the documentation says that trying again may succeed.
            "OVER_QUERY_LIMIT" | "UNKNOWN_ERROR" => return Ok(Answer::Busy(refused())),
            _ => return Err(refused()),
        }
        let Some(first) = response.results.into_iter().next() else {
            return Err(self.client.malformed("status OK without results"));
        };
        let Location { lat, lng } = first.geometry.location;
        Geocoded::checked(first.formatted_address, lat, lng)
            .map(Answer::Final)
            .ok_or_else(|| {
                self.client
                    .malformed(format!("{lat}, {lng} is off the globe"))
            })
    }
}
