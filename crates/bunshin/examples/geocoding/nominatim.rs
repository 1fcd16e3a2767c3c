//! The third geocoder: Nominatim, the search of OpenStreetMap, public or one's own.
//!
//! <https://nominatim.org/release-docs/latest/api/Search/> and, for the public
//! server, <https://operations.osmfoundation.org/policies/nominatim/>: at most one
//! request a second, from one thread, by a program that says what it is.

use serde::{Deserialize, Serialize};

use crate::place::{GeocodeError, Geocoded, Geocoder};
use crate::web::{Answer, Client};

/// The server whose usage policy is meant above.
const PUBLIC_HOST: &str = "nominatim.openstreetmap.org";

/// What that policy allows over all workers together.
pub(crate) const PUBLIC_PER_SECOND: f64 = 1.0;

/// A caller of a Nominatim server.
#[derive(Serialize, Deserialize)]
pub(crate) struct Nominatim {
    url: String,
    client: Client,
}

/// One match, in the `jsonv2` format, where numbers are strings.
#[derive(Deserialize)]
struct Match {
    display_name: String,
    lat: String,
    lon: String,
}

/// Whether `url` is the public server, which has few resources for many people.
pub(crate) fn is_public(url: &str) -> bool {
    url.parse::<ureq::http::Uri>().is_ok_and(|uri| {
        uri.host()
            .is_some_and(|host| host.eq_ignore_ascii_case(PUBLIC_HOST))
    })
}

impl Nominatim {
    /// `url` is that of the server, with or without `/search` at its end.
    pub(crate) fn new(url: &str, client: Client) -> Nominatim {
        let server = url.trim_end_matches('/');
        let server = server.strip_suffix("/search").unwrap_or(server);
        Nominatim {
            url: format!("{server}/search"),
            client,
        }
    }

    fn understand(&self, body: &[u8]) -> Result<Answer<Geocoded>, GeocodeError> {
        let matches: Vec<Match> = self.client.parse(body)?;
        let Some(first) = matches.into_iter().next() else {
            return Err(GeocodeError::NoSuchPlace {
                closest: Vec::new(),
            });
        };
        let position = first.lat.parse().ok().zip(first.lon.parse().ok());
        position
            .and_then(|(lat, lon)| Geocoded::checked(first.display_name, lat, lon))
            .map(Answer::Final)
            .ok_or_else(|| {
                let (lat, lon) = (first.lat, first.lon);
                self.client
                    .malformed(format!("`{lat}`, `{lon}` is no position"))
            })
    }
}

impl Geocoder for Nominatim {
    fn geocode(&self, place: &str) -> Result<Geocoded, GeocodeError> {
        let parameters = [
            ("q", place),
            ("format", "jsonv2"),
            ("limit", "1"),
            ("accept-language", "en"),
        ];
        self.client
            .get(&self.url, &parameters, |body| self.understand(body))
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn the_public_server_is_told_from_ones_own() {
        assert!(is_public("https://nominatim.openstreetmap.org"));
        assert!(is_public("https://Nominatim.OpenStreetMap.org:443/search"));
        assert!(!is_public("http://127.0.0.1:8080"));
        assert!(!is_public(
            "https://example.org/nominatim.openstreetmap.org"
        ));
        assert!(!is_public(
            "https://nominatim.openstreetmap.org.example.org"
        ));
    }
}
