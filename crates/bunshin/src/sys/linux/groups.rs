//! The control groups of this process, of both versions: a system may have mounted both
//! (`cgroups(7)`).

/// Reads a file, or has none by that name.
pub(super) type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A control group of this process.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) version: Version,
    /// Its folder, and then those of all above it that can be seen here.
    pub(super) folders: Vec<String>,
}

/// The control groups that have a say in what `controller` is for.
pub(super) fn all(controller: &str, read: Read<'_>) -> Vec<Group> {
    let (Some(groups), Some(mounts)) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"))
    else {
        return Vec::new();
    };
    let found = groups.lines().filter_map(|group| {
        // `number:controllers:path`; version 2 has number 0 and no controllers.
        let mut fields = group.splitn(3, ':');
        let version = match (fields.next()?, fields.next()?) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|one| one == controller) => Version::One,
            _ => return None,
        };
        let path = fields.next()?;
        let mut mounts = mounts.lines();
        let mount = mounts.find_map(|line| Mount::read(line, version, controller))?;
        Some(Group {
            version,
            folders: mount.folders(path),
        })
    });
    found.collect()
}

/// Where control groups are mounted (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The group that the mount begins with.
    root: String,
    /// Where it is.
    point: String,
}

impl Mount {
    /// Reads a line, if it is about that version's groups, with that controller.
    fn read(line: &str, version: Version, controller: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let is_it = match version {
            Version::Two => kind == "cgroup2",
            Version::One => {
                let options = after.nth(1)?;
                kind == "cgroup" && options.split(',').any(|option| option == controller)
            }
        };
        if !is_it {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        Some(Self {
            root: unescape(before.next()?),
            point: unescape(before.next()?),
        })
    }

    /// The folders of a group and of all above it that can be seen here.
    fn folders(&self, path: &str) -> Vec<String> {
        // In a container the path may be that of another view of the groups: then the mount
        // itself is the group.
        let inside = path
            .strip_prefix(self.root.trim_end_matches('/'))
            .filter(|rest| rest.is_empty() || rest.starts_with('/'))
            .filter(|rest| rest.split('/').all(|part| part != ".."))
            .unwrap_or("")
            .trim_end_matches('/');
        let mut folders = Vec::new();
        let mut rest = inside;
        loop {
            folders.push(format!("{}{rest}", self.point.trim_end_matches('/')));
            match rest.rfind('/') {
                Some(at) => rest = &rest[..at],
                None => return folders,
            }
        }
    }
}

/// Blanks in the paths of a mount table are written as `\040`, in octal.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = (*byte == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(*byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}
