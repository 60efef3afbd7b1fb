//! `shell`: a command with its streams on ports, and the end of all that it started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::geteuid;

use super::port::Port;
use super::root::{Guest, Running, Shell, in_each_shell};
use crate::common::{self, skip};

/// A control group that is nobody else's. What is in it must have ended before it goes.
struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    fn new() -> Result<Self, String> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        if !geteuid().is_root() {
            return Err("only root may make control groups".to_owned());
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("xpool-test-{}-{number}", process::id());
        let path = own_group()
            .ok_or("no control groups of version 2 are mounted")?
            .join(name);
        fs::create_dir(&path).map_err(|error| format!("no control group here: {error}"))?;
        let group = Self { path };
        if group.path.join("cgroup.kill").exists() {
            Ok(group)
        } else {
            Err("this kernel's control groups have no cgroup.kill".to_owned())
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.path.join("xpool-shell"));
        let _ = fs::remove_dir(&self.path);
    }
}

/// That of this test.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|fields| fields[2] == "cgroup2")?[1].to_owned();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(&mount).join(own))
}

/// A guest in which a command runs on the ports of a shell.
struct Shelled {
    // Ends before its control group can be removed.
    guest: Guest,
    _group: ControlGroup,
    ports: [Port; 3],
    running: Running,
}

impl Shelled {
    fn new(shell: Shell, args: &[&str]) -> Self {
        let group = ControlGroup::new().unwrap();
        let guest = Guest::with_control_group(shell, &group.path);
        let ports = ["0", "1", "2"].map(|n| Port::new(&guest, &format!("xpool.shell.{n}")));
        let running = guest.start(args);
        Self {
            guest,
            _group: group,
            ports,
            running,
        }
    }
}

/// Runs a test in each shell, where there are control groups.
fn in_each_shell_with_groups(test: &str, run: impl Fn(Shell) + Sync) {
    match ControlGroup::new() {
        Ok(_) => in_each_shell(test, run),
        Err(why) => skip(test, &why),
    }
}

#[test]
fn a_command_has_its_streams_apart_and_its_exit_code() {
    in_each_shell_with_groups(
        "a_command_has_its_streams_apart_and_its_exit_code",
        |shell| {
            let command = "read -r line; echo \"out $line\"; echo \"err $line\" >&2; \
                           echo \"$HOME $USER $NIX_REMOTE ${XPOOL_COMMAND-}\" >/seen; exit 7";
            let shelled = Shelled::new(shell, &["shell", "pipes", command]);
            let [stdin, stdout, stderr] = &shelled.ports;
            stdin.send(b"a line\n");
            assert_eq!(stdout.line(), "out a line");
            assert_eq!(stderr.line(), "err a line");
            let said = shelled.running.said();
            assert_eq!((said.code, said.stderr.as_str()), (Some(7), ""));
            for port in &shelled.ports {
                port.until_closed();
            }
            assert_eq!(shelled.guest.read("/seen"), "/root root daemon \n");
        },
    );
}

#[test]
fn what_a_command_leaves_in_the_background_ends_with_it() {
    in_each_shell_with_groups(
        "what_a_command_leaves_in_the_background_ends_with_it",
        |shell| {
            let command = "mkfifo /never; setsid cat /never & echo begun";
            let shelled = Shelled::new(shell, &["shell", "pipes", command]);
            assert_eq!(shelled.ports[1].line(), "begun");
            assert_eq!(shelled.running.said().code, Some(0));
            shelled.guest.until_nothing_runs();
        },
    );
}

#[test]
fn when_the_host_closes_the_second_port_all_ends_that_was_started() {
    in_each_shell_with_groups(
        "when_the_host_closes_the_second_port_all_ends_that_was_started",
        |shell| {
            let command = "mkfifo /never; setsid cat /never & echo begun; wait";
            let shelled = Shelled::new(shell, &["shell", "pipes", command]);
            let [_stdin, stdout, _stderr] = shelled.ports;
            assert_eq!(stdout.line(), "begun");
            stdout.close();
            shelled.running.said();
            shelled.guest.until_nothing_runs();
        },
    );
}

#[test]
fn a_terminal_has_the_sizes_that_the_host_tells() {
    in_each_shell_with_groups("a_terminal_has_the_sizes_that_the_host_tells", |shell| {
        let command = "echo \"$TERM\"; stty size; read -r _; stty size; exit 3";
        let args = ["shell", "tty", "24", "80", "vt100", command];
        let shelled = Shelled::new(shell, &args);
        let [stdin, stdout, _stderr] = &shelled.ports;
        assert_eq!(stdout.line(), "vt100");
        assert_eq!(stdout.line(), "24 80");
        stdout.send(b"50 132\n");
        let terminal = shelled.guest.path("/run/xpool/shell/tty");
        let terminal = fs::read_to_string(terminal).unwrap();
        common::until("the terminal is as large", String::new, || {
            let args = ["-F", terminal.trim(), "size"];
            let said = shelled.guest.start_program("stty", &args, "").said();
            said.stdout == "50 132\n"
        });
        stdin.send(b"\n");
        // What was typed is echoed.
        assert_eq!(stdout.line(), "");
        assert_eq!(stdout.line(), "50 132");
        assert_eq!(shelled.running.said().code, Some(3));
        shelled.guest.until_nothing_runs();
    });
}

#[test]
fn a_guest_without_the_ports_of_a_shell_says_so() {
    in_each_shell("a_guest_without_the_ports_of_a_shell_says_so", |shell| {
        let said = Guest::new(shell).run(&["shell", "pipes", "true"]);
        assert_eq!(said.code, Some(1));
        assert_eq!(said.stderr, "xpool-guest: no port xpool.shell.2\n");
    });
}
