//! The table in `docs/multiprocessing.md` against both sides of it: that each Rust name exists
//! is read off the sources, that no Python name is missing is asked of Python itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use syn::{ImplItem, Item, TraitItem, UseTree, Visibility};

const TABLE: &str = "docs/multiprocessing.md";

/// In place of a Rust name: there is none, and the third column says why.
const NONE: &str = "–";

/// One row: a Python name, the Rust names for it, and a note.
#[derive(Debug)]
struct Row {
    line: usize,
    python: String,
    rust: Vec<String>,
    note: String,
}

/// Reads the rows; whatever is a table row and has not three columns is an error.
fn rows(text: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some(inside) = line
            .strip_prefix("| ")
            .and_then(|rest| rest.strip_suffix('|'))
        else {
            continue;
        };
        let columns: Vec<&str> = inside.split('|').map(str::trim).collect();
        let [python, rust, note] = columns[..] else {
            return Err(format!("{TABLE}:{}: not three columns", number + 1));
        };
        if python == "Python" {
            continue;
        }
        let python = python.trim_matches('`').to_owned();
        let rust = if rust == NONE {
            Vec::new()
        } else {
            rust.split(", ")
                .map(|name| name.trim_matches('`').to_owned())
                .collect()
        };
        rows.push(Row {
            line: number + 1,
            python,
            rust,
            note: note.to_owned(),
        });
    }
    Ok(rows)
}

/// The public names of the crate.
#[derive(Default)]
struct Names {
    /// What is reached from the root, and what it is called where it is defined: `log::forward`.
    exported: BTreeMap<String, String>,
    /// The modules of the root.
    modules: BTreeSet<String>,
    /// Items that are declared public anywhere.
    items: BTreeSet<String>,
    /// Public functions that a macro of the crate writes, by its name.
    written: BTreeMap<String, BTreeSet<String>>,
    /// Invocations of macros between items: which, and the words they are given.
    invoked: Vec<(String, Vec<String>)>,
    /// Public members by type or trait: methods, constants, variants, fields.
    members: BTreeMap<String, BTreeSet<String>>,
}

impl Names {
    fn read(src: &Path) -> Self {
        let mut names = Self::default();
        let mut files = Vec::new();
        collect(src, &mut files);
        let mut public_modules = Vec::new();
        for path in &files {
            let inside = path.strip_prefix(src).expect("collected below it");
            if let Some(first) = inside.iter().next().and_then(|first| first.to_str()) {
                let module = first.strip_suffix(".rs").unwrap_or(first);
                names.modules.insert(module.to_owned());
            }
        }
        for path in &files {
            let text = fs::read_to_string(path).expect("sources are UTF-8");
            let file = syn::parse_file(&text).expect("sources parse");
            if path == &src.join("lib.rs") {
                for item in &file.items {
                    match item {
                        Item::Use(item) if is_public(&item.vis) => names.export_root(&item.tree),
                        Item::Mod(item) if is_public(&item.vis) => {
                            public_modules.push(item.ident.to_string());
                        }
                        Item::Macro(item) => {
                            // `macro_rules!` at the root is reached by its name.
                            let name = item.ident.as_ref().map(ToString::to_string);
                            names.exported.extend(name.map(|name| (name.clone(), name)));
                        }
                        _ => {}
                    }
                }
            }
            names.declare(&file.items);
        }
        names.expand();
        for module in public_modules {
            names.export_module(src, &module);
        }
        names
    }

    /// What a public module makes public.
    fn export_module(&mut self, src: &Path, module: &str) {
        let candidates = [
            src.join(module).join("mod.rs"),
            src.join(format!("{module}.rs")),
        ];
        let text = candidates
            .iter()
            .find_map(|path| fs::read_to_string(path).ok());
        let text = text.expect("a public module has a file");
        for item in syn::parse_file(&text).expect("sources parse").items {
            match item {
                Item::Use(item) if is_public(&item.vis) => self.export(&item.tree, module),
                other => {
                    if let Some(name) = declared(&other) {
                        self.exported.insert(format!("{module}::{name}"), name);
                    }
                }
            }
        }
    }

    /// What `pub use` at the root makes public.
    fn export_root(&mut self, tree: &UseTree) {
        let UseTree::Path(path) = tree else {
            return self.export(tree, "");
        };
        if self.modules.contains(&path.ident.to_string()) {
            return self.export(tree, "");
        }
        // From another crate, such as that of the macros: the compiler knows that it is there.
        let mut foreign = Self::default();
        foreign.export(tree, "");
        self.items.extend(foreign.exported.values().cloned());
        self.exported.extend(foreign.exported);
    }

