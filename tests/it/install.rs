//! `xpool machines --install` and `--uninstall`, on configurations of the tests' own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::common::Installation;
use crate::common::user::{INSTALL, User};
use insta::assert_snapshot;

const UNINSTALL: [&str; 2] = ["machines", "--uninstall"];

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
        assert_eq!(
            user.builders(),
            format!("{builders};@[DIR]/state/machines-ssh")
        );
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
        "ssh://a x86_64-linux;@[DIR]/state/machines-ssh"
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
      + builders = @[DIR]/etc/machines;@[DIR]/state/machines-ssh
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
      - builders = @[DIR]/etc/machines;@[DIR]/state/machines-ssh
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
    user.ok(&[
        "machines",
        "--install",
        "--transport",
        "ssh",
        "--nix-version",
        "2.31",
    ]);
    assert_eq!(
        user.builders(),
        "@[DIR]/etc/machines;@[DIR]/state/machines-ssh-port"
    );
    assert!(!user.ssh_config().exists());
    user.ok(&["machines", "--install", "--transport", "local"]);
    assert_eq!(user.builders(), "@[DIR]/etc/machines;@[DIR]/state/machines");
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
    let dry = [INSTALL.as_slice(), &["--dry-run"]].concat();
    assert_eq!(user.run(&dry).code, Some(1));
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
        &["machines", "--write-to", "/x", "--install"],
        &["machines", "--write-to", "/x", "riscv64"],
    ] {
        assert_eq!(installation.run(args).code, Some(2), "{args:?}");
    }
}
