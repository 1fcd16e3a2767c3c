//! Runs the example's binary, as a user would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The example's binary, built if need be: `cargo test --all-targets` makes a test
/// of each example instead of the program.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("this test has a path");
        // <target>/<profile>/deps/<this test>
        let profile_folder = test.ancestors().nth(2).expect("cargo built this test");
        let target = profile_folder.parent().expect("a profile is in a folder");
        let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args([
            "build",
            "--quiet",
            "--example",
            "geocoding",
            "--profile",
            profile,
        ]);
        build.arg("--target-dir").arg(target);
        build
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        for (name, _) in std::env::vars_os() {
            // What cargo tells a test about its package would make build scripts,
            // which look at it, run again and again.
            let name = name.to_string_lossy().into_owned();
            if [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_CRATE_",
                "CARGO_BIN_",
                "NEXTEST",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            {
                build.env_remove(name);
            }
        }
        let status = build.status().expect("cargo is there");
        assert!(status.success(), "the example cannot be built");
        profile_folder.join("examples/geocoding")
    })
}

/// The tool, shielded from the user's environment.
pub(crate) fn tool() -> Command {
    let mut command = Command::new(binary());
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("GOOGLE_MAPS_API_KEY");
    command.stdin(Stdio::null());
    command
}

pub(crate) fn geocoding(args: &[&str]) -> Output {
    tool().args(args).output().expect("the tool starts")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("the output is UTF-8")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("the messages are UTF-8")
}

/// Runs the tool and expects this status and output, and nothing on stderr.
pub(crate) fn expect(args: &[&str], status: i32, lines: &[&str]) {
    let output = geocoding(args);
    let printed: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(printed, lines, "{args:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(status));
}

/// Runs the tool and expects it to give up with this on stderr.
pub(crate) fn expect_refusal(args: &[&str], message: &str) {
    let output = geocoding(args);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{args:?}: {}",
        stdout(&output)
    );
    assert_eq!(stdout(&output), "");
    assert_eq!(stderr(&output), message);
}

/// A file that is gone after the test.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> TempFile {
        let name = format!("geocoding-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).expect("temporary files can be written");
        TempFile(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0
            .to_str()
            .expect("the temporary folder has a plain name")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