    fn export(&mut self, tree: &UseTree, under: &str) {
        let reached = |name: String| match under {
            "" => name,
            module => format!("{module}::{name}"),
        };
        match tree {
            UseTree::Path(path) => self.export(&path.tree, under),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.export(tree, under)),
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                self.exported.insert(reached(name.clone()), name);
            }
            UseTree::Rename(renamed) => {
                let name = renamed.rename.to_string();
                self.exported
                    .insert(reached(name), renamed.ident.to_string());
            }
            UseTree::Glob(_) => panic!("a glob among the public names hides what they are"),
        }
    }

    fn declare(&mut self, items: &[Item]) {
        for item in items {
            self.items.extend(declared(item));
            match item {
                Item::Mod(module) => {
                    if let Some((_, items)) = &module.content {
                        self.declare(items);
                    }
                }
                Item::Macro(item) => {
                    let text = item.mac.tokens.to_string();
                    let words: Vec<_> = text
                        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                        .filter(|word| !word.is_empty())
                        .map(str::to_owned)
                        .collect();
                    match &item.ident {
                        Some(name) => {
                            let functions = words
                                .windows(3)
                                .filter(|three| three[0] == "pub" && three[1] == "fn")
                                .map(|three| three[2].clone());
                            self.written.insert(name.to_string(), functions.collect());
                        }
                        None => {
                            let of = item.mac.path.segments.last();
                            let of = of.map(|segment| segment.ident.to_string());
                            self.invoked.extend(of.map(|of| (of, words)));
                        }
                    }
                }
                Item::Enum(item) => {
                    let variants = item
                        .variants
                        .iter()
                        .map(|variant| variant.ident.to_string());
                    self.of(&item.ident).extend(variants);
                }
                Item::Trait(item) => {
                    let methods = item.items.iter().filter_map(|item| match item {
                        TraitItem::Fn(method) => Some(method.sig.ident.to_string()),
                        _ => None,
                    });
                    self.of(&item.ident).extend(methods);
                }
                Item::Impl(item) => {
                    let syn::Type::Path(of) = &*item.self_ty else {
                        continue;
                    };
                    let Some(of) = of.path.segments.last() else {
                        continue;
                    };
                    // The methods of a trait are as public as the trait.
                    let all = item.trait_.is_some();
                    let members = item.items.iter().filter_map(|item| match item {
                        ImplItem::Fn(item) if all || is_public(&item.vis) => Some(&item.sig.ident),
                        ImplItem::Const(item) if all || is_public(&item.vis) => Some(&item.ident),
                        _ => None,
                    });
                    let members: Vec<_> = members.map(ToString::to_string).collect();
                    for inside in &item.items {
                        if let ImplItem::Macro(inside) = inside {
                            let written = inside.mac.path.segments.last();
                            let written = written.map(|segment| segment.ident.to_string());
                            let of = vec![of.ident.to_string()];
                            self.invoked.extend(written.map(|written| (written, of)));
                        }
                    }
                    self.of(&of.ident).extend(members);
                }
                _ => {}
            }
        }
    }

    /// Takes a macro between items for what it is likely to write: its public functions, for
    /// each type whose name it is given.
    fn expand(&mut self) {
        for (name, words) in std::mem::take(&mut self.invoked) {
            let Some(functions) = self.written.get(&name) else {
                continue;
            };
            let is_type = |word: &&String| word.starts_with(|c: char| c.is_ascii_uppercase());
            for word in words.iter().filter(is_type) {
                self.items.insert(word.clone());
                let members = self.members.entry(word.clone()).or_default();
                members.extend(functions.iter().cloned());
            }
        }
    }

    fn of(&mut self, name: &syn::Ident) -> &mut BTreeSet<String> {
        self.members.entry(name.to_string()).or_default()
    }

    /// Why there is no such name; nothing if there is.
    fn why_missing(&self, name: &str) -> Option<String> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
        if name.is_empty() || !name.chars().all(is_path) {
            return Some(format!("`{name}` is not a plain path"));
        }
        if let Some(item) = self.exported.get(name) {
            let is_there = self.items.contains(item);
            return (!is_there).then(|| format!("`{name}` is exported and nowhere declared"));
        }
        let Some((of, member)) = name.rsplit_once("::") else {
            return Some(format!("the crate exports no `{name}`"));
        };
        let Some(item) = self.exported.get(of) else {
            return Some(format!("the crate exports no `{of}`"));
        };
        let has = self
            .members
            .get(item)
            .is_some_and(|members| members.contains(member));
        (!has).then(|| format!("`{of}` has no public `{member}`"))
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The name of a public item.
fn declared(item: &Item) -> Option<String> {
    let (visibility, name) = match item {
        Item::Struct(item) => (&item.vis, &item.ident),
        Item::Enum(item) => (&item.vis, &item.ident),
        Item::Trait(item) => (&item.vis, &item.ident),
        Item::Type(item) => (&item.vis, &item.ident),
        Item::Const(item) => (&item.vis, &item.ident),
        Item::Fn(item) => (&item.vis, &item.sig.ident),
        _ => return None,
    };
    is_public(visibility).then(|| name.to_string())
}

