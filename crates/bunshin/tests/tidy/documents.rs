//! The rules on documents: links resolve, and a protocol's document is reviewed
//! when its source changes. At the foot, a test breaks each of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::source::is_word;
use crate::{Violation, lines, root};

/// The lines outside code blocks, without inline code.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~");
        fenced ^= fence;
        let outside = line.split('`').step_by(2).collect::<Vec<_>>().join("");
        (!fenced && !fence).then_some((index + 1, outside))
    })
}

/// The targets of `[text](target)` and of `[label]: target` in one line.
fn targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let end = |c: char| c == ')' || c.is_whitespace();
    for (at, _) in line.match_indices("](") {
        let rest = &line[at + 2..];
        targets.push(&rest[..rest.find(end).unwrap_or(rest.len())]);
    }
    if line.starts_with('[') {
        if let Some((_, target)) = line.split_once("]: ") {
            targets.push(target.split_whitespace().next().unwrap_or(""));
        }
    }
    targets
}

/// The anchors of a document's headings, as forges make them.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut fenced = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| is_word(*c) || matches!(c, ' ' | '-');
        let slug: String = title.trim().chars().filter(kept).collect();
        let slug = slug.to_lowercase().replace(' ', "-");
        let count = seen.entry(slug.clone()).or_default();
        anchors.push(match *count {
            0 => slug,
            n => format!("{slug}-{n}"),
        });
        *count += 1;
    }
    anchors
}

pub(crate) fn links(root: &Path, path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (line, outside) in prose(text) {
        for target in targets(&outside) {
            if target.contains("://") || target.contains("::") || target.starts_with("mailto:") {
                continue;
            }
            if let Err(why) = follow(root, path, text, target) {
                let advice = format!("link `{target}` {why}; correct or remove it");
                found.push(Violation::new(path, line, advice));
            }
        }
    }
    found
}

/// Follows one relative link from the document at `path`, whose text is `text`.
fn follow(root: &Path, path: &str, text: &str, target: &str) -> Result<(), &'static str> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() {
        return find_heading(text, anchor);
    }
    let mut parts: Vec<Component<'_>> = Path::new(path).components().collect();
    parts.pop();
    for part in Path::new(file).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop().ok_or("leaves the repository")?;
            }
            part => parts.push(part),
        }
    }
    let full = root.join(parts.iter().collect::<PathBuf>());
    if !full.exists() {
        return Err("leads to no file");
    }
    if anchor.is_empty() || full.extension().is_none_or(|e| e != "md") {
        return Ok(());
    }
    let text = fs::read_to_string(&full).map_err(|_| "leads to an unreadable file")?;
    find_heading(&text, anchor)
}

fn find_heading(text: &str, anchor: &str) -> Result<(), &'static str> {
    let found = anchors(text).iter().any(|a| a == anchor);
    found.then_some(()).ok_or("names no heading there")
}

/// FNV-1a, 64 bits, over the sources' code: no comment lines, no whitespace, and
/// nothing from the tests at the foot on, as none of these can change a byte
/// between processes.
fn fingerprint(sources: &[String]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for source in sources {
        let lines: Vec<&str> = source.lines().map(str::trim).collect();
        let foot = lines
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "))
            .unwrap_or(lines.len());
        let code = lines[..foot].iter().filter(|line| !line.starts_with("//"));
        let bytes = code.flat_map(|line| line.bytes());
        for byte in bytes.filter(|byte| !byte.is_ascii_whitespace()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// A document ends in `<!-- describes: a.rs b.rs fnv1a:0123456789abcdef -->`,
/// with paths from its own folder.
pub(crate) fn document_hash(
    path: &str,
    text: &str,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<Violation> {
    let line = text.trim_end().lines().count().max(1);
    let last = text.trim_end().lines().last().unwrap_or("");
    let parsed = last
        .strip_prefix("<!-- describes: ")
        .and_then(|rest| rest.strip_suffix(" -->"))
        .and_then(|rest| rest.rsplit_once(" fnv1a:"));
    let Some((names, hash)) = parsed else {
        let advice = "end with `<!-- describes: file.rs other.rs fnv1a:0000000000000000 -->`, \
                      then write in the hash that this test says";
        return vec![Violation::new(path, line, advice)];
    };
    let is_gap = |c: char| c == ',' || c.is_whitespace();
    let names: Vec<&str> = names.split(is_gap).filter(|n| !n.is_empty()).collect();
    let mut sources = Vec::new();
    for name in &names {
        match read(name) {
            Some(source) => sources.push(source),
            None => {
                let advice = format!("describes `{name}`, which is no file; correct the list");
                return vec![Violation::new(path, line, advice)];
            }
        }
    }
    let now = format!("{:016x}", fingerprint(&sources));
    if hash == now && !names.is_empty() {
        return Vec::new();
    }
    let advice = format!(
        "its sources have changed: review the document, then update the line to \
         `<!-- describes: {} fnv1a:{now} -->`",
        names.join(" ")
    );
    vec![Violation::new(path, line, advice)]
}

#[test]
fn a_dead_link_is_found() {
    let text = "# A Title, twice\n[a](Cargo.toml) [b](no.md) `[c](no)`\n```\n[d](no)\n```\n\
                [e](#a-title-twice) [f](#no) [g](https://x.y/z) [h](../../Cargo.toml)\n\
                [i]: ../no.md\n[j](docs/../Cargo.toml#x \"title\") [k](crate::Pool)\n";
    let found = links(&root(), "crates/a.md", text);
    assert_eq!(lines(&found), [2, 2, 6, 6, 7, 8], "{found:?}");
    let found = links(&root(), "a.md", text);
    assert_eq!(lines(&found), [2, 6, 6, 7], "{found:?}");
}

#[test]
fn a_changed_source_is_found() {
    let files = BTreeMap::from([
        ("a.rs", "//! A.\nfn a() {}\n\n#[cfg(test)]\nmod tests {}\n"),
        ("b.rs", "const B: u8 = 1;\n"),
    ]);
    let hash = fingerprint(&["fna(){}".to_owned(), "constB:u8=1;".to_owned()]);
    let text = format!("# Layout\n\n<!-- describes: a.rs, b.rs fnv1a:{hash:016x} -->\n");
    let run = |files: &BTreeMap<&str, &str>, text: &str| {
        document_hash("L.md", text, |name| Some((*files.get(name)?).to_owned()))
    };
    assert!(run(&files, &text).is_empty());

    let mut changed = files.clone();
    changed.insert("b.rs", "const B: u8 = 2; // two\n");
    let found = run(&changed, &text);
    assert_eq!(lines(&found), [3]);
    assert!(
        found[0]
            .advice
            .contains("review the document, then update the line to")
    );

    changed.remove("b.rs");
    assert!(run(&changed, &text)[0].advice.contains("no file"));
    assert!(run(&files, "# Layout\n")[0].advice.contains("end with"));
    // The published test value of FNV-1a.
    assert_eq!(fingerprint(&["a".to_owned()]), 0xaf63_dc4c_8601_ec8c);
}
