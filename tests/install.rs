//! `xpool machines --install` and `--uninstall`, on configurations of the tests' own.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Installation, Said, skip};
use insta::assert_snapshot;
use rustix::process::{Signal, geteuid};

/// For a Nix that needs an ssh configuration.
const INSTALL: [&str; 4] = ["machines", "--install", "--nix-version", "2.8"];
const UNINSTALL: [&str; 2] = ["machines", "--uninstall"];

/// A user with configurations of Nix and ssh.
struct User {
    installation: Installation,
}

impl User {
    /// `None`, with a reason, where root cannot be somebody else here.
    fn new(test: &str) -> Option<Self> {
        let user = Self {
            installation: Installation::new(""),
        };
        fs::create_dir_all(user.nix_conf().parent().unwrap()).unwrap();
        fs::create_dir(user.path(".ssh")).unwrap();
        let probe = user.as_user(&["true"]).output();
        if probe.is_ok_and(|probe| probe.status.success()) {
            return Some(user);
        }
        skip(test, "root may have no namespaces of users here");
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.installation.path().join(name)
    }

    fn nix_conf(&self) -> PathBuf {
        self.path(".config/nix/nix.conf")
    }

    fn ssh_config(&self) -> PathBuf {
        self.path(".ssh/config")
    }

    /// A command of an ordinary user's: root becomes one who owns the same files.
    fn as_user(&self, words: &[&str]) -> Command {
        let mut words = words.to_vec();
        if geteuid().is_root() {
            words.splice(0..0, ["unshare", "--user", "--"]);
        }
        let mut command = Command::new(words[0]);
        let template = self.installation.command(&[]);
        for (name, value) in template.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command
            .args(&words[1..])
            .env("NIX_CONF_DIR", self.path("etc"))
            .env_remove("NIX_USER_CONF_FILES")
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        let mut words = vec![env!("CARGO_BIN_EXE_xpool")];
        words.extend(args);
        self.installation
            .said(self.as_user(&words).output().unwrap())
    }

    /// Runs it and expects that it goes well; what it says.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout + &said.stderr
    }

    /// Both configurations.
    fn files(&self) -> [Option<Vec<u8>>; 2] {
        [self.nix_conf(), self.ssh_config()].map(|file| fs::read(file).ok())
    }

    /// The value of `builders` that counts, with this user's folder as `[DIR]`.
    fn builders(&self) -> String {
        let text = fs::read_to_string(self.nix_conf()).unwrap();
        let mut values = text
            .lines()
            .filter_map(|line| line.strip_prefix("builders = "));
        let dir = self.installation.path().to_str().unwrap();
        values.next_back().unwrap().replace(dir, "[DIR]")
    }
}