/// Adds the `.rs` files below `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources can be listed") {
        let path = entry.expect("the sources can be listed").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn table() -> Vec<Row> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join(TABLE)).expect("the table can be read");
    rows(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn names() -> Names {
    Names::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn every_counterpart_exists() {
    let names = names();
    let mut wrong = Vec::new();
    for row in table() {
        let mut say = |what: String| {
            wrong.push(format!("{TABLE}:{}: {}: {what}", row.line, row.python));
        };
        if row.rust.is_empty() && row.note.is_empty() {
            say("without a counterpart, and without a reason".to_owned());
        }
        for name in &row.rust {
            if let Some(why) = names.why_missing(name) {
                say(why);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} to put right:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Prints the public names of the `multiprocessing` of the Python at hand, one a line.
const ASK_PYTHON: &str = r#"
import multiprocessing as m
from multiprocessing import connection, context, dummy, managers, pool, queues
from multiprocessing import shared_memory, sharedctypes, synchronize

names = set(m.__all__)
for module in (connection, dummy, managers, pool, sharedctypes, shared_memory):
    short = module.__name__.split(".")[1]
    names |= {f"{short}.{name}" for name in module.__all__}
classes = {
    "Process": m.Process, "Queue": queues.Queue, "SimpleQueue": queues.SimpleQueue,
    "JoinableQueue": queues.JoinableQueue, "Lock": synchronize.Lock,
    "RLock": synchronize.RLock, "Semaphore": synchronize.Semaphore,
    "BoundedSemaphore": synchronize.BoundedSemaphore, "Condition": synchronize.Condition,
    "Event": synchronize.Event, "Barrier": synchronize.Barrier,
    "connection.Connection": connection.Connection, "connection.Listener": connection.Listener,
    "pool.Pool": pool.Pool, "pool.AsyncResult": pool.AsyncResult,
    "pool.IMapIterator": pool.IMapIterator,
    "shared_memory.SharedMemory": shared_memory.SharedMemory,
    "shared_memory.ShareableList": shared_memory.ShareableList,
    "managers.BaseManager": managers.BaseManager, "managers.SyncManager": managers.SyncManager,
    "managers.SharedMemoryManager": managers.SharedMemoryManager,
    "sharedctypes.Synchronized": sharedctypes.Synchronized,
    "sharedctypes.SynchronizedArray": sharedctypes.SynchronizedArray,
}
for label, one in classes.items():
    names |= {f"{label}.{name}" for name in dir(one) if not name.startswith("_")}
print("\n".join(sorted(names)))
"#;

#[test]
fn no_name_of_python_is_missing() {
    let rows = table();
    let mut known = BTreeSet::new();
    for row in &rows {
        let is_new = known.insert(row.python.as_str());
        assert!(
            is_new,
            "{TABLE}:{}: {} for a second time",
            row.line, row.python
        );
    }
    let output = Command::new("python3")
        .args(["-c", ASK_PYTHON])
        .output()
        .expect("Python 3 is there, as CONTRIBUTING.md asks");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout).expect("names are ASCII");
    assert!(text.lines().count() > 100, "{text}");
    let missing: Vec<_> = text.lines().filter(|name| !known.contains(name)).collect();
    assert!(missing.is_empty(), "{TABLE} lacks: {}", missing.join(", "));
    // What came with 3.14, whatever Python is here.
    for name in [
        "Process.interrupt",
        "Lock.locked",
        "managers.SyncManager.set",
    ] {
        assert!(known.contains(name), "{TABLE} lacks {name}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let names = names();
    for good in [
        "Process",
        "Process::join",
        "fork",
        "StartMethod::ALL",
        "ErrorKind::Os",
    ] {
        assert_eq!(names.why_missing(good), None);
    }
    let bad = [
        "Child",
        "Process::unjoin",
        "process::Process",
        "Nothing::at_all",
        "Pool::map()",
        "",
    ];
    for bad in bad {
        assert!(names.why_missing(bad).is_some(), "{bad}");
    }
    let bad = "| `a` | `b` |";
    assert!(rows(bad).is_err());
    let good = rows("| `a` | `B`, `C::d` | why |\n| `e` | – | no |").expect("they are rows");
    assert_eq!((good[0].rust.len(), good[1].rust.len()), (2, 0));
}
