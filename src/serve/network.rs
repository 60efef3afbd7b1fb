//! What fixed-output derivations are given of this machine's network beside names: its certificates and its proxies. Read once, as the
//! guests' nix-daemon reads it when it starts, which is before its guest is saved.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::config::{Config, environment};
use crate::nix::conf;
use crate::pool::policy::Share;
use crate::vm::{HOST_ADDRESS, HostNames};

/// Where distributions have all certificates in one file: Debian and NixOS, openSUSE, Fedora.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Where a guest has the certificates that it is given (`xpool-guest configure`), and a sandbox those that its Nix trusts.
const GUEST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Those of nixpkgs' `proxyImpureEnvVars`, each in capitals as well.
const PROXIES: [&str; 5] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
];

/// What guests are given of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostNetwork {
    /// Certificates, in one file.
    pub(super) ca_file: Option<PathBuf>,
    /// Lines of variables for the guest's nix-daemon.
    pub(super) environment: String,
    netrc: Option<PathBuf>,
    /// What the keys may see of this machine's store, and whether they may know secrets.
    keys: Vec<(Share, bool)>,
}

impl HostNetwork {
    /// This machine's, by the environment of this process.
    pub(super) fn of(config: &Config) -> Self {
        Self::by(config, environment::variable)
    }

    fn by(config: &Config, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let of_environment = variable("NIX_SSL_CERT_FILE").filter(|value| !value.is_empty());
        let ca_file = config.ca_file.clone();
        let ca_file = ca_file
            .or_else(|| of_environment.map(PathBuf::from))
            .or_else(of_nix_conf)
            .or_else(|| {
                BUNDLES
                    .map(PathBuf::from)
                    .into_iter()
                    .find(|file| file.is_file())
            })
            .filter(|file| has_certificates(file));
        let others = config.keys.iter().filter(|key| !key.secrets);
        let stranger = others.map(|key| key.name.as_str()).next();
        let mut environment = proxies(&variable, stranger);
        if ca_file.is_some() {
            for name in ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"] {
                environment += &line(name, GUEST_BUNDLE);
            }
        }
        Self {
            ca_file,
            environment,
            netrc: config.netrc_file.clone(),
            keys: config
                .keys
                .iter()
                .map(|key| (key.share, key.secrets))
                .collect(),
        }
    }

    /// What VMs of a kind are told of names, in a pool that shares so much.
    pub(super) fn names(&self, share: Share, of_pool: Share) -> HostNames {
        let mut keys = self
            .keys
            .iter()
            .filter(|(of_key, _)| of_key.and(of_pool) == share);
        HostNames {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            netrc: self.netrc.clone(),
            are_known_to_all: keys.all(|(_, secrets)| *secrets),
        }
    }
}

/// What this machine's Nix is told.
fn of_nix_conf() -> Option<PathBuf> {
    let mut read = |path: &Path| std::fs::read_to_string(path).ok();
    let dir = Path::new("/etc/nix");
    let text = read(&dir.join("nix.conf"))?;
    conf::value("ssl-cert-file", &text, dir, &mut read).map(PathBuf::from)
}

fn has_certificates(file: &Path) -> bool {
    let text = std::fs::read(file).unwrap_or_default();
    let mark = b"-----BEGIN ";
    let has = text.windows(mark.len()).any(|window| window == mark);
    if !has {
        warn!(file = %file.display(), "it has no certificates: guests use those of their image");
    }
    has
}

/// Lines of the proxies that are set. Who builds can read them, so those with a password are for those who may know secrets.
fn proxies(variable: impl Fn(&str) -> Option<OsString>, stranger: Option<&str>) -> String {
    let mut lines = String::new();
    for name in PROXIES
        .iter()
        .flat_map(|name| [(*name).to_owned(), name.to_uppercase()])
    {
        let value = variable(&name).and_then(|value| value.into_string().ok());
        let Some(value) = value.filter(|value| !value.is_empty() && !value.contains('\n')) else {
            continue;
        };
        match stranger {
            Some(key) if has_user(&value) => {
                warn!(
                    name,
                    key,
                    "it has a user's name in it, and guests are not given it: the key may not know secrets"
                );
            }
            _ => lines += &line(&name, &as_in_guest(&value)),
        }
    }
    lines
}

