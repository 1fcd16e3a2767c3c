//! What a result was measured on and with.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The crates whose versions a result names.
const CRATES: &[&str] = &[
    "crossmist",
    "iceoryx2",
    "ipc-channel",
    "procspawn",
    "rayon",
    "serde",
];

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub date: String,
    pub cpu: String,
    pub n_cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub huge_pages: String,
    pub rustc: String,
    pub commit: String,
    pub crates: Vec<String>,
}

impl Machine {
    pub fn here() -> Machine {
        Machine {
            date: today(),
            cpu: field("/proc/cpuinfo", "model name"),
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (memory_kib("MemTotal") + 1024 * 512) / (1024 * 1024),
            kernel: read("/proc/sys/kernel/osrelease"),
            huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            rustc: env!("BENCH_RUSTC").to_owned(),
            commit: commit(),
            crates: CRATES
                .iter()
                .map(|name| format!("{name} {}", locked_version(name)))
                .collect(),
        }
    }

    /// The processor's name as part of a file name.
    pub fn slug(&self) -> String {
        let words = self.cpu.to_lowercase();
        let words = words.split(|c: char| !c.is_ascii_alphanumeric());
        let slug: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        slug.join("-")
    }

    /// As lines of text.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!("date: {} (UTC)", self.date),
            format!(
                "machine: {}, {} cores, {} GiB, Linux {}, transparent huge pages {}",
                self.cpu, self.n_cores, self.memory_gib, self.kernel, self.huge_pages
            ),
            format!("compiler: {}", self.rustc),
            format!("commit: {}", self.commit),
            format!("crates: {}", self.crates.join(", ")),
        ]
    }
}

/// Runnable processes over the last minute: what else the machine was doing.
pub fn load() -> f64 {
    let text = read("/proc/loadavg");
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

/// KiB that a program could still allocate.
pub fn available_kib() -> u64 {
    memory_kib("MemAvailable")
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let text = text.trim();
    if text.is_empty() { "unknown" } else { text }.to_owned()
}

/// The value after the first "name :" of a file in /proc.
fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or("unknown", |(_, value)| value.trim());
    value.to_owned()
}

fn memory_kib(name: &str) -> u64 {
    let value = field("/proc/meminfo", name);
    let number = value.split_whitespace().next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// The word in brackets of a kernel switch: "always [madvise] never".
fn chosen(text: &str) -> String {
    let inside = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(word, _)| word).to_owned()
}

/// The version of a direct dependency: the newest in the lock file, as an
/// older one beside it is some peer's own.
fn locked_version(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let number = |version: &str| -> Vec<u64> {
        version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    lock.split("[[package]]")
        .filter(|package| package.contains(&format!("name = \"{name}\"\n")))
        .filter_map(|package| {
            let (_, rest) = package.split_once("version = \"")?;
            Some(rest.split_once('"')?.0)
        })
        .max_by_key(|version| number(version))
        .unwrap_or("unknown")
        .to_owned()
}

fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}, with changes"),
    }
}

/// Today in UTC, as year-month-day.
fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let n_days = since.map_or(0, |since| since.as_secs() / 86_400);
    date_of(n_days)
}

/// The date `n_days` after 1970-01-01.
fn date_of(n_days: u64) -> String {
    let mut left = n_days;
    let mut year = 1970;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date_of(0), "1970-01-01");
        assert_eq!(date_of(11_016), "2000-02-29");
        assert_eq!(date_of(20_088), "2024-12-31");
        assert_eq!(date_of(20_089), "2025-01-01");
    }

    #[test]
    fn kernel_switches() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("unknown"), "unknown");
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        for name in CRATES {
            assert_ne!(locked_version(name), "unknown", "{name}");
        }
    }
}
