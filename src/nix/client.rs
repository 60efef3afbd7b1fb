//! How a Nix client reaches the pool: the transport, and what its version makes of a URI. Pure.

use std::str::FromStr;

/// What carries a session from Nix to the manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Nix's `ssh` logs in at the gateway.
    Ssh,
    /// Nix starts `xpool connect` on this machine, without ssh, keys or ports.
    #[default]
    Local,
}

/// A version of Nix, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NixVersion {
    /// 2 of 2.31.
    pub major: u32,
    /// 31 of 2.31.
    pub minor: u32,
}

/// The first Nix that takes a port in the URI of a store.
const PORT_IN_URI: NixVersion = NixVersion {
    major: 2,
    minor: 31,
};

/// The text names no version of Nix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a version of Nix, such as `2.31`")]
pub struct NotAVersion {
    /// What was given.
    pub given: String,
}

impl FromStr for NixVersion {
    type Err = NotAVersion;

    /// Takes `2.31`, and what releases and snapshots have after it: `2.31.2`, `2.35pre20260101_abcdef`.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (major, rest) = given.split_once('.')?;
            let end = rest.find(|c: char| !c.is_ascii_digit());
            let minor = &rest[..end.unwrap_or(rest.len())];
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().ok_or_else(|| NotAVersion {
            given: given.to_owned(),
        })
    }
}

impl NixVersion {
    /// The version in what `nix --version` prints: `nix (Nix) 2.8.0`. None for Lix, which counts differently and takes no
    /// port in a URI.
    pub fn printed(text: &str) -> Option<Self> {
        let line = text.lines().next()?;
        if line.contains("Lix") {
            return None;
        }
        line.strip_prefix("nix (")?
            .rsplit_once(") ")?
            .1
            .parse()
            .ok()
    }
}

/// How a machines line names a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A host name that only the ssh configuration knows, port and all; every Nix takes it.
    SshAlias,
    /// An address with its port, which needs no ssh configuration.
    SshPort,
    /// A program on this machine.
    Local,
}

impl Form {
    /// Every form there is.
    pub const ALL: [Self; 3] = [Self::SshAlias, Self::SshPort, Self::Local];

    /// The right form for a client; without a version, one that works with all.
    pub fn of(transport: Transport, client: Option<NixVersion>) -> Self {
        match (transport, client) {
            (Transport::Local, _) => Self::Local,
            (Transport::Ssh, Some(version)) if version >= PORT_IN_URI => Self::SshPort,
            (Transport::Ssh, _) => Self::SshAlias,
        }
    }

    /// A word for it, as part of a file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SshAlias => "ssh",
            Self::SshPort => "ssh-port",
            Self::Local => "local",
        }
    }
}

impl Default for Form {
    /// What works with every client by the usual transport.
    fn default() -> Self {
        Self::of(Transport::default(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Option<(u32, u32)> {
        NixVersion::printed(text).map(|version| (version.major, version.minor))
    }

    #[test]
    fn nix_tells_its_version_and_lix_is_none_of_it() {
        assert_eq!(version("nix (Nix) 2.8.0\n"), Some((2, 8)));
        assert_eq!(version("nix (Nix) 2.35pre20260101_ab12\n"), Some((2, 35)));
        assert_eq!(
            version("nix (Determinate Nix 3.6.2) 2.31.1\n"),
            Some((2, 31))
        );
        assert_eq!(version("nix (Lix, like Nix) 2.93.0\n"), None);
        assert_eq!(version(""), None);
        assert_eq!(version("nix: command not found\n"), None);
    }

    #[test]
    fn a_version_has_two_numbers() {
        assert!("2.31".parse::<NixVersion>().is_ok());
        for wrong in ["2", "2.", ".31", "two.one", "latest", ""] {
            assert!(wrong.parse::<NixVersion>().is_err(), "{wrong}");
        }
        let error = "new".parse::<NixVersion>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`new` is not a version of Nix, such as `2.31`"
        );
    }

    #[test]
    fn the_port_is_in_the_uri_from_2_31_on() {
        let form = |text: &str| Form::of(Transport::Ssh, Some(text.parse().unwrap()));
        assert_eq!(form("2.30.9"), Form::SshAlias);
        assert_eq!(form("2.31.0"), Form::SshPort);
        assert_eq!(form("3.0"), Form::SshPort);
        assert_eq!(Form::of(Transport::Ssh, None), Form::SshAlias);
        assert_eq!(Form::of(Transport::Local, None), Form::Local);
    }
}
