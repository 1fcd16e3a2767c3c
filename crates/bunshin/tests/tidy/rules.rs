//! The rules on Rust files, each followed at the foot by a test that breaks it.

use crate::source::{Source, is_word};
use crate::{
    ANYWHERE, FORBIDDEN_NAMES, LAYERS, MAX_DEPTH, MAX_LINES, SIDEWAYS, SYSTEM_CRATES,
    SYSTEM_FOLDER, UNSAFE_ALLOWED, Violation, lines,
};

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// `inside` is the path from `src`.
pub(crate) fn imports(path: &str, inside: &str, text: &str) -> Vec<Violation> {
    let mut modules: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if modules.last() == Some(&"mod") {
        modules.pop();
    }
    let own = modules[0];
    if own == "lib" {
        return Vec::new();
    }
    let Some(layer) = layer_of(own).or(ANYWHERE.contains(&own).then_some(0)) else {
        let advice = format!("module `{own}` has no layer; add it to LAYERS in tests/tidy.rs");
        return vec![Violation::new(path, 1, advice)];
    };
    let source = Source::new(text);
    let allowed = |target: &str| {
        let sideways = |(who, whom): &(&str, &[&str])| *who == own && whom.contains(&target);
        let below = !ANYWHERE.contains(&own) && layer_of(target).is_some_and(|l| l < layer);
        target == own || ANYWHERE.contains(&target) || below || SIDEWAYS.iter().any(sideways)
    };
    let mut found = Vec::new();
    for (line, target) in root_paths(&source.tokens(), modules.len()) {
        if !allowed(&target) {
            let advice = if layer_of(&target).is_some() {
                format!(
                    "`{own}` may not import `{target}`, which is not below it; move the shared \
                     part down a layer, or pass it in from above"
                )
            } else {
                format!(
                    "`crate::{target}` is no module; import it from the module that defines it, \
                     not from the crate root"
                )
            };
            found.push(Violation::new(path, line, advice));
        }
    }
    found
}

/// What an open brace belongs to, as far as paths care.
#[derive(PartialEq)]
enum Brace {
    Module,
    Macro,
    Other,
}

