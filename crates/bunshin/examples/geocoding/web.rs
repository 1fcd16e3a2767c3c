//! What the two web geocoders share: one HTTP client per worker, with a time-out, a
//! bound on what it reads, a limit on requests per second, and patience with a
//! service that is busy.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::StatusCode;

use crate::pace::Pace;
use crate::place::GeocodeError;

/// Both services ask that a program says what it is.
const USER_AGENT: &str = concat!("bunshin-geocoding-example/", env!("CARGO_PKG_VERSION"));

/// An answer takes a few kilobytes; a thousand times that is a fault.
const MAX_BODY_BYTES: u64 = 1 << 20;

const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that a service may ask for with `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A client of one service. Travels to each worker, which connects for itself.
#[derive(Serialize, Deserialize)]
pub(crate) struct Client {
    service: String,
    timeout: Duration,
    n_retries: u32,
    pace: Option<Pace>,
    #[serde(skip)]
    agent: OnceLock<Agent>,
}

/// What a service's answer means.
pub(crate) enum Answer<T> {
    Final(T),
    /// The service has no time now, though another time it may.
    Busy(GeocodeError),
}

/// A request that brought no answer, and the pause that the service asks for.
struct Failure {
    error: GeocodeError,
    busy: bool,
    pause: Option<Duration>,
}

impl From<GeocodeError> for Failure {
    fn from(error: GeocodeError) -> Failure {
        Failure {
            error,
            busy: false,
            pause: None,
        }
    }
}

impl Client {
    pub(crate) fn new(
        service: &str,
        timeout: Duration,
        n_retries: u32,
        pace: Option<Pace>,
    ) -> Client {
        Client {
            service: service.to_owned(),
            timeout,
            n_retries,
            pace,
            agent: OnceLock::new(),
        }
    }

    /// Gets `url` with `parameters` and has `understand` read the answer.
    ///
    /// A busy service (status 429 or 503, or by its own words) is asked again, with
    /// twice the pause each time; anything else that fails is final.
    pub(crate) fn get<T>(
        &self,
        url: &str,
        parameters: &[(&str, &str)],
        understand: impl Fn(&[u8]) -> Result<Answer<T>, GeocodeError>,
    ) -> Result<T, GeocodeError> {
        let mut backoff = FIRST_PAUSE;
        let mut n_left = self.n_retries;
        loop {
            let failure = match self.attempt(url, parameters, &understand) {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            if !failure.busy || n_left == 0 {
                return Err(failure.error);
            }
            n_left -= 1;
            let pause = failure.pause.unwrap_or(backoff).min(LONGEST_PAUSE);
            backoff *= 2;
            match &self.pace {
                // The other workers are not to press a busy service meanwhile.
                Some(pace) => pace.hold_off(pause).map_err(|error| self.unpaced(&error))?,
                None => thread::sleep(pause),
            }
        }
    }

    fn attempt<T>(
        &self,
        url: &str,
        parameters: &[(&str, &str)],
        understand: impl Fn(&[u8]) -> Result<Answer<T>, GeocodeError>,
    ) -> Result<T, Failure> {
        if let Some(pace) = &self.pace {
            pace.wait().map_err(|error| self.unpaced(&error))?;
        }
        let mut response = self
            .agent()
            .get(url)
            .query_pairs(parameters.iter().copied())
            .call()
            .map_err(|error| self.broken(error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure {
                error: GeocodeError::Status {
                    service: self.service.clone(),
                    status: status.as_u16(),
                },
                busy: matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                ),
                pause: response
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                    .map(Duration::from_secs),
            });
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_BODY_BYTES)
            .read_to_vec()
            .map_err(|error| self.broken(error))?;
        match understand(&body)? {
            Answer::Final(result) => Ok(result),
            Answer::Busy(error) => Err(Failure {
                error,
                busy: true,
                pause: None,
            }),
        }
    }

    /// The connection is made on first use, in the worker: a socket opened before a
    /// fork would be shared by all of them.
    fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| {
            Agent::config_builder()
                .user_agent(USER_AGENT)
                .timeout_global(Some(self.timeout))
                .http_status_as_error(false)
                .build()
                .into()
        })
    }

    /// Parses an answer; what does not fit is the service's fault.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&self, body: &'a [u8]) -> Result<T, GeocodeError> {
        serde_json::from_slice(body).map_err(|error| self.malformed(error.to_string()))
    }

    pub(crate) fn malformed(&self, reason: impl Into<String>) -> GeocodeError {
        GeocodeError::Malformed {
            service: self.service.clone(),
            reason: reason.into(),
        }
    }

    pub(crate) fn refused(&self, status: String, message: Option<String>) -> GeocodeError {
        GeocodeError::Refused {
            service: self.service.clone(),
            status,
            message,
        }
    }

    /// Without the shared limit no request may go out.
    fn unpaced(&self, error: &bunshin::Error) -> GeocodeError {
        GeocodeError::Unreachable {
            service: self.service.clone(),
            reason: format!("no turn to be had: {error}"),
        }
    }

    fn broken(&self, error: ureq::Error) -> GeocodeError {
        let service = self.service.clone();
        match error {
            ureq::Error::Timeout(_) => GeocodeError::TimedOut {
                service,
                seconds: self.timeout.as_secs_f64(),
            },
            ureq::Error::BodyExceedsLimit(limit) => {
                self.malformed(format!("more than {limit} bytes"))
            }
            error => GeocodeError::Unreachable {
                service,
                reason: error.to_string(),
            },
        }
    }
}
