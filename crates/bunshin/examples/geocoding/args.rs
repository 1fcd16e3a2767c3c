//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bunshin::StartMethod;

use crate::{google, nominatim};

pub(crate) const HELP: &str = "\
Finds the address, latitude and longitude of places, with a pool of processes.

Usage: geocoding [OPTIONS] [PLACE]...

Without places it looks up the ten of the article: Reykjavik, Vien, Zadar, Venice,
Wrocow, Bolognia, Berlin, Dehil, New York, Osaka.

  PLACE                  a city, or \"City, Country\"; misspellings are forgiven

Places and processes:
  -f, --file FILE        also read places from FILE, one a line; - is standard input
  -j, --jobs N           processes (4; for the public Nominatim server 1)
      --start-method M   fork, spawn or forkserver (forkserver)

Geocoders (one of):
      --gazetteer FILE   a GeoNames dump, such as cities500.txt, instead of the
                         embedded table of cities
      --google           Google's Geocoding API, with the key in GOOGLE_MAPS_API_KEY
      --google-url URL   the same at another address
      --nominatim URL    a Nominatim server

Web services:
      --rate N           requests a second, over all processes (Google 50, the public
                         Nominatim server 1, others without limit)
      --timeout SECONDS  for one request (10)
      --retries N        when the service is busy (3)

Output:
      --json             one JSON object a line: query, address, lat, lng, or error
      --progress         show progress on standard error also for a short list (a bar
                         is shown from 100 places on) or without a terminal
  -h, --help             this text

Exit status: 0 if every place was found, 1 if not, 2 if nothing could be looked up.

The embedded table was written for this program. Dumps of GeoNames are licensed
CC BY 4.0: whoever passes their rows on must credit geonames.org. Answers of Nominatim
are data of OpenStreetMap contributors, under the ODbL.
";

/// What to do.
pub(crate) enum Command {
    Help,
    Geocode(Args),
}

/// What to look up, where and how.
pub(crate) struct Args {
    pub(crate) places: Vec<String>,
    /// Further places; `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) n_workers: usize,
    pub(crate) start_method: StartMethod,
    pub(crate) source: Source,
    pub(crate) per_second: Option<f64>,
    pub(crate) timeout: Duration,
    pub(crate) n_retries: u32,
    pub(crate) json: bool,
    pub(crate) progress: bool,
}

/// Which geocoder.
#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    Embedded,
    Gazetteer(PathBuf),
    Google { url: String },
    Nominatim { url: String },
}

