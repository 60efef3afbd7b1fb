//! What builders on NixOS have, so that a build cannot tell a guest from one: the values that guests are held against, the portable
//! ones by what a build sees (tests/real/contract), the NixOS one by its options (tests/it/nix.rs).

/// Who sees to a value in the NixOS guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// images/guest.nix.
    Guest,
    /// NixOS itself, or systemd's or the kernel's own defaults.
    NixOs,
}

/// Names of sysctls, their values, and who sees to them. Those of a network namespace are of one that a build makes.
pub const SYSCTLS: [(&str, &str, By); 15] = [
    // nixos/modules/config/sysctl.nix, since 24.05 and 25.05.
    ("vm.max_map_count", "1048576", By::Guest),
    ("fs.inotify.max_user_instances", "524288", By::Guest),
    ("fs.inotify.max_user_watches", "524288", By::Guest),
    ("kernel.kptr_restrict", "1", By::NixOs),
    ("kernel.yama.ptrace_scope", "0", By::NixOs),
    // sysctl.d/50-pid-max.conf of systemd.
    ("kernel.pid_max", "4194304", By::Guest),
    // sysctl.d/50-default.conf of systemd.
    ("fs.protected_hardlinks", "1", By::NixOs),
    ("fs.protected_symlinks", "1", By::NixOs),
    ("fs.protected_regular", "1", By::NixOs),
    ("fs.protected_fifos", "1", By::NixOs),
    // The kernel's own, which Debian's is built or patched to have otherwise.
    ("kernel.perf_event_paranoid", "2", By::NixOs),
    ("kernel.unprivileged_bpf_disabled", "2", By::NixOs),
    ("vm.overcommit_memory", "0", By::NixOs),
    ("vm.swappiness", "60", By::NixOs),
    // The largest process is killed where memory ends.
    ("vm.oom_kill_allocating_task", "0", By::NixOs),
];

/// What `ulimit` says to a build. `LimitNOFILE` of NixOS's nix-daemon.service, the kernel's own for the others, and no core files
/// unless a build asks for them, which is Nix's doing.
pub const LIMITS: [(&str, &str); 8] = [
    ("-Sn", "1048576"),
    ("-Hn", "1048576"),
    ("-Sc", "0"),
    ("-Hc", "unlimited"),
    ("-Ss", "8192"),
    ("-Hs", "unlimited"),
    ("-Sl", "8192"),
    ("-Hl", "8192"),
];

/// What `/bin/sh` in a sandbox must not have inside.
pub const NO_TOOLS: [&str; 14] = [
    "ar", "awk", "basename", "busybox", "cat", "cp", "date", "find", "install", "ln", "patch",
    "sed", "sort", "xargs",
];
