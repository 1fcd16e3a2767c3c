//! Reads places from files: one a line, blank lines left out.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// A file of places cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("{file}: {error}")]
    Io { file: String, error: io::Error },
    #[error("{file}:{line}: not UTF-8")]
    NotUtf8 { file: String, line: usize },
}

/// Appends the places in `path` to `places`; `-` is standard input.
pub(crate) fn read_places(path: &Path, places: &mut Vec<String>) -> Result<(), InputError> {
    let (file, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        (
            "standard input".to_owned(),
            io::stdin().read_to_end(&mut bytes).map(|_| bytes),
        )
    } else {
        (path.display().to_string(), fs::read(path))
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => return Err(InputError::Io { file, error }),
    };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) if line.trim().is_empty() => {}
            // Trimming also takes the carriage return of files from Windows.
            Ok(line) => places.push(line.trim().to_owned()),
            Err(_) => return Err(InputError::NotUtf8 { file, line: at + 1 }),
        }
    }
    Ok(())
}
