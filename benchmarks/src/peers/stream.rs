//! Bunshin's connections to other programs, over Unix sockets, TCP and TLS: `StreamConnection`.

use std::os::unix::net::UnixStream;

use bunshin::{Client, Listener, StreamConnection, tls};

use crate::measure::Result;
use crate::workload::Work;
use crate::workload::link::{self, Bytes, Link};

struct Stream(StreamConnection);

impl Link for Stream {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.0.send_bytes(message)?)
    }

    fn receive<T>(&mut self, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        Ok(look(&self.0.recv_bytes()?))
    }
}

/// `send_bytes` and `recv_bytes`.
pub fn bytes(work: &Work) -> Result<f64> {
    let (near, far) = UnixStream::pair()?;
    link::forked_bytes(work, Stream(near.into()), Stream(far.into()))
}

const CERTIFICATE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crates/bunshin/tests/listener/tls.pem"
);
const PRIVATE_KEY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crates/bunshin/tests/listener/tls.key"
);

/// The same over TCP on loopback; both sides have shown the key.
pub fn tcp(work: &Work) -> Result<f64> {
    remote(work, false)
}

/// As [`tcp`], and under TLS.
pub fn under_tls(work: &Work) -> Result<f64> {
    remote(work, true)
}

fn remote(work: &Work, is_secret: bool) -> Result<f64> {
    let mut listener = Listener::builder().authkey("a key");
    let mut client = Client::builder().authkey("a key");
    if is_secret {
        listener = listener.tls(tls::server_config(CERTIFICATE, PRIVATE_KEY)?);
        client = client.tls("localhost", tls::client_config(CERTIFICATE)?)?;
    }
    let listener = listener.bind("127.0.0.1:0")?;
    let address = listener.local_addr().clone();
    link::forked(
        work,
        || Ok(Bytes::new(Stream(listener.accept()?), work.size_bytes)),
        || {
            let stream = client.connect(&address)?;
            Ok(Bytes::new(Stream(stream), work.reply_bytes()))
        },
    )
}