#[test]
fn what_is_installed_is_uninstalled_to_the_byte_and_twice_is_as_good_as_once() {
    const HOST: &str = "Host a\n  Port 7\n";
    let cases = [
        (None, None, "@[DIR]/etc/machines"),
        (Some(""), Some(""), "@[DIR]/etc/machines"),
        (
            Some("trusted-users = root a\nmax-jobs = 2"),
            Some("Host a"),
            "@[DIR]/etc/machines",
        ),
        (
            Some("builders = @/x ; b\r\ncores = 1\r\n"),
            Some(HOST),
            "@/x ; b",
        ),
        (Some("builders = b # c\n# builders = d\n\n"), None, "b"),
    ];
    for (nix_conf, ssh_config, builders) in cases {
        let Some(user) = User::new("what_is_installed_is_uninstalled") else {
            return;
        };
        for (file, text) in [(user.nix_conf(), nix_conf), (user.ssh_config(), ssh_config)] {
            if let Some(text) = text {
                fs::write(&file, text).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            }
        }
        let before = user.files();
        user.ok(&INSTALL);
        assert_eq!(user.builders(), format!("{builders};@[DIR]/state/machines"));
        let installed = user.files();
        let text = String::from_utf8(installed[0].clone().unwrap()).unwrap();
        assert!(text.starts_with(nix_conf.unwrap_or_default()), "{text}");
        assert_eq!(
            text.matches("trusted-users").count(),
            nix_conf.map_or(0, |text| text.matches("trusted-users").count())
        );
        if nix_conf.is_some() {
            let mode = fs::metadata(user.nix_conf()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
        }
        assert!(user.ok(&INSTALL).contains("Unchanged"));
        assert_eq!(user.files(), installed);
        user.ok(&UNINSTALL);
        assert_eq!(user.files(), before);
        assert!(user.ok(&UNINSTALL).contains("Unchanged"));
        assert_eq!(user.files(), before);
    }
}

#[test]
fn the_machines_own_builders_stay_in_force() {
    let Some(user) = User::new("the_machines_own_builders_stay_in_force") else {
        return;
    };
    fs::create_dir(user.path("etc")).unwrap();
    fs::write(user.path("etc/nix.conf"), "!include more.conf\n").unwrap();
    fs::write(
        user.path("etc/more.conf"),
        "builders = ssh://a x86_64-linux\n",
    )
    .unwrap();
    user.ok(&INSTALL);
    assert_eq!(
        user.builders(),
        "ssh://a x86_64-linux;@[DIR]/state/machines"
    );
}

#[test]
fn install_says_what_it_changes_and_a_dry_run_changes_nothing() {
    let Some(user) = User::new("install_says_what_it_changes") else {
        return;
    };
    fs::write(user.nix_conf(), "max-jobs = 2\n").unwrap();
    let dry = [INSTALL.as_slice(), &["--dry-run"]].concat();
    let before = user.files();
    assert_snapshot!(user.run(&dry).stdout, @r#"
    would change [DIR]/.config/nix/nix.conf
      + # begin xpool (`xpool machines --uninstall` takes this away)
      + builders = @[DIR]/etc/machines;@[DIR]/state/machines
      + # end xpool
    would make [DIR]/.ssh/config
      + # begin xpool (`xpool machines --uninstall` takes this away, with this file)
      + Include "[DIR]/state/ssh_config"
      + # end xpool
    "#);
    assert_eq!(user.files(), before);
    assert_snapshot!(user.ok(&INSTALL), @r"
         Changed [DIR]/.config/nix/nix.conf
            Made [DIR]/.ssh/config
    The machines are there while a manager runs. Where a nix-daemon builds, it takes them from users that it trusts only;
    for all users of this machine, let root install it, with your `--state-dir`.
    ");
    assert_snapshot!(user.ok(&["machines", "--uninstall", "--dry-run"]), @r#"
    would change [DIR]/.config/nix/nix.conf
      - # begin xpool (`xpool machines --uninstall` takes this away)
      - builders = @[DIR]/etc/machines;@[DIR]/state/machines
      - # end xpool
    would remove [DIR]/.ssh/config
      - # begin xpool (`xpool machines --uninstall` takes this away, with this file)
      - Include "[DIR]/state/ssh_config"
      - # end xpool
    "#);
    assert_snapshot!(user.ok(&UNINSTALL), @r"
         Changed [DIR]/.config/nix/nix.conf
         Removed [DIR]/.ssh/config
    ");
}

#[test]
fn a_nix_that_needs_no_ssh_configuration_gets_none() {
    let Some(user) = User::new("a_nix_that_needs_no_ssh_configuration_gets_none") else {
        return;
    };
    user.ok(&INSTALL);
    user.ok(&["machines", "--install", "--nix-version", "2.31"]);
    assert_eq!(
        user.builders(),
        "@[DIR]/etc/machines;@[DIR]/state/machines-ssh-port"
    );
    assert!(!user.ssh_config().exists());
    user.ok(&["machines", "--install", "--transport", "local"]);
    assert_eq!(
        user.builders(),
        "@[DIR]/etc/machines;@[DIR]/state/machines-local"
    );
    user.ok(&UNINSTALL);
    assert_eq!(user.files(), [None, None]);
}

#[test]
fn a_file_that_something_else_makes_is_left_alone_with_all_others() {
    let Some(user) = User::new("a_file_that_something_else_makes_is_left_alone") else {
        return;
    };
    fs::write(user.path("made"), "Host a\n").unwrap();
    symlink(user.path("made"), user.ssh_config()).unwrap();
    let before = user.files();
    assert_snapshot!(user.run(&INSTALL).stderr, @r#"
    error: `[DIR]/.ssh/config` is a link to `[DIR]/made`, so something else makes it and would undo a change

    hint: add this where it is made: `Include "[DIR]/state/ssh_config"`; for NixOS, `xpool machines --format nixos` prints a module
    "#);
    assert_eq!(user.files(), before);
    // Nothing is to be taken away.
    assert!(user.ok(&UNINSTALL).contains("Unchanged"));
}

#[test]
fn a_folder_that_cannot_be_written_leaves_all_as_it_was() {
    let Some(user) = User::new("a_folder_that_cannot_be_written_leaves_all_as_it_was") else {
        return;
    };
    fs::write(user.nix_conf(), "max-jobs = 2\n").unwrap();
    let mode = |mode| fs::set_permissions(user.path(".ssh"), fs::Permissions::from_mode(mode));
    mode(0o555).unwrap();
    let before = user.files();
    let said = user.run(&INSTALL);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .contains("writing `[DIR]/.ssh/config`: Permission denied"),
        "{}",
        said.stderr
    );
    assert_eq!(user.files(), before);
    mode(0o755).unwrap();
    user.ok(&INSTALL);
    let installed = user.files();
    // A file can be removed from it as little.
    mode(0o555).unwrap();
    assert_eq!(user.run(&UNINSTALL).code, Some(1));
    assert_eq!(user.files(), installed);
    mode(0o755).unwrap();
}

#[test]
fn marks_that_somebody_has_changed_are_not_guessed_at() {
    let Some(user) = User::new("marks_that_somebody_has_changed_are_not_guessed_at") else {
        return;
    };
    fs::write(user.nix_conf(), "# begin xpool\nbuilders = a\n").unwrap();
    let said = user.run(&INSTALL).stderr;
    assert_eq!(user.run(&UNINSTALL).stderr, said);
    assert_snapshot!(said, @r"
    error: looking for what xpool has added: `[DIR]/.config/nix/nix.conf` has `# begin xpool` without its `# end xpool`, or more than one of them

    hint: take these lines, and what is between them, away by hand
    ");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let installation = Installation::new("");
    for args in [
        ["machines", "--install", "--uninstall"].as_slice(),
        &["machines", "--install", "riscv64"],
        &["machines", "--install", "--format", "nixos"],
        &["machines", "--uninstall", "--transport", "ssh"],
        &["machines", "--dry-run"],
    ] {
        assert_eq!(installation.run(args).code, Some(2), "{args:?}");
    }
}

/// Root, in a mount namespace in which /etc/ssh is the folder `ssh` of the installation.
fn as_root(installation: &Installation, args: &[&str]) -> Said {
    let script = r#"mount --bind "$1" /etc/ssh && shift && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", script, "sh"]);
    command.arg(installation.path().join("ssh"));
    command.arg(env!("CARGO_BIN_EXE_xpool")).args(args);
    let template = installation.command(&[]);
    for (name, value) in template.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.env("NIX_CONF_DIR", installation.path().join("nix-conf"));
    installation.said(command.stdin(Stdio::null()).output().unwrap())
}

#[test]
fn root_installs_for_the_whole_machine() {
    let installation = Installation::new("");
    let at = |name: &str| installation.path().join(name);
    fs::create_dir_all(at("ssh/ssh_config.d")).unwrap();
    fs::create_dir(at("nix-conf")).unwrap();
    fs::write(
        at("ssh/ssh_config"),
        "# Include /etc/ssh/ssh_config.d/*.conf\n",
    )
    .unwrap();
    let said = as_root(&installation, &INSTALL);
    if said.stderr.contains("/etc/ssh") && said.stderr.contains("mount") {
        return skip(
            "root_installs_for_the_whole_machine",
            "nothing can be mounted over /etc/ssh",
        );
    }
    assert_snapshot!(said.stderr, @r"
    error: `/etc/ssh/ssh_config` does not include `/etc/ssh/ssh_config.d/xpool.conf`

    hint: put `Include /etc/ssh/ssh_config.d/*.conf` at the top of `/etc/ssh/ssh_config`; or take a Nix from 2.31 on, which needs no ssh configuration
    ");
    fs::write(
        at("ssh/ssh_config"),
        "Include /etc/ssh/ssh_config.d/*.conf\n",
    )
    .unwrap();
    assert_snapshot!(as_root(&installation, &INSTALL).stderr, @r"
            Made [DIR]/nix-conf/nix.conf
            Made /etc/ssh/ssh_config.d/xpool.conf
    A nix-daemon that runs knows it when it is started anew. The machines are there while a manager runs.
    ");
    assert!(
        as_root(&installation, &INSTALL)
            .stderr
            .contains("Unchanged")
    );
    let piece = at("ssh/ssh_config.d/xpool.conf");
    let mode = fs::metadata(&piece).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "every user's ssh reads it");
    assert_eq!(as_root(&installation, &UNINSTALL).code, Some(0));
    assert!(!piece.exists() && !at("nix-conf/nix.conf").exists());
}

/// `nix-build` for riscv64 by a Nix that was told nothing but what is installed; what it says.
fn build(user: &User) -> String {
    let expression = r#"derivation { name = "a"; system = "riscv64-linux"; builder = "/bin/sh"; }"#;
    let mut command = Command::new("nix-build");
    command.arg("--store").arg(user.path("client"));
    let output = command
        .args(["--no-out-link", "-E", expression])
        .env("HOME", user.installation.path())
        .env("NIX_CONF_DIR", user.path("etc"))
        .env("NIX_CONFIG", "build-users-group =\nsubstitute = false")
        // ssh finds a home by the user's name.
        .env("NIX_SSHOPTS", format!("-F {}", user.ssh_config().display()))
        .env_remove("NIX_REMOTE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn nix_sees_the_machines_while_a_manager_runs_and_none_otherwise() {
    let test = "nix_sees_the_machines_while_a_manager_runs_and_none_otherwise";
    if Command::new("nix-build").arg("--version").output().is_err() {
        return skip(test, "there is no Nix");
    }
    let Some(user) = User::new(test) else { return };
    user.ok(&INSTALL);
    let required = "a 'riscv64-linux' with features {} is required to build";
    let is_alone = |said: &str| {
        (said.contains(required) || said.contains("Required system: 'riscv64-linux'"))
            && !said.contains("cannot build on")
    };
    assert!(is_alone(&build(&user)), "{}", build(&user));
    let mut serving = user.installation.serve();
    let said = build(&user);
    // The way leads to the manager, which has no image to start.
    assert!(
        said.contains("building '") && said.contains("on 'ssh-ng://riscv64-00@xpool-riscv64'"),
        "{said}"
    );
    assert!(said.contains("`xpool image build riscv64`"), "{said}");
    serving.signal(Signal::KILL);
    assert_eq!(serving.ended(), None);
    assert!(!is_alone(&build(&user)));
    user.run(&["status"]);
    assert!(is_alone(&build(&user)));
}

#[test]
fn ssh_knows_the_gateway_by_the_host_key_of_a_line_with_a_port() {
    let installation = Installation::new("");
    let _serving = installation.serve();
    let line = installation
        .command(&["machines", "--nix-version", "2.31"])
        .output();
    let line = String::from_utf8(line.unwrap().stdout).unwrap();
    let fields: Vec<&str> = line.lines().next().unwrap().split(' ').collect();
    let place = fields[0].strip_prefix("ssh-ng://").unwrap();
    let (login, port) = place.rsplit_once(':').unwrap();
    // What Nix does with the field: the host's name without the port, and the key.
    let script = r#"printf '127.0.0.1 %s\n' "$(printf %s "$1" | base64 -d)" > "$2""#;
    let known = installation.path().join("known");
    let mut decode = Command::new("sh");
    decode.args(["-c", script, "sh", fields[7]]).arg(&known);
    assert!(decode.status().unwrap().success());
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F/dev/null",
        "-oStrictHostKeyChecking=yes",
        "-oBatchMode=yes",
        "-i",
        fields[2],
    ]);
    ssh.arg(format!("-oUserKnownHostsFile={}", known.display()));
    ssh.args([&format!("-p{port}"), login, "nix-daemon --stdio"]);
    let output = ssh.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !said.contains("verification failed") && output.status.code() != Some(255),
        "{said}"
    );
}
