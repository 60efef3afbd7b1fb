//! What Nix and ssh are told of the pool: machines lines, nix.conf, `ssh_config`. Pure.
//!
//! One line and one URI per slot: the lines of one URI would share an upload lock, and a session that waits would hold
//! it (Nix's `build-remote.cc`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::System;
use super::abilities::Abilities;
use super::client::Form;
use super::slot::{Slot, SlotName};

#[cfg(test)]
mod tests;

/// The longest URI, in bytes. Nix locks a slot by a file that is named after it, and 255 bytes are all that a name has.
const LONGEST_URI: usize = 199;

/// What clients on this machine reach the manager by.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// The private key that lets Nix in.
    pub key: PathBuf,
    /// The gateway's host key as Nix's machines file wants it: base64 of `ssh-ed25519 AAAA…`.
    pub host_key_base64: String,
    /// The directory with a link to xpool for each slot, in place of ssh.
    pub slots: PathBuf,
}

/// One slot as Nix is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildMachine {
    /// Whose VMs build what comes by it.
    pub system: System,
    /// What these can do.
    pub abilities: Abilities,
    /// Who logs in; none where nobody has to.
    pub user: Option<String>,
    /// The URI after the user name: a host, with all that follows it.
    pub host: String,
    /// The private key and the host key in base64; none where there is no ssh.
    pub keys: Option<(PathBuf, String)>,
}

/// A path that a machines line cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitPath {
    /// A character means something else to Nix, to its URIs or to a shell.
    #[error("`{}` has `{character}` in its name, which a machines line of the local transport cannot carry", path.display())]
    Character {
        /// The path.
        path: PathBuf,
        /// The character.
        character: char,
    },
    /// Together with the rest it is too long.
    #[error("the URI `{uri}` has {} bytes, and Nix can lock one of {LONGEST_URI} at the most", uri.len())]
    Long {
        /// The URI.
        uri: String,
    },
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

impl Endpoint {
    /// So many slots of a system, in the form that a client wants.
    pub fn machines(
        &self,
        form: Form,
        system: System,
        abilities: &Abilities,
        count: u32,
    ) -> Result<Vec<BuildMachine>, UnfitPath> {
        (0..count)
            .map(|slot| self.machine(form, system, abilities, slot))
            .collect()
    }

    fn machine(
        &self,
        form: Form,
        system: System,
        abilities: &Abilities,
        slot: u32,
    ) -> Result<BuildMachine, UnfitPath> {
        let name = SlotName {
            system,
            slot: Slot::Number(slot),
        };
        let keys = Some((self.key.clone(), self.host_key_base64.clone()));
        let (user, host, keys) = match form {
            Form::SshAlias => (Some(name.to_string()), ssh_host(system), keys),
            // Never `localhost`, which Nix takes for this machine itself, without ssh.
            Form::SshPort => (
                Some(name.to_string()),
                reachable(self.listen).to_string(),
                keys,
            ),
            Form::Local => (None, self.local_host(name)?, None),
        };
        let machine = BuildMachine {
            system,
            abilities: abilities.clone(),
            user,
            host,
            keys,
        };
        let uri = machine.uri();
        if uri.len() > LONGEST_URI {
            return Err(UnfitPath::Long { uri });
        }
        Ok(machine)
    }

    /// Nix starts the program itself where the host is exactly this one. It adds `--stdio`.
    fn local_host(&self, name: SlotName) -> Result<String, UnfitPath> {
        let slots = in_query(&self.slots)?;
        let link = name.link().unwrap_or_default();
        // The first `@` of the URI, which others than Nix look for.
        Ok(format!("localhost?remote-program={slots}/{link}"))
    }
}

impl BuildMachine {
    /// What Nix opens.
    pub fn uri(&self) -> String {
        match &self.user {
            Some(user) => format!("ssh-ng://{user}@{}", self.host),
            None => format!("ssh-ng://{}", self.host),
        }
    }

    /// The line of a machines file.
    pub fn line(&self) -> String {
        let list = |words: Vec<&str>| match words[..] {
            [] => "-".to_owned(),
            _ => words.join(","),
        };
        let (key, host_key) = match &self.keys {
            Some((key, host_key)) => (key.display().to_string(), host_key.as_str()),
            None => ("-".to_owned(), "-"),
        };
        // URI, systems, key, max-jobs, speed factor, features, mandatory features, host key.
        format!(
            "{} {} {key} 1 1 {} {} {host_key}",
            self.uri(),
            list(self.abilities.platforms(self.system)),
            list(self.abilities.features()),
            list(self.abilities.mandatory())
        )
    }
}

/// A path in the query of a URI. Nix up to 2.19 gives the decoded text to `bash -c`, a later one takes it apart at blanks,
/// and machines files have their own marks: only what means nothing to any of them passes.
fn in_query(path: &Path) -> Result<String, UnfitPath> {
    let unfit = |character| UnfitPath::Character {
        path: path.to_owned(),
        character,
    };
    let text = path.to_str().ok_or_else(|| unfit('\u{fffd}'))?;
    let mut encoded = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '/' | '.' | '_' | '-' => encoded.push(character),
            _ if character.is_ascii_alphanumeric() => encoded.push(character),
            '+' => encoded.push_str("%2B"),
            ',' => encoded.push_str("%2C"),
            ':' => encoded.push_str("%3A"),
            '=' => encoded.push_str("%3D"),
            '@' => encoded.push_str("%40"),
            _ => return Err(unfit(character)),
        }
    }
    Ok(encoded)
}

/// What goes into nix.conf. `machines` names the file that has the lines.
pub fn nix_conf(machines: &Path) -> String {
    format!(
        "# Build machines of xpool; a file that is missing is no error. Its lines are commands: who can write it can do what this Nix can.\n\
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
             ServerAliveCountMax 3\n  \
             # What `Host *` says of people's connections is not for this one.\n  \
             BatchMode yes\n  \
             ClearAllForwardings yes\n  \
             ControlMaster no\n  \
             ControlPath none\n  \
             ForwardAgent no\n  \
             ForwardX11 no\n  \
             PermitLocalCommand no\n  \
             ProxyCommand none\n  \
             RemoteCommand none\n  \
             RequestTTY no\n",
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
