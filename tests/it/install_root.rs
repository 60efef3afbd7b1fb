//! `xpool machines --install` and `--write-to` as root, for a manager of another user's: what root's Nix reads is root's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::common::rooted::{LOCAL, Rooted, SAFE};
use crate::common::user::INSTALL;
use insta::assert_snapshot;

const UNINSTALL: [&str; 2] = ["machines", "--uninstall"];

#[test]
fn nothing_that_roots_nix_reads_or_executes_can_be_changed_by_the_managers_user() {
    let test = "nothing_that_roots_nix_reads_or_executes_can_be_changed_by_the_managers_user";
    let Some(rooted) = Rooted::of_a_users_manager(test) else {
        return;
    };
    let [local, port] = [["local", "2.8"], ["ssh", "2.31"]].map(|[transport, version]| {
        [
            "machines",
            "--install",
            "--transport",
            transport,
            "--nix-version",
            version,
        ]
    });
    // nix.conf, machines of the machine's own, xpool's; for each of four lines a program or a key; ssh's piece, what it
    // includes, and two files in it for each system.
    for (install, n_named) in [(local, 7), (port, 7), (INSTALL, 13)] {
        rooted.ok(&[&[rooted.own().as_str()], &install[..]].concat());
        assert_eq!(rooted.walk(), (vec![], n_named), "{install:?}");
    }
}