/// The first names of all paths that start at the crate root, with their lines.
/// `depth` is how many modules deep the file lies.
fn root_paths(tokens: &[(usize, &str)], depth: usize) -> Vec<(usize, String)> {
    let word = |i: usize| tokens.get(i).map_or("", |t| t.1);
    let mut paths = Vec::new();
    let mut braces = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        match word(i) {
            "{" => braces.push(match i {
                2.. if word(i - 2) == "mod" => Brace::Module,
                3.. if word(i - 3) == "macro_rules" => Brace::Macro,
                _ => Brace::Other,
            }),
            "}" => drop(braces.pop()),
            "crate" if word(i + 1) == "::" => {
                i += 2;
                first_names(tokens, i, &mut paths);
                continue;
            }
            "super" if word(i + 1) == "::" => {
                let mut climbed = 0;
                while word(i) == "super" && word(i + 1) == "::" {
                    climbed += 1;
                    i += 2;
                }
                // In a macro, `super` is seen from wherever it is used.
                let inline = braces.iter().filter(|b| **b == Brace::Module).count();
                if climbed == depth + inline && !braces.contains(&Brace::Macro) {
                    first_names(tokens, i, &mut paths);
                }
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    paths
}

/// The names right after `crate::`: one, or the heads of a group in braces.
fn first_names(tokens: &[(usize, &str)], at: usize, paths: &mut Vec<(usize, String)>) {
    let word = |i: usize| tokens.get(i).map_or("", |t| t.1);
    let mut push = |i: usize| {
        // A macro is found at the root wherever it is defined.
        if word(i + 1) != "!" && word(i) != "self" {
            paths.push((tokens[i].0, word(i).to_owned()));
        }
    };
    if word(at) != "{" {
        return push(at);
    }
    let mut depth = 0;
    for i in at..tokens.len() {
        match word(i) {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && matches!(word(i - 1), "{" | ",") => push(i),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
}

pub(crate) fn unsafe_code(path: &str, text: &str) -> Vec<Violation> {
    if UNSAFE_ALLOWED.iter().any(|place| path.starts_with(place)) {
        return Vec::new();
    }
    let source = Source::new(text);
    let tokens = source.tokens();
    let mut found = Vec::new();
    for (i, &(line, word)) in tokens.iter().enumerate() {
        let lint_lifted = word == "unsafe_code" && {
            let before = tokens[..i].iter().rev().map(|t| t.1);
            let opener = before.take_while(|w| *w != "[").last();
            matches!(opener, Some("allow" | "expect" | "warn"))
        };
        if word == "unsafe" || lint_lifted {
            let advice = format!(
                "unsafe code may stand only in {}; offer a safe function there and call it",
                UNSAFE_ALLOWED.join(", ")
            );
            found.push(Violation::new(path, line, advice));
        }
    }
    found
}

pub(crate) fn system_crates(path: &str, text: &str) -> Vec<Violation> {
    if path.starts_with(SYSTEM_FOLDER) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, word) in Source::new(text).tokens() {
        if SYSTEM_CRATES.contains(&word) {
            let advice = format!("only {SYSTEM_FOLDER} names `{word}`; wrap the call there");
            found.push(Violation::new(path, line, advice));
        }
    }
    found
}

pub(crate) fn size(path: &str, text: &str) -> Vec<Violation> {
    let lines = text.lines().count();
    let mut found = Vec::new();
    if lines > MAX_LINES {
        let advice = format!("{lines} lines, above {MAX_LINES}; split the file by what it does");
        found.push(Violation::new(path, lines, advice));
    }
    if let Some((_, inside)) = path.split_once("/src/") {
        let folders = inside.matches('/').count();
        if folders > MAX_DEPTH {
            let advice = format!("{folders} folders below src, above {MAX_DEPTH}; lift it up");
            found.push(Violation::new(path, 1, advice));
        }
    }
    found
}

pub(crate) fn opening_doc(path: &str, text: &str) -> Vec<Violation> {
    // A module may have its document as its opening.
    if text.starts_with("//! ") || text.starts_with("#![doc = include_str!(") {
        return Vec::new();
    }
    let advice = "start the file with a `//!` line that says what it is for";
    vec![Violation::new(path, 1, advice)]
}

pub(crate) fn names(path: &str, text: &str) -> Vec<Violation> {
    let advice = |name: &str| format!("`{name}` says nothing; name the module after what it does");
    let mut found = Vec::new();
    for part in path.trim_end_matches(".rs").split('/') {
        if FORBIDDEN_NAMES.contains(&part) {
            found.push(Violation::new(path, 1, advice(part)));
        }
    }
    for pair in Source::new(text).tokens().windows(2) {
        let ((_, keyword), (line, name)) = (pair[0], pair[1]);
        if keyword == "mod" && FORBIDDEN_NAMES.contains(&name) {
            found.push(Violation::new(path, line, advice(name)));
        }
    }
    found
}

pub(crate) fn todo_notes(path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in Source::new(text).comments.lines().enumerate() {
        for note in ["TODO", "FIXME"] {
            let Some((before, after)) = line.split_once(note) else {
                continue;
            };
            let alone = !before.ends_with(is_word) && !after.starts_with(is_word);
            let has_issue = after
                .match_indices('#')
                .any(|(at, _)| after[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
            if alone && !has_issue {
                let advice = format!("open an issue and write `{note}(#number): ...`");
                found.push(Violation::new(path, index + 1, advice));
            }
        }
    }
    found
}

#[test]
fn an_upward_import_is_found() {
    let text = "//! Doc with crate::pool.\n\
                use crate::pool::Pool;\n\
                use crate::{error::Result, process::{Process, Child}, sys};\n\
                use super::super::context;\n\
                use super::segment;\n\
                use crate::Value;\n\
                crate::trace!(1);\n\
                mod tests { use super::super::super::manager::Server; use super::*; }\n\
                macro_rules! m { () => { super::super::Form; crate::pool::Pool } }\n";
    let found = imports("crates/bunshin/src/shm/ring.rs", "shm/ring.rs", text);
    assert_eq!(lines(&found), [2, 3, 4, 6, 8, 9], "{found:?}");
    assert!(found[0].advice.contains("`shm` may not import `pool`"));
}

#[test]
fn a_sideways_import_needs_its_row() {
    let text = "use crate::sync::Lock;\n";
    assert!(imports("x", "shared/value.rs", text).is_empty());
    assert_eq!(imports("x", "connection/pipe.rs", text).len(), 1);
    assert_eq!(imports("x", "error.rs", "use crate::sys::Errno;").len(), 1);
    assert!(imports("x", "lib.rs", "pub use crate::pool::Pool;").is_empty());
    assert_eq!(imports("x", "novelty/mod.rs", "").len(), 1);
}

#[test]
fn stray_unsafe_is_found() {
    let text = "//! unsafe\n#![allow(unsafe_code)]\n#![deny(unsafe_code)]\nunsafe fn f() {}\n\
                #[expect(dead_code, unsafe_code)]\nfn g() { let _ = \"unsafe\"; }\n";
    let found = unsafe_code("crates/bunshin/src/pool/map.rs", text);
    assert_eq!(lines(&found), [2, 4, 5], "{found:?}");
    assert!(unsafe_code("crates/bunshin/src/sys/mod.rs", text).is_empty());
}

#[test]
fn a_stray_system_call_is_found() {
    let text = "//! See libc.\nuse rustix::fd::OwnedFd;\nfn f() { libc::_exit(0) }\n";
    let found = system_crates("crates/bunshin/src/pool/map.rs", text);
    assert_eq!(lines(&found), [2, 3], "{found:?}");
    assert!(system_crates("crates/bunshin/src/sys/linux/futex.rs", text).is_empty());
}

#[test]
fn a_long_or_buried_file_is_found() {
    assert_eq!(size("a/src/b.rs", &"x\n".repeat(MAX_LINES + 1)).len(), 1);
    assert!(size("a/src/b/c/d.rs", &"x\n".repeat(MAX_LINES)).is_empty());
    assert_eq!(size("a/src/b/c/d/e.rs", "").len(), 1);
}

#[test]
fn a_missing_opening_is_found() {
    assert_eq!(opening_doc("a.rs", "use std::fs;\n//! Late.\n").len(), 1);
    assert!(opening_doc("a.rs", "//! Early.\n").is_empty());
    assert!(opening_doc("a.rs", "#![doc = include_str!(\"A.md\")]\n").is_empty());
}

#[test]
fn an_empty_name_is_found() {
    assert_eq!(names("a/src/util.rs", "").len(), 1);
    assert_eq!(
        names("a/src/core/x.rs", "mod misc { mod sync {} }\nimpl A {}").len(),
        2
    );
    assert!(names("a/src/utility_pole.rs", "mod pole;").is_empty());
}

#[test]
fn a_note_without_an_issue_is_found() {
    let text = "// TODO later\n// TODO(#12): loom\nlet x = \"TODO\";\n/// FIXME: no # here\n";
    assert_eq!(lines(&todo_notes("a.rs", text)), [1, 4]);
}
