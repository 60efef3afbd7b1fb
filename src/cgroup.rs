//! The memory that the control groups of this process let it have, with all that it starts: in a container, a service with a limit, a
//! CI runner. /proc/meminfo tells of the whole machine there.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`memory.max`, `memory.current`, `memory.stat`) and
//! cgroup-v1/memory.rst (`memory.limit_in_bytes`, `memory.usage_in_bytes`).

use std::fs;
use std::path::Path;

/// What a group may have and has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMemory {
    /// The most that it may have.
    pub limit: u64,
    /// What it has and cannot give back at once.
    pub used: u64,
}

impl GroupMemory {
    /// What it may have beside.
    pub fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// Names of files that one version of control groups has.
struct Names {
    /// Folders that it is mounted at.
    mounts: &'static [&'static str],
    limit: &'static str,
    used: &'static str,
    /// The lines of `memory.stat` that tell of pages which are given back when others need them.
    cache: [&'static str; 2],
}

const V2: Names = Names {
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    used: "memory.current",
    cache: ["active_file ", "inactive_file "],
};

const V1: Names = Names {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: ["total_active_file ", "total_inactive_file "],
};

/// The groups that limit this process, its own and those around it, as the files below `root` have it: `/`, or a test's folder.
pub fn limits(root: &Path) -> Vec<GroupMemory> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups
        .lines()
        .filter_map(of_line)
        .flat_map(|(names, path)| limits_of(root, names, path))
        .collect()
}

/// The version of a line of /proc/self/cgroup, `NUMBER:CONTROLLERS:PATH`, and its path; none for what does not tell of memory.
fn of_line(line: &str) -> Option<(&'static Names, &str)> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    if number == "0" && controllers.is_empty() {
        Some((&V2, path))
    } else {
        let is_memory = controllers.split(',').any(|name| name == "memory");
        is_memory.then_some((&V1, path))
    }
}

fn limits_of(root: &Path, names: &Names, path: &str) -> Vec<GroupMemory> {
    let mounts = names.mounts.iter().map(|mount| root.join(mount));
    let Some(mount) = mounts.into_iter().find(|mount| mount.is_dir()) else {
        return Vec::new();
    };
    // In a container the path may be that of the machine, and the mount that of the container alone.
    let own = mount.join(path.trim_start_matches('/'));
    let mut dir = if own.is_dir() { own } else { mount.clone() };
    let mut found = Vec::new();
    while dir.starts_with(&mount) {
        found.extend(memory_of(names, &dir));
        if !dir.pop() {
            break;
        }
    }
    found
}

/// What a group tells; `None` where it has no limit.
fn memory_of(names: &Names, dir: &Path) -> Option<GroupMemory> {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let limit = number(&read(names.limit)?)?;
    let used = number(&read(names.used)?)?;
    let stat = read("memory.stat").unwrap_or_default();
    let value = |name| {
        stat.lines()
            .find_map(|line| number(line.strip_prefix(name)?))
    };
    let cache: u64 = names.cache.into_iter().filter_map(value).sum();
    Some(GroupMemory {
        limit,
        used: used.saturating_sub(cache),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder with these files.
    pub(crate) fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_limit_may_be_of_any_group_around_this_process() {
        let root = root(&[
            ("proc/self/cgroup", "0::/machine/job/step\n"),
            ("sys/fs/cgroup/machine/memory.max", "max\n"),
            ("sys/fs/cgroup/machine/memory.current", "9999999999\n"),
            ("sys/fs/cgroup/machine/job/memory.max", "3221225472\n"),
            ("sys/fs/cgroup/machine/job/memory.current", "2147483648\n"),
            (
                "sys/fs/cgroup/machine/job/memory.stat",
                "anon 1\nfile 2147483647\ninactive_file 1073741820\nactive_file 4\n",
            ),
            ("sys/fs/cgroup/machine/job/step/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/machine/job/step/memory.current", "0\n"),
        ]);
        let group = |limit, used| GroupMemory { limit, used };
        let found = limits(root.path());
        assert_eq!(found, [group(2 * GIB, 0), group(3 * GIB, GIB)]);
        assert_eq!(found.iter().map(|group| group.left()).min(), Some(2 * GIB));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount_whatever_its_path_is() {
        for cgroup in ["0::/\n", "0::/../elsewhere\n", "0::/docker/4711\n"] {
            let root = root(&[
                ("proc/self/cgroup", cgroup),
                ("sys/fs/cgroup/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/memory.current", "5\n"),
            ]);
            let expected = GroupMemory {
                limit: GIB,
                used: 5,
            };
            assert_eq!(limits(root.path()), [expected], "{cgroup}");
        }
    }

    #[test]
    fn the_first_version_has_other_names() {
        let root = root(&[
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/a\n4:memory:/docker/4711\n0::/a\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "300\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "total_inactive_file 100\n",
            ),
        ]);
        let expected = GroupMemory {
            limit: GIB,
            used: 200,
        };
        assert_eq!(limits(root.path()), [expected]);
    }

    #[test]
    fn nothing_is_known_where_there_are_no_groups() {
        assert_eq!(limits(root(&[]).path()), []);
        let odd = root(&[("proc/self/cgroup", "what\n1:memory\n0::x\n:\n")]);
        assert_eq!(limits(odd.path()), []);
    }
}
