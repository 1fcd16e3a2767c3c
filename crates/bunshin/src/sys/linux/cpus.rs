//! How many processors this process may use: its affinity, and the quotas of its control
//! groups.
//!
//! A quota is so much time of processors in each period. Both versions of control groups have a
//! say, as a system may have mounted both; each level up to the mount has one, and the least
//! counts. What is read are files, so that the tests below bring their own.

use super::groups::{self, Read, Version};
use super::thread;

/// How many processes can run at the same time: at least one.
pub(crate) fn count() -> usize {
    let quota = quota(&|path| std::fs::read_to_string(path).ok());
    thread::cpus().min(quota.unwrap_or(usize::MAX)).max(1)
}

/// The processors that the quotas of this process's control groups are worth, rounded up.
fn quota(read: Read<'_>) -> Option<usize> {
    let mut least: Option<usize> = None;
    for group in groups::all("cpu", read) {
        for folder in &group.folders {
            let Some(processors) = processors(group.version, folder, read) else {
                continue;
            };
            least = Some(least.map_or(processors, |least| least.min(processors)));
        }
    }
    least
}

/// What the quota of one group is worth; nothing if it has none.
fn processors(version: Version, folder: &str, read: Read<'_>) -> Option<usize> {
    let (quota, period) = match version {
        Version::Two => {
            let text = read(&format!("{folder}/cpu.max"))?;
            let mut fields = text.split_whitespace();
            // `max` in place of a number: no quota.
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)
        }
        Version::One => {
            let number = |file: &str| -> Option<u64> {
                // -1 is no quota, and no number here.
                read(&format!("{folder}/{file}"))?.trim().parse().ok()
            };
            (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
        }
    };
    if period == 0 {
        return None;
    }
    let processors: u64 = u64::div_ceil(quota, period);
    Some(usize::try_from(processors).unwrap_or(usize::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::{count, quota};

    const V2: &str = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw";
    const V1: &str =
        "33 32 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct";

    fn of(files: &[(&str, &str)]) -> Option<usize> {
        quota(&|path| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn no_files_are_no_quota() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("/proc/self/cgroup", "0::/\n")]), None);
        assert_eq!(
            of(&[("/proc/self/cgroup", "0::/"), ("/proc/self/mountinfo", V2)]),
            None
        );
    }

    #[test]
    fn version_two_takes_the_least_of_all_levels() {
        let tree = |own, above, root| {
            of(&[
                ("/proc/self/cgroup", "0::/user/job\n"),
                ("/proc/self/mountinfo", V2),
                ("/sys/fs/cgroup/user/job/cpu.max", own),
                ("/sys/fs/cgroup/user/cpu.max", above),
                ("/sys/fs/cgroup/cpu.max", root),
            ])
        };
        assert_eq!(tree("max 100000\n", "max 100000\n", "max 100000\n"), None);
        assert_eq!(
            tree("400000 100000\n", "max 100000\n", "800000 100000\n"),
            Some(4)
        );
        assert_eq!(
            tree("400000 100000", "150000 100000", "max 100000"),
            Some(2)
        );
        assert_eq!(tree("max 100000", "max 100000", "1000 100000"), Some(1));
        // Nonsense is no quota, and hides no other.
        assert_eq!(tree("", "-3 x", "300000 100000"), Some(3));
        assert_eq!(tree("5 0", "18446744073709551616 1", "none"), None);
    }

    #[test]
    fn version_one_is_found_by_its_controller() {
        let groups = "12:memory:/elsewhere\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/\n";
        let tree = |quota, period| {
            of(&[
                ("/proc/self/cgroup", groups),
                ("/proc/self/mountinfo", V1),
                ("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", quota),
                ("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", period),
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ])
        };
        assert_eq!(tree("-1\n", "100000\n"), None);
        assert_eq!(tree("250000\n", "100000\n"), Some(3));
        assert_eq!(tree("50000\n", "100000\n"), Some(1));
    }

    #[test]
    fn both_versions_have_a_say() {
        let mounts =
            format!("{V1}\n31 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate");
        let found = of(&[
            ("/proc/self/cgroup", "4:cpu,cpuacct:/\n0::/\n"),
            ("/proc/self/mountinfo", &mounts),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "600000"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/unified/cpu.max", "500000 100000"),
        ]);
        assert_eq!(found, Some(5));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        // Version 1 without a namespace of groups: the mount begins with the container's group.
        let found = of(&[
            ("/proc/self/cgroup", "3:cpu,cpuacct:/docker/12ab/inner\n"),
            (
                "/proc/self/mountinfo",
                "40 32 0:30 /docker/12ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct",
            ),
            ("/sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us", "700000"),
            ("/sys/fs/cgroup/cpu/inner/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!(found, Some(2));
        // A path of another view: above what is mounted, or beside it.
        for group in ["0::/../outside", "0::/other"] {
            let found = of(&[
                ("/proc/self/cgroup", group),
                (
                    "/proc/self/mountinfo",
                    "40 32 0:30 /docker/12ab /sys/fs/my\\040groups ro - cgroup2 none rw",
                ),
                ("/sys/fs/my groups/cpu.max", "300000 100000"),
            ]);
            assert_eq!(found, Some(3), "{group}");
        }
    }

    #[test]
    fn this_machine_has_processors() {
        assert!(count() >= 1);
        assert!(count() <= super::thread::cpus());
    }
}
