//! The thread that children are started from.
//!
//! The system ends a child together with the thread that started it
//! (`PR_SET_PDEATHSIG`), so that this must be one that lives as long as the process:
//! the main thread, or else one that is kept for the purpose.

use std::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::thread;

type Job = Box<dyn FnOnce() + Send>;

/// The thread's queue, and the process it belongs to.
static LAUNCHER: ForkMutex<Option<(u32, mpsc::Sender<Job>)>> = ForkMutex::new(None);

/// Runs `job` in a thread that lives as long as this process.
pub(crate) fn run<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if thread::is_main() {
        return job();
    }
    let (answer, result) = mpsc::channel();
    let job: Job = Box::new(move || {
        // Nobody listens only if the caller is gone.
        let _ = answer.send(job());
    });
    queue()?.send(job).map_err(|_| ended())?;
    result.recv().map_err(|_| ended())?
}

fn ended() -> Error {
    Error::new(ErrorKind::Os, "the thread that starts processes has ended")
}

fn queue() -> Result<mpsc::Sender<Job>> {
    let mut launcher = LAUNCHER.lock();
    match &*launcher {
        Some((generation, queue)) if *generation == thread::generation() => Ok(queue.clone()),
        _ => {
            let (queue, jobs) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name("bunshin-launcher".into())
                .spawn(move || jobs.into_iter().for_each(|job| job()))
                .map_err(|error| Error::os("start the thread that starts processes", error))?;
            *launcher = Some((thread::generation(), queue.clone()));
            Ok(queue)
        }
    }
}
