//! A web service on this machine, to answer what the tool asks.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    parameters: Vec<(String, String)>,
    pub(crate) user_agent: String,
    pub(crate) at: Instant,
}

impl Request {
    pub(crate) fn parameter(&self, name: &str) -> &str {
        let found = self
            .parameters
            .iter()
            .find(|(parameter, _)| parameter == name);
        found.map_or("", |(_, value)| value)
    }
}

/// What the service does with a request.
pub(crate) enum Reply {
    Json(Json),
    Bytes(Vec<u8>),
    Status(&'static str, &'static str),
    /// Nothing, until the server ends.
    Silence,
}

/// A server on this machine that remembers what it was asked.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    ends: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// `reply` is given each request and how many came before it.
    pub(crate) fn start(
        reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let (log, end, reply) = (Arc::clone(&requests), Arc::clone(&ends), Arc::new(reply));
        let listener = thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if end.load(Ordering::Acquire) {
                    break;
                }
                let (log, end, reply) = (Arc::clone(&log), Arc::clone(&end), Arc::clone(&reply));
                connections.push(thread::spawn(move || {
                    // The tool may hang up at any time.
                    let _ = serve(stream?, &log, &end, &*reply);
                    std::io::Result::Ok(())
                }));
            }
            for connection in connections {
                let _ = connection.join();
            }
        });
        Server {
            address,
            requests,
            ends,
            listener: Some(listener),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no handler panics").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Wakes the listener, which then sees that it is to end.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Answers one request.
fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    ends: &AtomicBool,
    reply: &dyn Fn(&Request, usize) -> Reply,
) -> std::io::Result<()> {
    let at = Instant::now();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        path: path.to_owned(),
        parameters: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect(),
        user_agent: String::new(),
        at,
    };
    for header in lines {
        let header = header?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("user-agent") {
            request.user_agent = value.trim().to_owned();
        }
    }
    let n_before = {
        let mut log = log.lock().expect("no handler panics");
        log.push(request.clone());
        log.len() - 1
    };
    let (status, headers, body) = match reply(&request, n_before) {
        Reply::Json(json) => ("200 OK", "", json.to_string().into_bytes()),
        Reply::Bytes(bytes) => ("200 OK", "", bytes),
        Reply::Status(status, headers) => (status, headers, Vec::new()),
        Reply::Silence => {
            while !ends.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(5));
            }
            return Ok(());
        }
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(&body)
}

/// Undoes the percent-encoding of a query.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two digits follow");
                u8::from_str_radix(digits, 16).expect("they are hexadecimal")
            }
            (b'+', _) => b' ',
            _ => byte,
        });
    }
    String::from_utf8(bytes).expect("places are sent as UTF-8")
}

/// An answer of Google's, shortened from its documentation.
pub(crate) fn google_match(address: &str, lat: f64, lng: f64) -> Json {
    json!({
        "results": [{
            "address_components": [{"long_name": address, "types": ["locality", "political"]}],
            "formatted_address": address,
            "geometry": {
                "location": {"lat": lat, "lng": lng},
                "location_type": "APPROXIMATE",
            },
            "place_id": "ChIJd8BlQ2BZwokRAFUEcm_qrcA",
            "types": ["locality", "political"],
        }],
        "status": "OK",
    })
}

/// An answer of Nominatim's in the format `jsonv2`, shortened from its documentation.
pub(crate) fn nominatim_match(name: &str, lat: &str, lon: &str) -> Json {
    json!([{
        "place_id": 100_149,
        "licence": "Data © OpenStreetMap contributors, ODbL 1.0.",
        "osm_type": "relation",
        "lat": lat,
        "lon": lon,
        "category": "boundary",
        "display_name": name,
        "boundingbox": ["48.1", "48.3", "16.1", "16.5"],
    }])
}
