//! Links between async code: Bunshin's `tokio` connections, and tokio's own sockets. Each side runs
//! on one thread, in a runtime of its own.

use std::os::unix::net::UnixStream as Plain;

use bunshin::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::measure::{self, Result};
use crate::workload::Work;
use crate::workload::link::{self, TypedLink, Values};

/// One end, and what its futures run in.
struct End<C> {
    runtime: Runtime,
    connection: C,
}

impl<C> End<C> {
    fn new(make: impl FnOnce() -> Result<C>) -> Result<End<C>> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let connection = make()?;
        drop(entered);
        Ok(End {
            runtime,
            connection,
        })
    }
}

impl TypedLink<u64> for End<bunshin::tokio::Connection<u64>> {
    fn send(&mut self, message: u64) -> Result<()> {
        Ok(self.runtime.block_on(self.connection.send(message))?)
    }

    fn receive(&mut self) -> Result<u64> {
        Ok(self.runtime.block_on(self.connection.recv())?)
    }
}

impl TypedLink<u64> for End<UnixStream> {
    fn send(&mut self, message: u64) -> Result<()> {
        let bytes = message.to_ne_bytes();
        Ok(self.runtime.block_on(self.connection.write_all(&bytes))?)
    }

    fn receive(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.runtime
            .block_on(self.connection.read_exact(&mut bytes))?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn serve(far: bunshin::Connection<u64>, work: Work, core: usize) -> Option<String> {
    let served = || {
        measure::pin(core)?;
        let end = End::new(|| Ok(bunshin::tokio::Connection::new(far)?))?;
        link::serve(&mut Values::new(end), work.pattern)
    };
    served().err().map(|error| error.to_string())
}

/// A pipe of `u64` whose ends are awaited.
pub fn bunshin(work: &Work) -> Result<f64> {
    let (near, far) = bunshin::pipe::<u64>()?;
    let (near_core, far_core) = work.cores()?;
    let child = Process::start(serve, (far, *work, far_core))?;
    measure::pin(near_core)?;
    let near = End::new(|| Ok(bunshin::tokio::Connection::new(near)?))?;
    let seconds = link::drive(&mut Values::new(near), work)?;
    child
        .result()?
        .map_or(Ok(seconds), |error| Err(error.into()))
}

fn socket(plain: Plain) -> Result<Values<End<UnixStream>, u64>> {
    plain.set_nonblocking(true)?;
    Ok(Values::new(End::new(|| Ok(UnixStream::from_std(plain)?))?))
}

/// A pair of sockets, eight bytes for each number.
pub fn sockets(work: &Work) -> Result<f64> {
    let (near, far) = Plain::pair()?;
    link::forked(work, || socket(near), || socket(far))
}
