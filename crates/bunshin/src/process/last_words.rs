//! What a worker has left behind for the error that tells of its end.
//!
//! | Who | Writes what |
//! |---|---|
//! | the hook for panics | message and place, before the panic unwinds or aborts; taken back if it is caught |
//! | a front in another language | what the program writes to its standard error, and reports of crashes |
//!
//! The real standard error is as it was: nothing is read from it, and nothing relayed.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sys::{socket, words};

/// Lines of them that an error's text has at most, and characters.
const LINES: usize = 10;
const CHARACTERS: usize = 1000;

/// What begins the report of a crash, as Python's `faulthandler` writes it.
const REPORT: &str = "Fatal Python error: ";

/// What one worker leaves behind, as its parent has it.
#[derive(Debug)]
pub(crate) struct LastWords(OwnedFd);

impl LastWords {
    /// Room for a worker's, and the handle that the worker is to [`adopt`].
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let os = |error| Error::os("start a worker", error);
        let file = words::create().map_err(os)?;
        let theirs = socket::duplicate(file.as_fd()).map_err(os)?;
        Ok((Self(file), theirs))
    }

    /// What there is. Bytes that are no text are replaced.
    pub(crate) fn read(&self) -> Arc<str> {
        let bytes = words::end_of(self.0.as_fd());
        let mut bytes = bytes.as_slice();
        if bytes.len() == words::KEPT {
            // The first line may have been cut. If it is all there is, that is what there is.
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let rest = end.map_or(&[][..], |end| &bytes[end + 1..]);
            bytes = if rest.is_empty() { bytes } else { rest };
        }
        String::from_utf8_lossy(bytes).trim_end().into()
    }
}

/// In the worker: has what it writes from now on be its last words.
pub(crate) fn adopt(file: OwnedFd) -> Result<()> {
    words::adopt(file).map_err(|error| Error::os("begin a worker", error))
}

/// The part of last words that an error's text has: nothing, or a colon and some lines.
pub(crate) fn clause(words: &str) -> String {
    let part = excerpt(words);
    if part.is_empty() {
        return String::new();
    }
    format!("; its last words:\n{part}")
}

/// Of a report of a crash the first lines, as the place is there; of all else the last ones.
fn excerpt(words: &str) -> &str {
    let begins_line = |at: &usize| *at == 0 || words[..*at].ends_with('\n');
    let mut reports = words.rmatch_indices(REPORT).map(|(at, _)| at);
    if let Some(at) = reports.find(begins_line) {
        let report = &words[at..];
        let line = report.match_indices('\n').map(|(at, _)| at).nth(LINES - 1);
        let character = report.char_indices().map(|(at, _)| at).nth(CHARACTERS);
        let end = line.into_iter().chain(character).min();
        return report[..end.unwrap_or(report.len())].trim_end();
    }
    let line = words
        .rmatch_indices('\n')
        .map(|(at, _)| at + 1)
        .nth(LINES - 1);
    let character = words
        .char_indices()
        .rev()
        .map(|(at, _)| at)
        .nth(CHARACTERS - 1);
    let start = line.into_iter().chain(character).max();
    words[start.unwrap_or(0)..].trim_matches('\n')
}

thread_local! {
    /// What the last panic of this thread has left.
    static LEFT: Cell<Option<words::Written>> = const { Cell::new(None) };
}

/// A panic has begun, which may be the last thing that happens here.
pub(super) fn panicked(info: &PanicHookInfo<'_>) {
    if words::descriptor().is_none() {
        return;
    }
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    LEFT.set(words::append(
        format!("thread '{name}' {info}\n").as_bytes(),
    ));
}

/// It was caught, and is told in another way.
pub(super) fn caught() {
    if let Some(left) = LEFT.take() {
        words::take_back(left);
    }
}

#[cfg(test)]
mod tests {
    use super::{CHARACTERS, clause, excerpt};

    #[test]
    fn the_last_lines_count() {
        assert_eq!(clause(""), "");
        assert_eq!(clause("\n\n"), "");
        assert_eq!(clause("one"), "; its last words:\none");
        assert_eq!(excerpt("one\n\n  two"), "one\n\n  two");
        let many: Vec<String> = (0..100).map(|line| format!("line {line}")).collect();
        assert_eq!(excerpt(&many.join("\n")), many[90..].join("\n"));
        let long = "\u{e9}".repeat(5000);
        assert_eq!(excerpt(&long).chars().count(), CHARACTERS);
    }

    #[test]
    fn a_report_of_a_crash_is_read_from_its_beginning() {
        let frames: Vec<String> = (0..40).map(|frame| format!("  File {frame}")).collect();
        let frames = frames.join("\n");
        let report = format!("Fatal Python error: Aborted\n\nCurrent thread:\n{frames}");
        let words = format!("said before\n{report}");
        assert!(
            excerpt(&words)
                .starts_with("Fatal Python error: Aborted\n\nCurrent thread:\n  File 0\n")
        );
        assert!(excerpt(&words).ends_with("  File 6"));
        let long = format!("Fatal Python error: {}", "x".repeat(5000));
        assert_eq!(excerpt(&long).chars().count(), CHARACTERS);
        // Said in the middle of a line, it is none.
        assert!(excerpt(&format!("I say: {report}")).ends_with("  File 39"));
    }
}
