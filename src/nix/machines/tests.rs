//! What Nix and ssh read.

use super::*;
use crate::nix::abilities::SYSTEM_FEATURES;
use crate::nix::nixos;

fn endpoint() -> Endpoint {
    Endpoint {
        listen: "0.0.0.0:31022".parse().unwrap(),
        key: "/state/keys/client".into(),
        host_key_base64: "c3No".to_owned(),
        slots: "/home/alice@example.org/state/slots".into(),
    }
}

fn lines(form: Form) -> String {
    let machines = endpoint()
        .machines(form, System::Riscv64Linux, &Abilities::default(), 2)
        .unwrap();
    let lines: Vec<String> = machines.iter().map(BuildMachine::line).collect();
    lines.join("\n")
}

#[test]
fn each_slot_is_a_machine_of_its_own() {
    insta::assert_snapshot!(lines(Form::SshAlias), @r"
    ssh-ng://riscv64-00@xpool-riscv64 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
    ssh-ng://riscv64-01@xpool-riscv64 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
    ");
}

#[test]
fn newer_nix_is_told_the_address_and_the_port() {
    insta::assert_snapshot!(lines(Form::SshPort), @r"
    ssh-ng://riscv64-00@127.0.0.1:31022 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
    ssh-ng://riscv64-01@127.0.0.1:31022 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
    ");
    let on_all = Endpoint {
        listen: "[::]:7".parse().unwrap(),
        ..endpoint()
    };
    let machines = on_all.machines(
        Form::SshPort,
        System::Aarch64Linux,
        &Abilities::default(),
        1,
    );
    assert_eq!(machines.unwrap()[0].uri(), "ssh-ng://aarch64-00@[::1]:7");
}

#[test]
fn local_lines_name_a_link_for_each_slot_and_no_key() {
    insta::assert_snapshot!(lines(Form::Local), @r"
    ssh-ng://localhost?remote-program=/home/alice%40example.org/state/slots/00@xpool-riscv64 riscv64-linux - 1 1 benchmark,big-parallel - -
    ssh-ng://localhost?remote-program=/home/alice%40example.org/state/slots/01@xpool-riscv64 riscv64-linux - 1 1 benchmark,big-parallel - -
    ");
}

#[test]
fn paths_that_nix_or_a_shell_would_read_otherwise_are_refused() {
    for character in " \t\n\"'`\\;#%&?$*()<>|~![]{}^é".chars() {
        let endpoint = Endpoint {
            slots: format!("/a{character}b").into(),
            ..endpoint()
        };
        let path = endpoint.slots.clone();
        let refused =
            endpoint.machines(Form::Local, System::Riscv64Linux, &Abilities::default(), 1);
        assert_eq!(refused, Err(UnfitPath::Character { path, character }));
    }
    let endpoint = Endpoint {
        slots: "/a'b".into(),
        ..endpoint()
    };
    let refused = endpoint.machines(Form::Local, System::Riscv64Linux, &Abilities::default(), 1);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "`/a'b` has `'` in its name, which a machines line of the local transport cannot carry"
    );
}

#[test]
fn a_uri_is_never_longer_than_nix_can_lock() {
    let with_slots = |length: usize| {
        let endpoint = Endpoint {
            slots: format!("/{}", "s".repeat(length)).into(),
            ..endpoint()
        };
        endpoint.machines(Form::Local, System::Riscv64Linux, &Abilities::default(), 1)
    };
    // What is around the directory has 52 bytes.
    assert_eq!(with_slots(147).unwrap()[0].uri().len(), 199);
    let refused = with_slots(148).unwrap_err().to_string();
    assert!(refused.contains("has 200 bytes"), "{refused}");
}

#[test]
fn the_features_are_those_that_the_guests_nix_conf_has() {
    let conf = include_str!("../../../images/portable/nix.conf");
    let features = conf
        .lines()
        .find_map(|line| line.strip_prefix("system-features = "));
    assert_eq!(features.unwrap(), SYSTEM_FEATURES.join(" "));
}

#[test]
fn ssh_finds_the_gateway_and_knows_it_by_its_alias() {
    let listen = "0.0.0.0:31022".parse().unwrap();
    let config = ssh_config(
        &[System::Aarch64Linux],
        listen,
        Path::new("/s/key"),
        Path::new("/s/known_hosts"),
    );
    insta::assert_snapshot!(config, @r#"
    Host xpool-aarch64
      HostName 127.0.0.1
      Port 31022
      # Keys are looked up by this name, whatever the address and the port.
      HostKeyAlias xpool-aarch64
      UserKnownHostsFile "/s/known_hosts"
      StrictHostKeyChecking yes
      IdentityFile "/s/key"
      IdentitiesOnly yes
      # A gateway that hangs is noticed within a minute and a half.
      ServerAliveInterval 30
      ServerAliveCountMax 3
      # What `Host *` says of people's connections is not for this one.
      BatchMode yes
      ClearAllForwardings yes
      ControlMaster no
      ControlPath none
      ForwardAgent no
      ForwardX11 no
      PermitLocalCommand no
      ProxyCommand none
      RemoteCommand none
      RequestTTY no
    "#);
}

#[test]
fn nix_conf_names_the_machines_file() {
    insta::assert_snapshot!(nix_conf(Path::new("/state/machines")), @r"
    # Build machines of xpool; a file that is missing is no error. Its lines are commands: who can write it can do what this Nix can.
    builders = @/state/machines
    # This machine fetches faster than an emulated one: it fetches and hands over.
    builders-use-substitutes = false
    ");
}

#[test]
fn nixos_is_told_the_same() {
    let machines = endpoint().machines(
        Form::SshAlias,
        System::Riscv64Linux,
        &Abilities::default(),
        1,
    );
    let text = nixos::module(
        &machines.unwrap(),
        "Host ${x}\n  Port 1\n",
        Path::new("/s/machines"),
    );
    insta::assert_snapshot!(text, @r#"
    # Build machines of xpool, for `imports` of a NixOS configuration. Nix knows them also while no manager runs, and
    # builds then fail; in place of the list,
    #   nix.settings.builders = "@/etc/nix/machines;@/s/machines";
    # names them only while one does. Who can write that file, or replace a program named here, can do what this Nix can.
    let
      machine = systems: supportedFeatures: mandatoryFeatures: place: place // {
        inherit systems supportedFeatures mandatoryFeatures;
        protocol = "ssh-ng";
        maxJobs = 1;
        speedFactor = 1;
      };
    in
    {
      nix.distributedBuilds = true;
      nix.buildMachines = [
        (machine [ "riscv64-linux" ] [ "benchmark" "big-parallel" ] [ ] { hostName = "xpool-riscv64"; sshUser = "riscv64-00"; sshKey = "/state/keys/client"; publicHostKey = "c3No"; })
      ];
      programs.ssh.extraConfig = ''
        Host ''${x}
          Port 1
      '';
    }
    "#);
}

#[test]
fn a_line_has_what_builders_can_do() {
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    let abilities = Abilities::new(
        words(&["gccarch-armv8-a", "uid-range"]),
        words(&["benchmark"]),
        words(&["armv7l-linux"]),
        [],
    );
    let machines = endpoint().machines(Form::SshPort, System::Aarch64Linux, &abilities, 1);
    insta::assert_snapshot!(machines.unwrap()[0].line(), @"ssh-ng://aarch64-00@127.0.0.1:31022 aarch64-linux,armv7l-linux /state/keys/client 1 1 big-parallel,gccarch-armv8-a,uid-range benchmark c3No");
}
