//! The choice of geocoder: made in the parent, sent to every worker.

use std::env;
use std::error::Error;

use serde::{Deserialize, Serialize};

use crate::args::{Args, Source};
use crate::gazetteer::Gazetteer;
use crate::geonames;
use crate::google::{self, Google};
use crate::nominatim::{self, Nominatim};
use crate::pace::Pace;
use crate::place::Geocoder;
use crate::web::Client;

/// One of the three geocoders, on its way to a worker.
#[derive(Serialize, Deserialize)]
pub(crate) enum Service {
    Gazetteer(Box<Gazetteer>),
    Google(Google),
    Nominatim(Nominatim),
}

impl Service {
    /// Prepares what `args` ask for: reads the table, or finds the key.
    pub(crate) fn open(args: &Args) -> Result<Service, Box<dyn Error>> {
        Ok(match &args.source {
            Source::Embedded => Service::Gazetteer(Box::new(geonames::embedded()?)),
            Source::Gazetteer(path) => Service::Gazetteer(Box::new(geonames::open(path)?)),
            Source::Google { url } => {
                let key = env::var("GOOGLE_MAPS_API_KEY")
                    .ok()
                    .filter(|key| !key.is_empty())
                    .ok_or("--google needs an API key in GOOGLE_MAPS_API_KEY")?;
                let client = client("Google", args, Some(google::PER_SECOND))?;
                Service::Google(Google {
                    url: url.clone(),
                    key,
                    client,
                })
            }
            Source::Nominatim { url } => {
                let limit = nominatim::is_public(url).then_some(nominatim::PUBLIC_PER_SECOND);
                let client = client("Nominatim", args, limit)?;
                Service::Nominatim(Nominatim::new(url, client))
            }
        })
    }

    /// Unpacks the geocoder in the worker.
    pub(crate) fn into_geocoder(self) -> Box<dyn Geocoder> {
        match self {
            Service::Gazetteer(gazetteer) => gazetteer,
            Service::Google(google) => Box::new(google),
            Service::Nominatim(nominatim) => Box::new(nominatim),
        }
    }
}

fn client(name: &str, args: &Args, asked_for: Option<f64>) -> Result<Client, bunshin::Error> {
    let pace = match args.per_second.or(asked_for) {
        Some(per_second) => Some(Pace::new(per_second)?),
        None => None,
    };
    Ok(Client::new(name, args.timeout, args.n_retries, pace))
}
