//! Bunshin's connections to other programs, over a Unix socket: `StreamConnection`.

use std::os::unix::net::UnixStream;

use bunshin::StreamConnection;

use crate::measure::Result;
use crate::workload::Work;
use crate::workload::link::{self, Link};

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