#[test]
fn root_installs_for_the_whole_machine() {
    let Some(rooted) = Rooted::new("root_installs_for_the_whole_machine") else {
        return;
    };
    // Of a manager of its own, whose folder nobody else can change.
    let install = [&[SAFE], &INSTALL[..], &["--state-dir", "/usr/local/state"]].concat();
    let include = "Include /etc/ssh/ssh_config.d/*.conf\n";
    fs::write(rooted.at("etc/ssh/ssh_config"), format!("# {include}")).unwrap();
    assert_snapshot!(rooted.run(&install).stderr, @r"
    error: `/etc/ssh/ssh_config` does not include `/etc/ssh/ssh_config.d/xpool.conf`

    hint: put `Include /etc/ssh/ssh_config.d/*.conf` at the top of `/etc/ssh/ssh_config`; or take a Nix from 2.31 on, which needs no ssh configuration
    ");
    fs::write(rooted.at("etc/ssh/ssh_config"), include).unwrap();
    assert_snapshot!(rooted.ok(&install), @r"
            Made [DIR]/nix-conf/nix.conf
            Made /etc/ssh/ssh_config.d/xpool.conf
    A nix-daemon that runs knows it when it is started anew. The machines are there while a manager runs.
    ");
    assert!(rooted.ok(&install).contains("Unchanged"));
    let conf = fs::read_to_string(rooted.nix_conf()).unwrap();
    assert!(conf.contains(";@/usr/local/state/machines-ssh\n"), "{conf}");
    assert_eq!(rooted.walk().0, [""; 0]);
    let piece = rooted.at("etc/ssh/ssh_config.d/xpool.conf");
    let mode = fs::metadata(&piece).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "every user's ssh reads it");
    rooted.ok(&[&[SAFE], &UNINSTALL[..]].concat());
    assert!(!piece.exists() && !rooted.nix_conf().exists());
}

#[test]
fn a_nix_conf_that_something_else_replaces_includes_the_machines() {
    let test = "a_nix_conf_that_something_else_replaces_includes_the_machines";
    let Some(rooted) = Rooted::new(test) else {
        return;
    };
    let install = [&[SAFE], &LOCAL[..], &["--state-dir", "/usr/local/state"]].concat();
    let custom = rooted.at("nix-conf/nix.custom.conf");
    let conf = "# do not modify! this file will be replaced!\nmax-jobs = auto\n\n!include nix.custom.conf\n";
    // As it was before Determinate Nix came.
    rooted.ok(&install);
    let before = fs::read_to_string(rooted.nix_conf()).unwrap();
    fs::write(rooted.nix_conf(), before + conf).unwrap();
    fs::write(&custom, "cores = 1\nbuilders = @/etc/others\n").unwrap();
    assert_snapshot!(rooted.ok(&install), @r"
         Changed [DIR]/nix-conf/nix.custom.conf
         Changed [DIR]/nix-conf/nix.conf
    A nix-daemon that runs knows it when it is started anew. The machines are there while a manager runs.
    ");
    assert_eq!(fs::read_to_string(rooted.nix_conf()).unwrap(), conf);
    let effective = || {
        let settings = fs::read_to_string(&custom).unwrap();
        let mut values = settings
            .lines()
            .filter_map(|line| line.strip_prefix("builders = "));
        values.next_back().unwrap().to_owned()
    };
    assert_eq!(effective(), "@/etc/others;@/usr/local/state/machines");
    // As it does at each start.
    fs::write(rooted.nix_conf(), format!("{conf}# new\n")).unwrap();
    assert!(rooted.ok(&install).contains("Unchanged"));
    assert_eq!(effective(), "@/etc/others;@/usr/local/state/machines");
    rooted.ok(&[&[SAFE], &UNINSTALL[..]].concat());
    assert_eq!(effective(), "@/etc/others");
}

#[test]
fn roots_own_manager_in_a_folder_that_others_can_replace_is_anothers() {
    let test = "roots_own_manager_in_a_folder_that_others_can_replace_is_anothers";
    let Some(rooted) = Rooted::new(test) else {
        return;
    };
    // In /tmp: anybody can make it anew when it is gone.
    rooted.ok(&[&[SAFE], &INSTALL[..]].concat());
    assert_eq!(rooted.walk(), (vec![], 13));
}

#[test]
fn root_installs_what_another_user_runs_by_files_of_its_own() {
    let test = "root_installs_what_another_user_runs_by_files_of_its_own";
    let Some(rooted) = Rooted::of_a_users_manager(test) else {
        return;
    };
    let own = rooted.own();
    let with = |words: &[&str]| rooted.ok(&[&[own.as_str()], words].concat());
    fs::create_dir(rooted.at("etc/xpool")).unwrap();
    fs::write(rooted.at("etc/xpool/xpool.toml"), "").unwrap();
    let state = fs::read_dir(rooted.at("state")).unwrap().count();
    assert_snapshot!(with(&[&LOCAL[..], &["--dry-run"]].concat()), @r"
    would write /usr/local/libexec/xpool
    would write /etc/xpool/slots
    would write /etc/xpool/machines
    would make [DIR]/nix-conf/nix.conf
      + # begin xpool (`xpool machines --uninstall` takes this away, with this file)
      + builders = @[DIR]/nix-conf/machines;@/etc/xpool/machines
      + # end xpool
    ");
    assert!(!rooted.at("etc/xpool/machines").exists());
    assert_snapshot!(with(&LOCAL), @r"
           Wrote /usr/local/libexec/xpool
           Wrote /etc/xpool/slots
           Wrote /etc/xpool/machines
            Made [DIR]/nix-conf/nix.conf
    A nix-daemon that runs knows it when it is started anew. Without a manager, Nix warns and goes on without the machines.
    Do this again after a change of xpool, of its configuration or of its keys.
    Nix runs the copy /usr/local/libexec/xpool, as others than root can change `[DIR]/bin/xpool`.
    ");
    assert!(with(&LOCAL).contains("Unchanged"));
    let machines = fs::read_to_string(rooted.at("etc/xpool/machines")).unwrap();
    let line = machines.lines().next().unwrap();
    let line = line.replace(rooted.installation.path().to_str().unwrap(), "[DIR]");
    assert_snapshot!(line, @"ssh-ng://localhost?remote-program=/etc/xpool/slots/00@xpool-aarch64 aarch64-linux - 1 1 benchmark,big-parallel - -");
    // Nix runs it as anybody.
    let mode = |name: &str| fs::metadata(rooted.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("etc/xpool/machines"), 0o644);
    assert_eq!(mode("local/libexec/xpool"), 0o755);

    assert_snapshot!(with(&INSTALL), @r"
           Wrote /etc/xpool/client_ed25519
           Wrote /etc/xpool/known_hosts
           Wrote /etc/xpool/ssh_config
           Wrote /etc/xpool/machines
            Made /etc/ssh/ssh_config.d/xpool.conf
    A nix-daemon that runs knows it when it is started anew. Without a manager, Nix warns and goes on without the machines.
    Do this again after a change of xpool, of its configuration or of its keys.
    ");
    assert_eq!(mode("etc/xpool/client_ed25519"), 0o600);
    assert_eq!(
        fs::read_dir(rooted.at("state")).unwrap().count(),
        state,
        "it is not root's"
    );
    assert_snapshot!(with(&[&UNINSTALL[..], &["--dry-run"]].concat()), @r#"
    would remove [DIR]/nix-conf/nix.conf
      - # begin xpool (`xpool machines --uninstall` takes this away, with this file)
      - builders = @[DIR]/nix-conf/machines;@/etc/xpool/machines
      - # end xpool
    would remove /etc/ssh/ssh_config.d/xpool.conf
      - # begin xpool (`xpool machines --uninstall` takes this away, with this file)
      - Include "/etc/xpool/ssh_config"
      - # end xpool
    would remove /etc/xpool/machines
    would remove /etc/xpool/slots
    would remove /etc/xpool/ssh_config
    would remove /etc/xpool/known_hosts
    would remove /etc/xpool/client_ed25519
    would remove /usr/local/libexec/xpool
    "#);
    assert_snapshot!(with(&UNINSTALL), @r"
    Removed [DIR]/nix-conf/nix.conf
    Removed /etc/ssh/ssh_config.d/xpool.conf
    Removed /etc/xpool/machines
    Removed /etc/xpool/slots
    Removed /etc/xpool/ssh_config
    Removed /etc/xpool/known_hosts
    Removed /etc/xpool/client_ed25519
    Removed /usr/local/libexec/xpool
    ");
    assert_eq!(
        fs::read_dir(rooted.at("etc/xpool")).unwrap().count(),
        1,
        "configuration"
    );
    assert!(!rooted.at("local/libexec/xpool").exists());
    assert!(with(&UNINSTALL).contains("Unchanged"));
}

#[test]
fn a_program_that_only_root_can_write_is_run_where_it_is() {
    let test = "a_program_that_only_root_can_write_is_run_where_it_is";
    let Some(rooted) = Rooted::of_a_users_manager(test) else {
        return;
    };
    rooted.ok(&[&[SAFE], &LOCAL[..]].concat());
    let link = fs::read_link(rooted.at("etc/xpool/slots/00@xpool-riscv64")).unwrap();
    assert_eq!(link.to_str(), Some(SAFE));
    assert!(!rooted.at("local/libexec").exists());
    assert_eq!(rooted.walk(), (vec![], 7));
}

#[test]
fn files_are_written_only_where_nobody_else_can_write() {
    let test = "files_are_written_only_where_nobody_else_can_write";
    let Some(rooted) = Rooted::of_a_users_manager(test) else {
        return;
    };
    let write_to = |program: &str, dir: &str| rooted.run(&[program, "machines", "--write-to", dir]);
    fs::create_dir_all(rooted.at("local/alices/below")).unwrap();
    rooted.give_away("local/alices");
    let mode =
        |name: &str, mode| fs::set_permissions(rooted.at(name), fs::Permissions::from_mode(mode));
    fs::create_dir_all(rooted.at("local/group")).unwrap();
    mode("local/group", 0o775).unwrap();
    symlink("/usr/local/alices/below", rooted.at("local/link")).unwrap();
    let in_tmp = rooted.at("below-tmp").display().to_string();
    let refused = |dir| {
        let said = write_to(SAFE, dir);
        assert_eq!(said.code, Some(1), "{dir}");
        said.stderr.lines().next().unwrap().to_owned()
    };
    let dirs = [
        "/usr/local/alices/new",
        "/usr/local/group",
        "/usr/local/link/new",
        &in_tmp,
        "/usr/local/a b",
    ];
    assert_snapshot!(dirs.map(refused).join("\n"), @r"
    error: `/usr/local/alices/new` is not safe: user 65534 can change `/usr/local/alices`
    error: `/usr/local/group` is not safe: group 0 can change `/usr/local/group`
    error: `/usr/local/link/new` is not safe: user 65534 can change `/usr/local/alices`
    error: `[DIR]/below-tmp` is not safe: everybody can change `/tmp`
    error: the folder `/usr/local/a b` has white space in its name, which Nix cannot read; name another one with `--write-to`
    ");
    assert_snapshot!(write_to(&rooted.own(), "/usr/local/new").stderr, @r"
    error: `[DIR]/bin/xpool` is not safe: everybody can change `/tmp`

    hint: take another place: who can write there could have Nix run anything
    ");
    assert!(!rooted.at("local/new").exists());
    assert_snapshot!(write_to(SAFE, "/usr/local/new/er").stderr, @r"
           Wrote /usr/local/new/er/slots
           Wrote /usr/local/new/er/machines
    ");
    let folder = fs::metadata(rooted.at("local/new/er"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(folder & 0o7777, 0o755);
    assert!(
        write_to(SAFE, "/usr/local/new/er")
            .stderr
            .contains("Unchanged")
    );
}

#[test]
fn only_keys_of_the_managers_user_are_copied() {
    let Some(rooted) = Rooted::of_a_users_manager("only_keys_of_the_managers_user_are_copied")
    else {
        return;
    };
    let write = || {
        rooted.run(&[
            SAFE,
            "machines",
            "--write-to",
            "/etc/xpool",
            "--transport",
            "ssh",
        ])
    };
    let key = rooted.at("state/keys/client_ed25519");
    let secret = rooted.at("secret");
    fs::copy(&key, &secret).unwrap();
    let refused = || {
        let said = write();
        assert_eq!(said.code, Some(1));
        assert!(!rooted.at("etc/xpool/client_ed25519").exists());
        said.stderr
    };
    // A key of root's, by either kind of link.
    fs::remove_file(&key).unwrap();
    symlink(&secret, &key).unwrap();
    assert_snapshot!(refused(), @"error: cannot open the key [DIR]/state/keys/client_ed25519: Too many levels of symbolic links (os error 40)");
    fs::remove_file(&key).unwrap();
    fs::hard_link(&secret, &key).unwrap();
    assert_snapshot!(refused(), @"error: [DIR]/state/keys/client_ed25519 belongs to user 0, and the manager is that of user 65534: change the owner with `chown`, or move it away");
    fs::remove_file(&key).unwrap();
    assert_snapshot!(refused(), @"error: there is no key `[DIR]/state/keys/client_ed25519`: start the manager once");
}
