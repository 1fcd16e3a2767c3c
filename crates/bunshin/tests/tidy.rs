//! The house rules that neither the compiler nor clippy can check.
//!
//! Each rule is a function from a path and a text to violations; one test runs
//! it over the repository, another feeds it a small text that breaks it, so
//! that no rule can fall silent unnoticed. The tables at the top say what the
//! rules allow: to move a border, edit a table and say why in the same commit.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use documents::{document_hash, links};
use rules::{imports, names, opening_doc, size, system_crates, todo_notes, unsafe_code};

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

/// The engine's folder, from the root of the repository.
const ENGINE: &str = "crates/bunshin";

/// The modules of `src`, lowest layer first. A module imports from lower layers
/// only; `lib.rs` stands above all of them. The layer of bytes takes three rows,
/// as its parts are built on each other.
const LAYERS: &[&[&str]] = &[
    &["sys"],
    &["shm"],
    &["codec"],
    &["transport"],
    &[
        "sync",
        "shared",
        "queue",
        "connection",
        "process",
        "backend",
        "log",
    ],
    &["pool", "manager"],
    // What the fuzzers reach has to reach everything.
    &["context", "front", "guide", "fuzzing", "tokio"],
];

/// Imports within one layer that are allowed: who, from whom.
const SIDEWAYS: &[(&str, &[&str])] = &[
    ("shared", &["sync"]),
    // A queue fails as a pipe does, and `wait` waits for it too.
    ("queue", &["sync", "connection"]),
    ("backend", &["process", "connection"]),
    // Children send their records from their first instruction to their last.
    ("process", &["log"]),
    // `wait` waits for processes too.
    ("connection", &["process"]),
    // A manager's server can hold a pool.
    ("manager", &["pool"]),
];

/// What every layer may import, and what itself imports from none.
const ANYWHERE: &[&str] = &["error"];

/// Where `unsafe` may stand: a folder with its slash, or a file. Tests crash processes on
/// purpose, and a test has to lift the lint itself, with a reason.
const UNSAFE_ALLOWED: &[&str] = &[
    "crates/bunshin/src/sys/",
    "crates/bunshin/src/shm/",
    "crates/bunshin/src/process/fork.rs",
    "crates/bunshin/tests/",
];

/// Crates that are the operating system, and the one folder of `src` that names
/// them.
const SYSTEM_CRATES: &[&str] = &["libc", "rustix", "nix", "linux_raw_sys"];
const SYSTEM_FOLDER: &str = "crates/bunshin/src/sys/";

/// The longest Rust file, in lines.
const MAX_LINES: usize = 800;

/// The most folders between `src` and a file.
const MAX_DEPTH: usize = 2;

/// Module names that say nothing about what is inside.
const FORBIDDEN_NAMES: &[&str] = &[
    "util", "utils", "common", "misc", "helper", "helpers", "base", "core", "impl",
];

/// Documents that are the truth on bytes; each names the sources it describes.
const DOCUMENTS: &[&str] = &[
    "crates/bunshin/src/shm/LAYOUT.md",
    "crates/bunshin/src/transport/PROTOCOL.md",
];

/// Folders that hold no text of ours.
const SKIPPED_FOLDERS: &[&str] = &["target", "node_modules", "__pycache__"];

// ---------------------------------------------------------------------------
// The rules, over the repository

#[test]
fn imports_go_down_only() {
    let src = format!("{ENGINE}/src/");
    check("rs", |path, text| match path.strip_prefix(&src) {
        Some(inside) => imports(path, inside, text),
        None => Vec::new(),
    });
}

#[test]
fn unsafe_stands_where_it_may() {
    check("rs", |path, text| {
        // The benchmarks measure foreign crates and are not part of the engine.
        if path.starts_with("crates/") {
            unsafe_code(path, text)
        } else {
            Vec::new()
        }
    });
}

#[test]
fn only_sys_names_the_system_crates() {
    let src = format!("{ENGINE}/src/");
    check("rs", |path, text| {
        if path.starts_with(&src) {
            system_crates(path, text)
        } else {
            Vec::new()
        }
    });
}

#[test]
fn files_are_short_and_near_the_surface() {
    check("rs", size);
}

#[test]
fn every_file_says_what_it_is_for() {
    check("rs", opening_doc);
}

#[test]
fn module_names_mean_something() {
    check("rs", names);
}

#[test]
fn notes_of_work_to_do_carry_an_issue() {
    check("rs", todo_notes);
}

#[test]
fn links_between_documents_resolve() {
    let root = root();
    check("md", |path, text| links(&root, path, text));
}

#[test]
fn documents_are_reviewed_when_their_sources_change() {
    let root = root();
    let mut found = Vec::new();
    for document in DOCUMENTS {
        match fs::read_to_string(root.join(document)) {
            Ok(text) => found.extend(document_hash(document, &text, |source| {
                let folder = Path::new(document)
                    .parent()
                    .expect("documents lie in folders");
                fs::read_to_string(root.join(folder).join(source)).ok()
            })),
            Err(error) => found.push(Violation::new(
                document,
                1,
                format!("cannot be read ({error}); every protocol has its document beside it"),
            )),
        }
    }
    report(found);
}

// ---------------------------------------------------------------------------
// Walking and reporting

/// One broken rule: where, and what to do about it.
#[derive(Debug)]
struct Violation {
    path: String,
    line: usize,
    advice: String,
}

impl Violation {
    fn new(path: &str, line: usize, advice: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            advice: advice.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.advice)
    }
}

/// The root of the repository.
fn root() -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = engine
        .ancestors()
        .nth(Path::new(ENGINE).components().count());
    root.expect("the engine lies below the root").to_owned()
}

/// Runs `rule` over every file with this extension and fails with what it found.
fn check(extension: &str, rule: impl Fn(&str, &str) -> Vec<Violation>) {
    let root = root();
    let mut files = Vec::new();
    collect(&root, &root, extension, &mut files);
    assert!(!files.is_empty(), "no .{extension} file under {root:?}");
    files.sort();
    let mut found = Vec::new();
    for path in &files {
        let text = fs::read_to_string(root.join(path)).expect("source files are UTF-8");
        found.extend(rule(path, &text));
    }
    report(found);
}

/// Adds the files below `folder`, as paths from `root` with forward slashes.
fn collect(root: &Path, folder: &Path, extension: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the repository can be listed") {
        let entry = entry.expect("the repository can be listed");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        let path = entry.path();
        let kind = entry.file_type().expect("the repository can be listed");
        if kind.is_dir() {
            if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                collect(root, &path, extension, files);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            let path = path.strip_prefix(root).expect("collected below the root");
            files.push(path.to_str().expect("names are UTF-8").to_owned());
        }
    }
}

fn report(found: Vec<Violation>) {
    let lines: Vec<String> = found.iter().map(Violation::to_string).collect();
    let count = lines.len();
    assert!(count == 0, "{count} to put right:\n{}", lines.join("\n"));
}

/// The lines on which a rule found something.
fn lines(found: &[Violation]) -> Vec<usize> {
    found.iter().map(|violation| violation.line).collect()
}
