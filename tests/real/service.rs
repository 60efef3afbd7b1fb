//! The units of scripts/systemd, installed as they say themselves, in a systemd that runs them, with a real Nix and real guests.
//! `scripts/test` makes the images and runs it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::inputs::copied;
use crate::common::machine::Machine;
use crate::common::nix::{MACHINE, derivation, sleeper, stderr};
use crate::common::{ended, roots_own, skip, tools};

const SYSTEM: &str = "riscv64-linux";

const UNIT: &str = "scripts/systemd/xpool.service";
const USER_UNIT: &str = "scripts/systemd/user/xpool.service";

/// Where the units' users are told to be: a clone in which xpool was built.
const CLONE: &str = "/srv/xpool";

/// What Nix reads of machines, while a manager serves.
const MACHINES: &str = "/etc/xpool/machines";

/// Nix as distributions have it: a daemon of root's that somebody's connection starts.
const NIX_DAEMON: &str =
    "[Service]\nExecStart=/usr/bin/env nix-daemon --daemon\nKillMode=process\n";
const NIX_SOCKET: &str = "[Socket]\nListenStream=/nix/var/nix/daemon-socket/socket\n[Install]\nWantedBy=sockets.target\n";
/// What runs an ordinary user's services, without the rest of a login.
const USER_MANAGER: &str = "[Service]\nType=notify\nUser=alice\nRuntimeDirectory=user/4242\nRuntimeDirectoryMode=0700\n\
    Environment=XDG_RUNTIME_DIR=/run/user/4242\nDelegate=yes\nKillMode=mixed\nExecStart=/lib/systemd/systemd --user\n";
const NIX_CONF: &str = "substitute = false\nbuild-users-group = nixbld\n";

/// A machine with Nix, with an ordinary user, and with what the unit's user has.
fn machine(test: &str) -> Option<Machine> {
    let machine = Machine::start(test)?;
    if !machine
        .run("root", &["which", "nix-daemon"])
        .status
        .success()
    {
        skip(test, "there is no nix-daemon where a service finds it");
        return None;
    }
    machine.write("/etc/nix/nix.conf", NIX_CONF);
    machine.write("/etc/systemd/system/nix-daemon.service", NIX_DAEMON);
    machine.write("/etc/systemd/system/nix-daemon.socket", NIX_SOCKET);
    for command in [
        "groupadd --force --system kvm",
        "groupadd --force --system nixbld",
        "useradd --system --no-create-home --groups nixbld nixbld1",
        "useradd --create-home --uid 4242 alice",
        "systemctl enable --now nix-daemon.socket",
    ] {
        machine.ok("root", &["sh", "-c", command]);
    }
    let built = Path::new(env!("CARGO_BIN_EXE_xpool"));
    machine.copy(built, &format!("{CLONE}/target/release/xpool"));
    machine.copy(
        Path::new("scripts/systemd"),
        &format!("{CLONE}/scripts/systemd"),
    );
    let place = tempfile::tempdir().unwrap();
    tools::put_into(place.path());
    machine.copy(&place.path().join("tools"), "/tools");
    Some(machine)
}

/// Does, as a user, what a unit says at its top. The image is not built, but copied.
fn install(machine: &Machine, unit: &str, user: &str) {
    let unit = fs::read_to_string(unit).unwrap();
    let steps = unit.lines().take_while(|line| line.starts_with('#'));
    let steps: Vec<&str> = steps.filter_map(|line| line.strip_prefix("#   ")).collect();
    assert!(steps.len() > 2, "{unit}");
    for step in steps {
        if step.contains(" image build ") {
            copy_images(machine, "xpool", "/var/cache/xpool");
        } else {
            shell(machine, user, step);
        }
    }
}

/// What a login would set.
const LOGIN: &str =
    "export HOME=$(getent passwd $(id -u) | cut -d: -f6) XDG_RUNTIME_DIR=/run/user/$(id -u)";

/// Has a user's shell read a command in the clone.
#[track_caller]
fn shell(machine: &Machine, user: &str, command: &str) -> String {
    machine.ok(
        user,
        &["sh", "-ec", &format!("{LOGIN}\ncd {CLONE}\n{command}")],
    )
}

fn copy_images(machine: &Machine, owner: &str, cache: &str) {
    let images =
        std::env::var_os("XPOOL_TEST_IMAGES").expect("run `scripts/test`, which makes the images");
    let link = Path::new(&images).join(SYSTEM);
    let image = fs::canonicalize(&link).unwrap();
    for from in [&link, &image] {
        let name = from.file_name().unwrap().to_str().unwrap();
        machine.copy(from, &format!("{cache}/images/{name}"));
    }
    machine.ok("root", &["chown", "-R", owner, cache]);
}

/// The xpool of the service's, as a user.
fn xpool(machine: &Machine, user: &str, words: &[&str]) -> String {
    let folders = [
        "xpool",
        "--state-dir",
        "/var/lib/xpool",
        "--cache-dir",
        "/var/cache/xpool",
    ];
    machine.ok(user, &[&folders, words].concat())
}

