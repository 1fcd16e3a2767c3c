//! How many processes the system has killed for lack of memory.

use std::sync::OnceLock;

use super::groups::{self, Read, Version};
use super::mutex::find_once;

/// How many processes the system has killed because there was no memory: those of this process's
/// control group, where the system counts them, or else all. The number only grows; nothing if
/// the system does not say.
pub(crate) fn kills() -> Option<u64> {
    // Which file it is does not change, and takes longer to find than to read.
    static FILE: OnceLock<Option<String>> = OnceLock::new();
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let file = find_once(&FILE, || file(&read));
    count(&read(file.as_ref()?)?)
}

/// The file that has the number.
fn file(read: Read<'_>) -> Option<String> {
    let groups = groups::all("memory", read);
    let of_group = groups.iter().find_map(|group| {
        let name = match group.version {
            Version::Two => "memory.events",
            Version::One => "memory.oom_control",
        };
        let mut files = group
            .folders
            .iter()
            .map(|folder| format!("{folder}/{name}"));
        files.find(|file| read(file).is_some_and(|text| count(&text).is_some()))
    });
    of_group.or_else(|| {
        let all = "/proc/vmstat";
        read(all)?;
        Some(all.to_owned())
    })
}

/// The number in a file of lines that are a word and a number.
fn count(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{count, file, kills};

    const VMSTAT: (&str, &str) = ("/proc/vmstat", "nr_free_pages 5\noom_kill 2\nswpin 0\n");
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
    const V2: &str = "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";

    fn of(files: &[(&str, &str)]) -> Option<String> {
        file(&|path| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_number_is_that_of_its_very_line() {
        assert_eq!(
            count("low 0\noom 7\noom_kill 3\noom_group_kill 9\n"),
            Some(3)
        );
        assert_eq!(
            count("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n"),
            Some(12)
        );
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
        assert_eq!(count("oom_kill \noom_kill x\n"), None);
        assert_eq!(count(""), None);
    }

    #[test]
    fn the_group_of_this_process_goes_before_the_whole_system() {
        let own = ("/proc/self/cgroup", "0::/job\n");
        let mounts = ("/proc/self/mountinfo", V2);
        let events = ("/sys/fs/cgroup/job/memory.events", "oom 0\noom_kill 0\n");
        assert_eq!(
            of(&[own, mounts, events, VMSTAT]).as_deref(),
            Some(events.0)
        );
        // The group has no numbers of its own: those of the one above are it.
        let above = ("/sys/fs/cgroup/memory.events", "oom_kill 4\n");
        assert_eq!(of(&[own, mounts, above, VMSTAT]).as_deref(), Some(above.0));
        assert_eq!(of(&[own, mounts, VMSTAT]).as_deref(), Some(VMSTAT.0));
        assert_eq!(of(&[VMSTAT]).as_deref(), Some(VMSTAT.0));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn version_one_has_it_in_another_file() {
        let own = ("/proc/self/cgroup", "4:memory:/job\n3:cpu:/other\n0::/\n");
        let mounts = ("/proc/self/mountinfo", V1);
        let control = (
            "/sys/fs/cgroup/memory/job/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        );
        assert_eq!(
            of(&[own, mounts, control, VMSTAT]).as_deref(),
            Some(control.0)
        );
        // Before Linux 4.13 it was not in there.
        let old = (control.0, "oom_kill_disable 0\nunder_oom 0\n");
        assert_eq!(of(&[own, mounts, old, VMSTAT]).as_deref(), Some(VMSTAT.0));
    }

    #[test]
    fn this_system_says_it() {
        let first = kills().expect("Linux counts them since 4.13");
        assert!(kills().expect("it did before") >= first);
    }
}
