//! What the system gives by itself: pipes, sockets, fork and exec.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::parse;
use crate::measure::Result;
use crate::workload::link::{self, Link};
use crate::workload::pool::Workers as _;
use crate::workload::{N_WORKERS, Work, pool, start};

/// Two ends of streams that carry messages of a fixed size, so without framing.
struct Stream<R, W> {
    reader: R,
    writer: W,
    message: Vec<u8>,
}

impl<R: Read, W: Write> Link for Stream<R, W> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.writer.write_all(message)?)
    }

    fn receive<T>(&mut self, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.reader.read_exact(&mut self.message)?;
        Ok(look(&self.message))
    }
}

/// Two pipes, one each way.
pub fn pipe(work: &Work) -> Result<f64> {
    let (far_reader, near_writer) = io::pipe()?;
    let (near_reader, far_writer) = io::pipe()?;
    let end = |reader: PipeReader, writer: PipeWriter, n_bytes| Stream {
        reader,
        writer,
        message: vec![0; n_bytes],
    };
    link::forked_bytes(
        work,
        end(near_reader, near_writer, work.reply_bytes()),
        end(far_reader, far_writer, work.size_bytes),
    )
}

/// One pair of Unix stream sockets.
pub fn socketpair(work: &Work) -> Result<f64> {
    let (near, far) = UnixStream::pair()?;
    let end = |socket: UnixStream, n_bytes| -> Result<_> {
        Ok(Stream {
            reader: socket.try_clone()?,
            writer: socket,
            message: vec![0; n_bytes],
        })
    };
    link::forked_bytes(
        work,
        end(near, work.reply_bytes())?,
        end(far, work.size_bytes)?,
    )
}

/// A TCP connection over loopback, which sends at once.
pub fn tcp(work: &Work) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let far = TcpStream::connect(listener.local_addr()?)?;
    let (near, _) = listener.accept()?;
    let end = |socket: TcpStream, n_bytes| -> Result<_> {
        socket.set_nodelay(true)?;
        Ok(Stream {
            reader: socket.try_clone()?,
            writer: socket,
            message: vec![0; n_bytes],
        })
    };
    link::forked_bytes(
        work,
        end(near, work.reply_bytes())?,
        end(far, work.size_bytes)?,
    )
}

/// The first argument of a child of [`exec_start`].
pub const CHILD_ROLE: &str = "bare-exec-child";

/// fork, calculate, write into a pipe, `_exit`; read, wait.
pub fn fork_start(work: &Work) -> Result<f64> {
    start::start_to_result(work, |question| {
        let (mut reader, mut writer) = io::pipe()?;
        let child = link::fork_into(|| {
            writer.write_all(&start::answer(question).to_le_bytes())?;
            Ok(())
        })?;
        let mut found = [0; 8];
        reader.read_exact(&mut found)?;
        link::reap(child)?;
        Ok(u64::from_le_bytes(found))
    })
}

/// This binary once more, through `posix_spawn`, with its output in a pipe.
pub fn exec_start(work: &Work) -> Result<f64> {
    start::start_to_result(work, |question| {
        let mut child = Command::new("/proc/self/exe")
            .args([CHILD_ROLE, &question.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut found = [0; 8];
        let output = child.stdout.as_mut().ok_or("a child without output")?;
        output.read_exact(&mut found)?;
        let status = child.wait()?;
        if !status.success() {
            return Err(status.to_string().into());
        }
        Ok(u64::from_le_bytes(found))
    })
}

/// The child of [`exec_start`].
pub fn exec_child(argument: Option<OsString>) -> Result<()> {
    let found = start::answer(parse(argument)?);
    // Written directly: the standard library's buffer of lines is no part of an exec.
    // SAFETY: descriptor 1 is open, as the parent made it a pipe, and is used here only.
    let mut output = unsafe { File::from_raw_fd(1) };
    output.write_all(&found.to_le_bytes())?;
    Ok(())
}

/// Workers behind packet sockets: a task is one packet there and one back.
struct PacketWorkers {
    sockets: Vec<File>,
}

impl PacketWorkers {
    fn start() -> Result<PacketWorkers> {
        let mut sockets = Vec::new();
        for _ in 0..N_WORKERS {
            let (near, mut far) = packet_sockets()?;
            link::fork_into(|| {
                let mut number = [0; 8];
                while far.read(&mut number)? == number.len() {
                    let result = pool::increment(u64::from_le_bytes(number));
                    far.write_all(&result.to_le_bytes())?;
                }
                Ok(())
            })?;
            sockets.push(near);
        }
        Ok(PacketWorkers { sockets })
    }
}

impl pool::Workers<u64> for PacketWorkers {
    type Handle = ();
    type Output = u64;

    fn submit(&mut self, index: usize, number: u64) -> Result<()> {
        Ok(self.sockets[index % N_WORKERS].write_all(&number.to_le_bytes())?)
    }

    fn collect(&mut self, index: usize, (): ()) -> Result<u64> {
        let mut result = [0; 8];
        self.sockets[index % N_WORKERS].read_exact(&mut result)?;
        Ok(u64::from_le_bytes(result))
    }
}

fn packet_sockets() -> Result<(File, File)> {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `pair` has room for the two descriptors and outlives the call.
    let status = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the call above has just given us both descriptors; nobody else owns them.
    let [near, far] = pair.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    Ok((near, far))
}

/// Two workers behind sockets, with a window of tasks in flight.
pub fn pool_many(work: &Work) -> Result<f64> {
    let mut workers = PacketWorkers::start()?;
    pool::many(work, |numbers| {
        pool::windowed(&mut workers, numbers.into_iter(), pool::WINDOW)
    })
}

/// The same workers, one task at a time.
pub fn pool_one(work: &Work) -> Result<f64> {
    let mut workers = PacketWorkers::start()?;
    pool::one_at_a_time(work, |number| {
        workers.submit(0, number)?;
        workers.collect(0, ())
    })
}
