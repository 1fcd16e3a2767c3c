//! Runs one measurement in a process of its own, under a hard time limit.
//!
//! The measuring process leads a process group. When it ends, or when its
//! time is up, the group is killed; descendants that left the group come back
//! to this process, which is their subreaper, and are killed as well. So
//! neither state, nor pinning, nor a hanging peer reaches the next one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::measure::SCRATCH_VARIABLE;

/// The first word of the line on which a measuring process prints its number.
pub const VALUE_MARK: &str = "measured-value";

/// The first argument of a measuring process.
pub const MEASURE_ROLE: &str = "measure-one";

/// How a measurement ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// In seconds for times, per second for rates.
    Value(f64),
    /// What the peer said last.
    Failed(String),
    /// It was killed after so long.
    Hung(Duration),
}

/// An outcome, and how many processes the peer left behind.
#[derive(Debug, Clone)]
pub struct Measurement {
    pub outcome: Outcome,
    pub n_left_behind: usize,
}

/// Makes this process the parent of orphaned descendants, so that it can end them.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes a flag and touches no memory of ours.
    let status = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Measures one peer in one row.
pub fn measure(
    row: &str,
    peer: &str,
    budget: Duration,
    limit: Duration,
) -> io::Result<Measurement> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let scratch = format!(
        "bunshin-bench-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    // Files in memory, not pipes: a descendant that keeps a copy open must not
    // keep this process waiting for an end of file.
    let mut output = memory_file()?;
    let mut errors = memory_file()?;
    let mut child = Command::new("/proc/self/exe")
        .args([MEASURE_ROLE, row, peer, &budget.as_millis().to_string()])
        .env(SCRATCH_VARIABLE, &scratch)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?)
        .process_group(0)
        .spawn()?;
    let in_time = wait_for_exit(&child, limit)?;
    if !in_time {
        kill_group(&child);
    }
    let status = child.wait()?;
    let n_left_behind = end_orphans(if in_time {
        Duration::from_millis(500)
    } else {
        Duration::ZERO
    })?;
    remove_scratch(&scratch);

    let outcome = if !in_time {
        Outcome::Hung(limit)
    } else {
        let value = read_all(&mut output)?
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(VALUE_MARK)?.trim().parse::<f64>().ok());
        match value {
            Some(value) if status.success() && value.is_finite() => Outcome::Value(value),
            _ => Outcome::Failed(reason(&read_all(&mut errors)?, &status.to_string())),
        }
    };
    Ok(Measurement {
        outcome,
        // What a killed measurement leaves is the watchdog's doing.
        n_left_behind: if in_time { n_left_behind } else { 0 },
    })
}

/// Waits until `child` has ended (left for the caller to reap) or time is up.
fn wait_for_exit(child: &Child, limit: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open takes a pid and flags and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just given us this descriptor; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut waiting = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the count describe `waiting`, which outlives the call.
        let n_ready = unsafe { libc::poll(&mut waiting, 1, millis) };
        match n_ready {
            1 => return Ok(true),
            _ if left.is_zero() => return Ok(false),
            -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                return Err(io::Error::last_os_error());
            }
            _ => {}
        }
    }
}

fn kill_group(child: &Child) {
    // SAFETY: kill touches no memory. The group is the child's own; the child
    // has not been reaped, so its number has not been given to anybody else.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
}

/// Gives leftover descendants `grace` to end by themselves, then kills them.
/// Returns how many had to be killed.
fn end_orphans(grace: Duration) -> io::Result<usize> {
    let deadline = Instant::now() + grace;
    // By number, as one takes a moment to go and is then seen again.
    let mut killed = BTreeSet::new();
    loop {
        reap_ended();
        let orphans = children_of_this_process()?;
        if orphans.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() >= deadline {
            for pid in &orphans {
                // SAFETY: kill touches no memory. `pid` is a child of this
                // process that only `reap_ended` reaps, so the number is still its own.
                unsafe { libc::kill(*pid, libc::SIGKILL) };
            }
            killed.extend(orphans);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn reap_ended() {
    // SAFETY: a null status pointer is allowed, WNOHANG never waits.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn children_of_this_process() -> io::Result<Vec<libc::pid_t>> {
    let own = std::process::id().to_string();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        // "pid (name) state parent ..."; the name may itself hold brackets.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent == Some(own.as_str()) {
            children.push(pid);
        }
    }
    Ok(children)
}

fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string literal, which lives for ever.
    let fd = unsafe { libc::memfd_create(c"measurement".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just given us this descriptor; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn read_all(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One line from what a failed measurement wrote to its standard error.
fn reason(errors: &str, status: &str) -> String {
    let mut lines = errors.lines().filter(|line| !line.trim().is_empty());
    let panic = lines
        .clone()
        .position(|line| line.contains("panicked at "))
        .map(|at| {
            let mut from = lines.clone().skip(at);
            let place = from.next().unwrap_or_default();
            let place = place.split("panicked at ").nth(1).unwrap_or(place);
            // "/long/way/crate-1.2.3/src/file.rs:1:2:" without the way.
            let parts: Vec<&str> = place.trim_end_matches(':').split('/').collect();
            let place = parts[parts.len().saturating_sub(3)..].join("/");
            format!("{} ({place})", from.next().unwrap_or_default().trim())
        });
    panic
        .or_else(|| lines.next_back().map(str::to_owned))
        .unwrap_or_else(|| status.to_owned())
}

fn remove_scratch(scratch: &str) {
    let temporary = std::env::temp_dir();
    for folder in [std::path::Path::new("/dev/shm"), temporary.as_path()] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // The digit check keeps "…-1" from removing what "…-12" owns.
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.find(scratch).is_some_and(|at| {
                !name[at + scratch.len()..].starts_with(|c: char| c.is_ascii_digit())
            });
            if ours {
                // Best effort: the next measurement has a name of its own.
                let _ = fs::remove_dir_all(entry.path());
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_one_line() {
        let panic = "\nthread 'main' (7) panicked at /a/b/crate-1.2/src/file.rs:61:1:\nout of luck\nnote: run with\n";
        assert_eq!(
            reason(panic, "exit status: 101"),
            "out of luck (crate-1.2/src/file.rs:61:1)"
        );
        assert_eq!(reason("first\nlast\n\n", "exit status: 1"), "last");
        assert_eq!(reason("", "exit status: 1"), "exit status: 1");
    }

    #[test]
    fn orphans_are_found_and_ended() -> io::Result<()> {
        adopt_orphans()?;
        // The shell ends at once and leaves a sleeper behind, in a session of its own.
        let status = Command::new("setsid")
            .args(["--wait", "sh", "-c", "sleep 600 & exit 0"])
            .status()?;
        assert!(status.success());
        assert_eq!(end_orphans(Duration::ZERO)?, 1);
        assert!(children_of_this_process()?.is_empty());
        Ok(())
    }
}