/// A property of the service, as systemd tells it.
fn property(machine: &Machine, name: &str) -> String {
    let said = machine.ok(
        "root",
        &["systemctl", "show", "--value", "--property", name, "xpool"],
    );
    said.trim().to_owned()
}

/// A build of the ordinary user's, ready to run. It does not know of xpool.
fn build(machine: &Machine, expression: &str) -> Command {
    // The folder `tools` is there.
    let command = ["env", "--chdir=/", "nix-build", "--no-out-link", "-E"];
    machine.command("alice", &[&command[..], &[expression]].concat())
}

/// Builds something whose input is in this machine's store; what came of it.
#[track_caller]
fn built(machine: &Machine, name: &str) -> String {
    let expression = derivation(SYSTEM, name, "", MACHINE);
    let output = build(machine, &expression).output().unwrap();
    let log = stderr(&output);
    assert!(output.status.success(), "{log}\n{}", machine.logs());
    assert_eq!(copied(&log), [""; 0], "{log}\n{}", machine.logs());
    let path = String::from_utf8(output.stdout).unwrap();
    machine.ok("alice", &["cat", path.trim()])
}

/// A build that has been asked for.
fn begun(machine: &Machine, name: &str) -> Child {
    spawned(machine, &derivation(SYSTEM, name, "", MACHINE))
}

fn spawned(machine: &Machine, expression: &str) -> Child {
    let mut build = build(machine, expression);
    let build = build.stdout(Stdio::null()).stderr(Stdio::null());
    build.spawn().unwrap()
}

/// A build that runs.
fn running(machine: &Machine, expression: &str) -> Child {
    let build = spawned(machine, expression);
    machine.until("the build runs", || {
        xpool(machine, "xpool", &["status"]).contains("the build runs")
    });
    build
}

/// How many QEMUs there are in the machine.
fn qemus(machine: &Machine) -> usize {
    let processes = fs::read_dir(machine.path("/proc")).unwrap().flatten();
    let names = processes.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.filter(|name| name.starts_with("qemu-system")).count()
}

/// Kills processes of the service's, and waits until systemd has started it again.
fn kill(machine: &Machine, whom: &str) {
    let killed = property(machine, "MainPID");
    let whom = format!("--kill-whom={whom}");
    machine.ok(
        "root",
        &["systemctl", "kill", "--signal=KILL", &whom, "xpool"],
    );
    machine.until("systemd has started another manager", || {
        let is_another = property(machine, "MainPID") != killed;
        is_another && property(machine, "ActiveState") == "active"
    });
}

#[test]
fn the_service_runs_as_its_user_alone_and_shows_others_nothing() {
    let test = "the_service_runs_as_its_user_alone_and_shows_others_nothing";
    let Some(machine) = machine(test) else {
        return;
    };
    install(&machine, UNIT, "root");
    assert_eq!(property(&machine, "ActiveState"), "active");
    let process = format!("/proc/{}", property(&machine, "MainPID"));
    assert_eq!(
        machine.ok("root", &["stat", "--format", "%U:%G", &process]),
        "xpool:xpool\n"
    );
    let status = xpool(&machine, "xpool", &["status"]);
    assert!(status.contains(SYSTEM), "{status}");

    // But for links to programs, in a folder that nobody else comes to here.
    let seen = [
        "find",
        "/var/lib/xpool",
        "-perm",
        "/077",
        "-not",
        "-path",
        "*/slots*",
    ];
    assert_eq!(machine.ok("root", &seen), "");
    for folder in ["/var/lib/xpool", "/var/cache/xpool"] {
        assert!(!machine.run("alice", &["ls", folder]).status.success());
    }
    // As it runs, not as it is written.
    machine.ok(
        "root",
        &[
            "systemd-analyze",
            "security",
            "--threshold=30",
            "xpool.service",
        ],
    );
}

/// A machine for a system that nobody has, whose program says who runs it.
const EVIL: &str = "printf '#!/bin/sh\nid -un >/tmp/ran\n' >~/evil && chmod 755 ~/evil
    for file in ~/machines ~/machines-ssh /etc/xpool/machines; do
        rm -f $file || true
        echo \"ssh-ng://localhost?remote-program=$HOME/evil evil-linux - 1 1 - - -\" >$file || true
    done
    for link in ~/slots /etc/xpool/slots; do ln -sf ~/evil \"$link/00@xpool-riscv64\" || true; done
    echo 'Match exec ~/evil' >~/ssh_config";

