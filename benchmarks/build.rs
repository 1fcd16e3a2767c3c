//! Records the compiler's version, so that every result can name it.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    let version = version.trim();
    let version = if version.is_empty() {
        "rustc (unknown version)"
    } else {
        version
    };
    println!("cargo::rustc-env=BENCH_RUSTC={version}");
}