/// The command line makes no sense.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("unknown option `{0}`")]
    Unknown(String),
    #[error("option `{0}` needs a value")]
    NoValue(String),
    #[error("option `{0}` takes no value")]
    Value(String),
    #[error("`{value}` is not valid for `{option}`: {expected}")]
    Invalid {
        option: String,
        value: String,
        expected: &'static str,
    },
    #[error("`{0}` is not UTF-8")]
    NotUtf8(String),
    #[error("choose one of --gazetteer, --google and --nominatim")]
    TwoSources,
}

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut parsed = Args {
        places: Vec::new(),
        files: Vec::new(),
        n_workers: 0,
        start_method: StartMethod::Forkserver,
        source: Source::Embedded,
        per_second: None,
        timeout: Duration::from_secs(10),
        n_retries: 3,
        json: false,
        progress: false,
    };
    let mut google_url = None;
    let mut args = args.into_iter();
    let mut only_places = false;
    while let Some(arg) = args.next() {
        let arg = utf8(arg)?;
        if only_places || !arg.starts_with('-') || arg == "-" {
            parsed.places.push(arg);
            continue;
        }
        if arg == "--" {
            only_places = true;
            continue;
        }
        let mut option = Opt::new(&arg, &mut args);
        match option.name {
            "-h" | "--help" => return Ok(Command::Help),
            "-f" | "--file" => parsed.files.push(option.value()?.into()),
            "-j" | "--jobs" => {
                parsed.n_workers = option.number("a number from 1", |n| n >= 1)?;
            }
            "--start-method" => parsed.start_method = option.start_method()?,
            "--gazetteer" => {
                let file = option.value()?.into();
                choose(&mut parsed.source, Source::Gazetteer(file))?;
            }
            "--google" => choose(
                &mut parsed.source,
                Source::Google {
                    url: google::URL.into(),
                },
            )?,
            "--google-url" => google_url = Some(option.url()?),
            "--nominatim" => {
                let url = option.url()?;
                choose(&mut parsed.source, Source::Nominatim { url })?;
            }
            "--rate" => {
                let valid = |n: f64| n.is_finite() && n > 0.0;
                parsed.per_second = Some(option.number("a number above 0", valid)?);
            }
            "--timeout" => {
                let valid = |n: f64| n > 0.0 && n <= 86_400.0;
                let seconds = option.number("seconds above 0, at most a day", valid)?;
                parsed.timeout = Duration::from_secs_f64(seconds);
            }
            "--retries" => {
                parsed.n_retries = option.number("a number from 0 to 10", |n| n <= 10)?
            }
            "--json" => parsed.json = true,
            "--progress" => parsed.progress = true,
            _ => return Err(UsageError::Unknown(option.name.to_owned())),
        }
        option.finish()?;
    }
    if let Some(url) = google_url {
        if !matches!(parsed.source, Source::Google { .. }) {
            choose(&mut parsed.source, Source::Google { url: String::new() })?;
        }
        parsed.source = Source::Google { url };
    }
    if parsed.n_workers == 0 {
        let alone =
            matches!(&parsed.source, Source::Nominatim { url } if nominatim::is_public(url));
        parsed.n_workers = if alone { 1 } else { 4 };
    }
    Ok(Command::Geocode(parsed))
}

fn choose(source: &mut Source, choice: Source) -> Result<(), UsageError> {
    if *source != Source::Embedded && *source != choice {
        return Err(UsageError::TwoSources);
    }
    *source = choice;
    Ok(())
}

fn utf8(arg: OsString) -> Result<String, UsageError> {
    arg.into_string()
        .map_err(|arg| UsageError::NotUtf8(arg.to_string_lossy().into_owned()))
}

/// One option, with the value attached to it or the arguments it may take one from.
struct Opt<'a, I> {
    name: &'a str,
    attached: Option<&'a str>,
    rest: &'a mut I,
}

impl<'a, I: Iterator<Item = OsString>> Opt<'a, I> {
    /// Splits `--name=value` and `-nvalue`.
    fn new(arg: &'a str, rest: &'a mut I) -> Self {
        let short_len = arg.chars().take(2).map(char::len_utf8).sum();
        let (name, attached) = match arg.split_once('=') {
            Some((name, value)) if arg.starts_with("--") => (name, Some(value)),
            _ if arg.starts_with("--") => (arg, None),
            _ => match arg.split_at(short_len) {
                (name, "") => (name, None),
                (name, value) => (name, Some(value)),
            },
        };
        Opt {
            name,
            attached,
            rest,
        }
    }

    fn value(&mut self) -> Result<OsString, UsageError> {
        match self.attached.take() {
            Some(value) => Ok(value.into()),
            None => self
                .rest
                .next()
                .ok_or_else(|| UsageError::NoValue(self.name.to_owned())),
        }
    }

    fn number<N: std::str::FromStr + Copy>(
        &mut self,
        expected: &'static str,
        valid: impl Fn(N) -> bool,
    ) -> Result<N, UsageError> {
        let value = utf8(self.value()?)?;
        match value.parse() {
            Ok(number) if valid(number) => Ok(number),
            _ => Err(self.invalid(value, expected)),
        }
    }

    fn start_method(&mut self) -> Result<StartMethod, UsageError> {
        let value = utf8(self.value()?)?;
        value
            .parse()
            .map_err(|_| self.invalid(value, "fork, spawn or forkserver"))
    }

    fn url(&mut self) -> Result<String, UsageError> {
        let value = utf8(self.value()?)?;
        let valid = value.parse::<ureq::http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        if valid {
            Ok(value)
        } else {
            Err(self.invalid(value, "an address that starts with http:// or https://"))
        }
    }

