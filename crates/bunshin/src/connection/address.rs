//! Where a listener is.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::network::Place;

/// Bytes of a path or name that the system takes.
const NAME_MAX: usize = 107;

/// Where a [`Listener`](crate::Listener) waits, or where a connection comes from.
///
/// # Shape and units
/// As text:
///
/// | Text | Means |
/// |---|---|
/// | `/run/app.sock`, `./app.sock`, `unix:app.sock` | a socket in the file system; up to 107 bytes |
/// | `@app` | an abstract Unix socket (Linux): no file, up to 107 bytes |
/// | `@` | an abstract socket whose name the system chooses |
/// | `localhost:6000`, `127.0.0.1:6000`, `[::1]:6000` | TCP; port 0 is one that the system chooses |
///
/// # Source
/// `unix(7)`, `ip(7)`; CPython's address formats.
///
/// # Examples
/// ```
/// use bunshin::Address;
///
/// let address: Address = "[::1]:6000".parse()?;
/// assert_eq!(address, Address::Tcp("::1".into(), 6000));
/// assert_eq!(address.to_string(), "[::1]:6000");
/// assert_eq!(Address::try_from("/run/app.sock")?, Address::Path("/run/app.sock".into()));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A Unix socket with a file.
    Path(PathBuf),
    /// A Unix socket with a name that is no file. Everybody on the machine who shares the
    /// network namespace can connect to it, so that it wants a key.
    Abstract(Vec<u8>),
    /// A Unix socket without a name: most clients are there. Nobody can connect to it.
    Unnamed,
    /// A host, by name or number, and a port.
    Tcp(String, u16),
}

impl Address {
    /// The places that this may be, in the order they are to be tried. Asks the system's
    /// resolver for names of hosts.
    pub(crate) fn places(&self) -> Result<Vec<Place>> {
        let too_long = |len: usize| {
            (len > NAME_MAX).then(|| {
                invalid(format!(
                    "the address {self} has {len} bytes; {NAME_MAX} is the most"
                ))
            })
        };
        match self {
            Self::Path(path) => {
                let bytes = path.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.contains(&0) {
                    return Err(invalid(format!("{path:?} is no path for a socket")));
                }
                too_long(bytes.len()).map_or_else(|| Ok(vec![Place::Path(path.clone())]), Err)
            }
            // Bound without a name, a Unix socket gets an abstract one that is free.
            Self::Abstract(name) if name.is_empty() => Ok(vec![Place::Unnamed]),
            Self::Abstract(name) => {
                too_long(name.len()).map_or_else(|| Ok(vec![Place::Abstract(name.clone())]), Err)
            }
            Self::Unnamed => Ok(vec![Place::Unnamed]),
            Self::Tcp(host, port) => {
                let found = (host.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(|error| Error::os(format!("look up the host of {self}"), error))?;
                let places: Vec<Place> = found.map(Place::Inet).collect();
                if places.is_empty() {
                    return Err(invalid(format!("the host of {self} has no address")));
                }
                Ok(places)
            }
        }
    }
}

impl From<Place> for Address {
    fn from(place: Place) -> Self {
        match place {
            Place::Path(path) => Self::Path(path),
            Place::Abstract(name) => Self::Abstract(name),
            Place::Unnamed => Self::Unnamed,
            Place::Inet(address) => address.into(),
        }
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidInput, why)
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Path(path.into()));
        }
        if let Some(name) = text.strip_prefix(['@', '\0']) {
            return Ok(Self::Abstract(name.as_bytes().to_vec()));
        }
        if text.contains('/') {
            return Ok(Self::Path(text.into()));
        }
        let wrong = || {
            invalid(format!(
                "{text:?} is no address: host:port, a path with a slash, or @name"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(inside) => inside.ok_or_else(wrong)?,
            // "::1:80" would be guessing where the port begins.
            None if host.is_empty() || host.contains(':') => return Err(wrong()),
            None => host,
        };
        Ok(Self::Tcp(host.to_owned(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) if path.as_os_str().as_bytes().contains(&b'/') => {
                write!(f, "{}", path.display())
            }
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("an unnamed socket"),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl TryFrom<&str> for Address {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<&String> for Address {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self> {
        text.parse()
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<OsString> for Address {
    /// A path; a NUL byte in front makes it an abstract name, as in CPython.
    fn from(text: OsString) -> Self {
        let bytes = text.into_vec();
        match bytes.strip_prefix(b"\0") {
            Some(name) => Self::Abstract(name.to_vec()),
            None => Self::Path(OsString::from_vec(bytes).into()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address.ip().to_string(), address.port())
    }
}

impl From<(&str, u16)> for Address {
    /// An empty host stands for all of the machine's addresses, as in CPython.
    fn from((host, port): (&str, u16)) -> Self {
        if host.is_empty() {
            return (Ipv4Addr::UNSPECIFIED, port).into();
        }
        Self::Tcp(host.to_owned(), port)
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from((host, port): (IpAddr, u16)) -> Self {
        Self::Tcp(host.to_string(), port)
    }
}

impl From<(Ipv4Addr, u16)> for Address {
    fn from((host, port): (Ipv4Addr, u16)) -> Self {
        Self::Tcp(host.to_string(), port)
    }
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_address_are_the_same() {
        for (text, address) in [
            ("/tmp/a:b", Address::Path("/tmp/a:b".into())),
            ("unix:name", Address::Path("name".into())),
            ("@name", Address::Abstract(b"name".to_vec())),
            ("@", Address::Abstract(Vec::new())),
            ("host:80", Address::Tcp("host".into(), 80)),
            ("[fe80::1]:0", Address::Tcp("fe80::1".into(), 0)),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "host",
            ":80",
            "host:port",
            "host:65536",
            "::1:80",
            "[::1:80",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn names_that_the_system_would_cut_are_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for address in [
            Address::Path(long.clone().into()),
            Address::Abstract(long.into_bytes()),
            Address::Path("".into()),
            Address::Path("a\0b".into()),
        ] {
            let error = address.places().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{address}");
        }
    }
}
