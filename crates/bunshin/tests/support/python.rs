//! CPython as a peer: the one on the `PATH`, and those that `BUNSHIN_TEST_PYTHONS` names, with
//! colons between them.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener/peer.py");

pub(crate) struct Python {
    pub(crate) command: String,
    /// Knows SHA-256 for showing keys.
    pub(crate) is_modern: bool,
}

pub(crate) fn pythons() -> Vec<Python> {
    let more = std::env::var("BUNSHIN_TEST_PYTHONS").unwrap_or_default();
    let commands = std::iter::once("python3").chain(more.split(':').filter(|c| !c.is_empty()));
    commands
        .map(|command| {
            let test = "import sys; print(sys.version_info >= (3, 12))";
            let output = Command::new(command).args(["-c", test]).output();
            let output = output.expect("the tests need a python3");
            Python {
                command: command.to_owned(),
                is_modern: output.stdout.starts_with(b"True"),
            }
        })
        .collect()
}

/// A Python process, and what it prints.
pub(crate) struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub(crate) fn start(python: &Python, role: &str, address: &str, key: &str) -> Self {
        let is_tcp = address.starts_with("127.");
        let family = if is_tcp { "AF_INET" } else { "AF_UNIX" };
        let mut child = Command::new(&python.command)
            .args([SCRIPT, role, family, address, key])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python can be started");
        let output = child.stdout.take().expect("it has an output");
        let lines = BufReader::new(output).lines();
        Self { child, lines }
    }

    pub(crate) fn line(&mut self) -> String {
        self.lines.next().unwrap_or(Ok(String::new())).unwrap()
    }

    /// Its last line.
    pub(crate) fn end(mut self) -> String {
        let last = self.line();
        assert!(self.child.wait().unwrap().success());
        last
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