#[test]
fn the_services_user_cannot_change_what_roots_nix_reads_or_executes() {
    let test = "the_services_user_cannot_change_what_roots_nix_reads_or_executes";
    let Some(machine) = machine(test) else {
        return;
    };
    machine.write("/etc/xpool/xpool.toml", "[local]\ngroup = \"kvm\"\n");
    install(&machine, UNIT, "root");
    let run = |words: &[&str]| machine.ok("root", words);
    // What root writes at each start leaves the manager's folder to whom the manager has given it.
    let folder = ["stat", "--format", "%G %a", "/var/lib/xpool"];
    assert_eq!(run(&folder), "kvm 710\n");
    let named = roots_own::named(&run, "/etc/nix/nix.conf");
    let link = "/etc/xpool/slots/00@xpool-riscv64";
    assert!(named.iter().any(|path| path == link), "{named:?}");
    assert_eq!(run(&["readlink", link]), "/usr/local/bin/xpool\n");
    assert_eq!(roots_own::changeable(&run, "/etc/nix/nix.conf"), [""; 0]);

    // Who is not root can do the same for a Nix of their own.
    shell(
        &machine,
        "alice",
        "xpool machines --write-to ~/own && grep -q 00@xpool-riscv64 ~/own/machines",
    );

    shell(&machine, "xpool", EVIL);
    let expression = derivation("evil-linux", "evil", "", "true");
    let output = build(&machine, &expression).output().unwrap();
    assert!(!output.status.success());
    let ran = machine.run("root", &["cat", "/tmp/ran"]);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "",
        "{}",
        stderr(&output)
    );
}

#[test]
fn builds_of_ordinary_users_go_to_the_service_and_outlive_its_manager() {
    let test = "builds_of_ordinary_users_go_to_the_service_and_outlive_its_manager";
    let Some(machine) = machine(test) else {
        return;
    };
    machine.write("/etc/xpool/xpool.toml", "[pool]\nmax-vms = 1\n");
    install(&machine, UNIT, "root");
    assert_eq!(built(&machine, "first"), "riscv64\n");

    let mut goes_on = running(&machine, &sleeper(6));
    kill(&machine, "main");
    assert_eq!(built(&machine, "second"), "riscv64\n");
    assert_eq!(ended(&mut goes_on), Some(0), "{}", machine.logs());

    // With its VMs, as systemd does it if it is not told otherwise.
    kill(&machine, "all");
    assert_eq!(built(&machine, "third"), "riscv64\n");

    is_started_anew_without_refusing_anybody(&machine);
    is_stopped_and_started_by_who_comes(&machine);
}

/// One build runs and another waits for its VM when systemd starts the manager anew, and a third comes meanwhile.
fn is_started_anew_without_refusing_anybody(machine: &Machine) {
    let mut runs = running(machine, &sleeper(12));
    let mut waits = begun(machine, "waits");
    machine.until("a build waits", || {
        let status = xpool(machine, "xpool", &["status"]);
        status.contains("the only VM is busy")
    });
    let restart = ["systemctl", "restart", "xpool"];
    let mut restart = machine.command("root", &restart).spawn().unwrap();
    machine.until("the manager is told to end", || {
        property(machine, "ActiveState") == "deactivating"
    });
    let mut comes = begun(machine, "comes");
    for build in [&mut runs, &mut waits, &mut comes, &mut restart] {
        assert_eq!(ended(build), Some(0), "{}", machine.logs());
    }
}

fn is_stopped_and_started_by_who_comes(machine: &Machine) {
    let mut last = running(machine, &sleeper(4));
    machine.ok("root", &["systemctl", "stop", "xpool.service"]);
    assert_eq!(ended(&mut last), Some(0), "{}", machine.logs());
    assert_eq!(qemus(machine), 0);
    let result = property(machine, "Result");
    assert_eq!(result, "success", "{}", machine.logs());
    assert_eq!(built(machine, "fourth"), "riscv64\n");

    machine.ok("root", &["systemctl", "stop", "xpool.socket"]);
    assert_eq!(property(machine, "ActiveState"), "inactive");
    assert_eq!(qemus(machine), 0);
    assert!(!machine.path(MACHINES).exists());
}

#[test]
fn a_persons_own_service_builds_for_that_person() {
    let test = "a_persons_own_service_builds_for_that_person";
    let Some(machine) = machine(test) else {
        return;
    };
    machine.write("/etc/systemd/system/alices.service", USER_MANAGER);
    machine.ok("root", &["systemctl", "start", "alices"]);
    // As the unit says, but for what is built and for logins.
    machine.write(
        "/usr/local/bin/cargo",
        "#!/bin/sh\ninstall -D target/release/xpool -t ~/.cargo/bin\n",
    );
    machine.write("/usr/local/bin/loginctl", "#!/bin/sh\n");
    machine.ok(
        "root",
        &[
            "chmod",
            "755",
            "/usr/local/bin/cargo",
            "/usr/local/bin/loginctl",
        ],
    );
    copy_images(&machine, "alice", "/home/alice/.cache/xpool");
    install(&machine, USER_UNIT, "alice");
    shell(&machine, "alice", "~/.cargo/bin/xpool machines --install");

    let expression = derivation(SYSTEM, "own", "", MACHINE);
    let mut build = build(&machine, &expression);
    let output = build
        .args(["--store", "/home/alice/store"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        stderr(&output),
        machine.logs()
    );
    let path = String::from_utf8(output.stdout).unwrap();
    let read = shell(&machine, "alice", &format!("cat ~/store{path}"));
    assert_eq!(read, "riscv64\n");
}
