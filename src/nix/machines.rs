//! What Nix and ssh are told of the pool: machines lines, nix.conf, `ssh_config`. Pure.
//!
//! One line and one URI per slot: the lines of one URI would share an upload lock, and a session that waits would hold
//! it (Nix's `build-remote.cc`). The port is in the ssh configuration, because Nix before 2.31 takes none in a URI.

use std::net::SocketAddr;
use std::path::Path;

use super::System;
use super::slot::{Slot, SlotName};

/// Features that the guests have; the same words stand in their nix.conf.
pub const SYSTEM_FEATURES: [&str; 2] = ["benchmark", "big-parallel"];

/// What Nix is told of one system's pool.
#[derive(Clone, Debug)]
pub struct BuildMachines<'a> {
    /// The platform.
    pub system: System,
    /// How many slots.
    pub count: u32,
    /// The private key that lets Nix in.
    pub key: &'a Path,
    /// The gateway's host key as Nix's machines file wants it: base64 of `ssh-ed25519 AAAA…`.
    pub host_key_base64: &'a str,
}

/// What ssh calls a system's gateway: `xpool-riscv64`.
pub fn ssh_host(system: System) -> String {
    format!("xpool-{}", system.cpu())
}

/// The user name of a slot: `riscv64-03`.
pub fn slot_user(system: System, slot: u32) -> String {
    let slot = Slot::Number(slot);
    SlotName { system, slot }.to_string()
}

impl BuildMachines<'_> {
    /// The lines of a machines file, one slot each, without a line end after the last.
    pub fn lines(&self) -> String {
        let features = SYSTEM_FEATURES.join(",");
        let host = ssh_host(self.system);
        let line = |slot| {
            let (user, system) = (slot_user(self.system, slot), self.system);
            let (key, host_key) = (self.key.display(), self.host_key_base64);
            // URI, systems, key, max-jobs, speed factor, features, mandatory features, host key.
            format!("ssh-ng://{user}@{host} {system} {key} 1 1 {features} - {host_key}")
        };
        (0..self.count).map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What goes into nix.conf. `machines` names the file that has the lines.
pub fn nix_conf(machines: &Path) -> String {
    format!(
        "# Build machines of xpool; a file that is missing is no error.\n\
         builders = @{}\n\
         # This machine fetches faster than an emulated one: it fetches and hands over.\n\
         builders-use-substitutes = false\n",
        machines.display()
    )
}

/// What goes into an ssh configuration, so that Nix's `ssh` finds the gateway and knows it.
pub fn ssh_config(
    systems: &[System],
    listen: SocketAddr,
    key: &Path,
    known_hosts: &Path,
) -> String {
    let host = |system: &System| {
        let host = ssh_host(*system);
        format!(
            "Host {host}\n  \
             HostName {}\n  \
             Port {}\n  \
             # Keys are looked up by this name, whatever the address and the port.\n  \
             HostKeyAlias {host}\n  \
             UserKnownHostsFile {}\n  \
             StrictHostKeyChecking yes\n  \
             IdentityFile {}\n  \
             IdentitiesOnly yes\n  \
             # A gateway that hangs is noticed within a minute and a half.\n  \
             ServerAliveInterval 30\n  \
             ServerAliveCountMax 3\n",
            reachable(listen).ip(),
            listen.port(),
            quoted(known_hosts),
            quoted(key),
        )
    };
    systems.iter().map(host).collect::<Vec<_>>().join("\n")
}

/// An address that a client can connect to, where the gateway listens on all.
fn reachable(listen: SocketAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// A path as `ssh_config` wants it when it has spaces.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_a_machine_of_its_own() {
        let machines = BuildMachines {
            system: System::Riscv64Linux,
            count: 2,
            key: Path::new("/state/keys/client"),
            host_key_base64: "c3No",
        };
        insta::assert_snapshot!(machines.lines(), @r"
        ssh-ng://riscv64-00@xpool-riscv64 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
        ssh-ng://riscv64-01@xpool-riscv64 riscv64-linux /state/keys/client 1 1 benchmark,big-parallel - c3No
        ");
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
        "#);
    }

    #[test]
    fn nix_conf_names_the_machines_file() {
        insta::assert_snapshot!(nix_conf(Path::new("/state/machines")), @r"
        # Build machines of xpool; a file that is missing is no error.
        builders = @/state/machines
        # This machine fetches faster than an emulated one: it fetches and hands over.
        builders-use-substitutes = false
        ");
    }
}