/// A variable, as sh and systemd read it.
fn line(name: &str, value: &str) -> String {
    format!("{name}={value}\n")
}

/// The place in `http://user:password@place:3128/`, with all that is before and behind it.
fn place(url: &str) -> (&str, &str, &str) {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let start = url[start..end]
        .rfind('@')
        .map_or(start, |at| start + at + 1);
    (&url[..start], &url[start..end], &url[end..])
}

fn has_user(url: &str) -> bool {
    place(url).0.ends_with('@')
}

/// A URL whose place is this machine's loopback leads to this machine.
fn as_in_guest(url: &str) -> String {
    let (before, place, after) = place(url);
    let (host, port) = match place.rfind(':').filter(|at| !place[*at..].contains(']')) {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let is_loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let host = if is_loopback { HOST_ADDRESS } else { host };
    format!("{before}{host}{port}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;

    fn network(config: &str, variables: &[(&str, &str)]) -> HostNetwork {
        let host = Host {
            cpus: 2,
            memory_mib: 4096,
            search_path: OsString::new(),
        };
        let config = Config::of_text(config, &host).unwrap();
        HostNetwork::by(&config, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    const KEY: &str = "[keys.ci]\npublic-key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ\"\n";

    #[test]
    fn proxies_are_given_as_they_are_reached_from_a_guest() {
        let network = network(
            "",
            &[
                ("http_proxy", "http://localhost:3128"),
                ("HTTPS_PROXY", "http://a:b@127.0.0.1:3128/"),
                ("ftp_proxy", "http://[::1]:1"),
                ("all_proxy", "socks5://proxy.corp"),
                ("no_proxy", "localhost,.corp"),
                ("FTP_PROXY", ""),
            ],
        );
        let lines: Vec<&str> = network
            .environment
            .lines()
            .filter(|line| !line.contains("SSL_CERT"))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        http_proxy=http://10.0.2.2:3128
        HTTPS_PROXY=http://a:b@10.0.2.2:3128/
        ftp_proxy=http://10.0.2.2:1
        all_proxy=socks5://proxy.corp
        no_proxy=localhost,.corp
        ");
    }

    #[test]
    fn a_password_is_for_those_who_may_know_secrets() {
        let variables = [
            ("http_proxy", "http://a:b@proxy:1"),
            ("https_proxy", "http://proxy:1"),
        ];
        let given = |config: &str| network(config, &variables).environment.contains("a:b@");
        assert!(given(""));
        assert!(!given(KEY));
        assert!(given(&format!("{KEY}secrets = true\n")));
        let known = |config: &str| {
            [Share::Host, Share::None].map(|share| {
                network(config, &[])
                    .names(share, Share::Host)
                    .are_known_to_all
            })
        };
        assert_eq!(known(""), [true, true]);
        assert_eq!(known(KEY), [true, false]);
        assert_eq!(
            known(&format!("{KEY}store.share = \"host\"\n")),
            [false, true]
        );
        assert_eq!(known(&format!("{KEY}secrets = true\n")), [true, true]);
    }

    #[test]
    fn the_certificates_are_those_of_this_machines_nix() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bundle");
        std::fs::write(&file, "A company\n-----BEGIN CERTIFICATE-----\n").unwrap();
        let named = file.to_str().unwrap();
        let of_environment = network("", &[("NIX_SSL_CERT_FILE", named)]);
        assert_eq!(of_environment.ca_file.as_ref(), Some(&file));
        assert!(
            of_environment
                .environment
                .ends_with("\nSSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n")
        );
        let configured = network(
            &format!("[fetch]\nca-file = \"{named}\"\n"),
            &[("NIX_SSL_CERT_FILE", "/none")],
        );
        assert_eq!(configured.ca_file, Some(file.clone()));
        std::fs::write(&file, "nothing\n").unwrap();
        let empty = network("", &[("NIX_SSL_CERT_FILE", named)]);
        assert_eq!((empty.ca_file, empty.environment), (None, String::new()));
    }
}