    fn invalid(&self, value: String, expected: &'static str) -> UsageError {
        UsageError::Invalid {
            option: self.name.to_owned(),
            value,
            expected,
        }
    }

    /// Fails if a value was attached that the option does not take.
    fn finish(self) -> Result<(), UsageError> {
        match self.attached {
            Some(_) if self.name.starts_with("--") => Err(UsageError::Value(self.name.to_owned())),
            // `-jx` is taken up by -j; what is left over is an unknown bundle.
            Some(rest) => Err(UsageError::Unknown(format!("{}{rest}", self.name))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::{Args, Command, Source, UsageError, parse};

    fn args(words: &[&str]) -> Result<Args, UsageError> {
        match parse(words.iter().map(Into::into))? {
            Command::Geocode(args) => Ok(args),
            Command::Help => panic!("asked for help"),
        }
    }

    #[test]
    fn options_may_stand_anywhere_and_carry_their_value() {
        let words = [
            "Oslo",
            "-j8",
            "--timeout=2.5",
            "-f",
            "-",
            "--rate",
            "3",
            "--",
            "-Bern",
        ];
        let args = args(&words).unwrap();
        assert_eq!(args.places, ["Oslo", "-Bern"]);
        assert_eq!(args.n_workers, 8);
        assert_eq!(args.timeout, Duration::from_millis(2500));
        assert_eq!(args.files, [Path::new("-")]);
        assert_eq!(args.per_second, Some(3.0));
        assert_eq!(args.source, Source::Embedded);
    }

    #[test]
    fn another_address_of_google_means_google() {
        for words in [
            &["--google-url", "http://localhost:1"][..],
            &["--google-url=http://localhost:1", "--google"],
            &["--google", "--google-url", "http://localhost:1"],
        ] {
            let url = "http://localhost:1".to_owned();
            assert_eq!(args(words).unwrap().source, Source::Google { url });
        }
    }

    #[test]
    fn the_public_server_gets_one_worker_unless_told_otherwise() {
        let public = ["--nominatim", "https://nominatim.openstreetmap.org"];
        assert_eq!(args(&public).unwrap().n_workers, 1);
        assert_eq!(args(&["-j2", public[0], public[1]]).unwrap().n_workers, 2);
        assert_eq!(
            args(&["--nominatim", "http://localhost:8080"])
                .unwrap()
                .n_workers,
            4
        );
        assert_eq!(args(&[]).unwrap().n_workers, 4);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |words: &[&str]| match args(words) {
            Ok(_) => panic!("{words:?} was accepted"),
            Err(error) => error.to_string(),
        };
        assert_eq!(refused(&["--frobnicate"]), "unknown option `--frobnicate`");
        assert_eq!(refused(&["-x"]), "unknown option `-x`");
        assert_eq!(refused(&["-é"]), "unknown option `-é`");
        assert_eq!(refused(&["-j"]), "option `-j` needs a value");
        assert_eq!(
            refused(&["-j0"]),
            "`0` is not valid for `-j`: a number from 1"
        );
        assert_eq!(refused(&["--json=yes"]), "option `--json` takes no value");
        assert_eq!(
            refused(&["--rate", "NaN"]),
            "`NaN` is not valid for `--rate`: a number above 0"
        );
        assert!(refused(&["--timeout", "0"]).contains("`0` is not valid"));
        assert!(refused(&["--retries", "-1"]).contains("`-1` is not valid"));
        assert!(refused(&["--start-method", "thread"]).ends_with("fork, spawn or forkserver"));
        for url in ["localhost", "ftp://localhost", "http://", ""] {
            assert!(
                refused(&["--nominatim", url]).contains("http:// or https://"),
                "{url}"
            );
        }
        let two = "choose one of --gazetteer, --google and --nominatim";
        assert_eq!(refused(&["--google", "--gazetteer", "x"]), two);
        assert_eq!(
            refused(&["--nominatim", "http://a", "--google-url", "http://b"]),
            two
        );
    }
}
