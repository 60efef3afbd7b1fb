//! What a guest is told of this machine's network, so that its fixed-output derivations reach what they would reach here: names of
//! hosts, search domains, which resolvers there are, and what logs in where.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::sync::Mutex;

use super::agent::Agent;
use super::guest_text::quoted;
use super::port::GUEST_PROGRAM;
use super::wait::within;

#[cfg(test)]
mod tests;

/// This machine, from inside QEMU's user network.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// QEMU's name servers: the first passes questions on to this machine's first IPv4 resolver, the second to its first IPv6 one,
/// whichever that is at the moment.
const RESOLVER: &str = "10.0.2.3";
const RESOLVER_IPV6: &str = "fec0::3";

/// Longer than an emulated shell on a starved host takes.
const TELL_LIMIT: Duration = Duration::from_secs(30);

/// Names of hosts at the most, in bytes: lists that block advertisements have megabytes, and are read by an emulated shell.
const MOST_HOSTS: usize = 64 << 10;

/// The files of this machine that say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNames {
    /// `/etc/hosts`, or another file of its kind.
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`, likewise.
    pub resolv_conf: PathBuf,
    /// A netrc file, where one is configured.
    pub netrc: Option<PathBuf>,
    /// Whether a VM is told private names and the netrc when it starts: everybody who may get it may know them.
    pub are_known_to_all: bool,
}

impl HostNames {
    /// The lines that `xpool-guest names` reads: what a file is, a blank, and a line of it. Private names and the netrc only with
    /// secrets. What cannot be read is left out: this machine does not know it either.
    pub fn told(&self, with_secrets: bool) -> String {
        let read = |path: &Path| fs::read(path).unwrap_or_default();
        let text = |path: &Path| String::from_utf8_lossy(&read(path)).into_owned();
        let resolv_conf = text(&self.resolv_conf);
        let mut lines = resolvers(&resolv_conf);
        if with_secrets {
            lines += &search(&resolv_conf);
            lines += &hosts(&text(&self.hosts));
            let netrc = self.netrc.as_deref().map(text).unwrap_or_default();
            lines += &prefixed("netrc", netrc.lines());
        }
        lines
    }
}

/// What a guest was told last.
pub(super) struct ToldNames {
    names: HostNames,
    told: Mutex<String>,
}

impl ToldNames {
    /// In a guest that was told this.
    pub(super) fn new(names: HostNames, told: String) -> Self {
        let told = Mutex::new(told);
        Self { names, told }
    }

    /// Tells them as they are now, if that is news. Starting a program in an emulated guest takes a tenth of a second.
    pub(super) async fn tell(&self, agent: &Agent, may_know: &AtomicBool) -> anyhow::Result<()> {
        let mut told = self.told.lock().await;
        // Read when nobody else tells anything: somebody may have come meanwhile who may not know.
        let now = self.names.told(may_know.load(Ordering::Acquire));
        if *told == now {
            return Ok(());
        }
        // Until it has them all, nobody knows which it has.
        told.clear();
        let telling = async {
            let started = agent.start_with_input(GUEST_PROGRAM, &["names"], Some(now.as_bytes()));
            agent.finished(started.await?).await
        };
        let ended = within("the guest to take the names of hosts", TELL_LIMIT, telling).await??;
        ensure!(
            ended.status == Some(0),
            "the guest did not take the names of hosts: {}",
            quoted(&ended.stderr)
        );
        *told = now;
        Ok(())
    }
}

fn prefixed<'a>(file: &str, lines: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for line in lines {
        // A String takes all that is written to it.
        let _ = writeln!(text, "{file} {line}");
    }
    text
}

/// QEMU's name servers, first the one that has a resolver to ask.
fn resolvers(resolv_conf: &str) -> String {
    let words = lines_of_words(resolv_conf);
    let mut servers = words.filter_map(|words| match words[..] {
        ["nameserver", address, ..] => address.split('%').next()?.parse::<IpAddr>().ok(),
        _ => None,
    });
    let first = servers.next();
    let has_ipv4 =
        first.is_none_or(|first| first.is_ipv4()) || servers.any(|server| server.is_ipv4());
    let order = if has_ipv4 {
        [RESOLVER, RESOLVER_IPV6]
    } else {
        [RESOLVER_IPV6, RESOLVER]
    };
    order
        .map(|server| format!("resolv nameserver {server}\n"))
        .concat()
}

/// The last `search` or `domain` counts, as it does for a resolver; and so does every line of options.
fn search(resolv_conf: &str) -> String {
    let is_search = |words: &Vec<&str>| matches!(words[0], "search" | "domain");
    let is_option = |words: &Vec<&str>| words[0] == "options";
    let last = lines_of_words(resolv_conf).filter(is_search).last();
    let options = lines_of_words(resolv_conf).filter(is_option);
    let lines: Vec<String> = last
        .into_iter()
        .chain(options)
        .map(|words| words.join(" "))
        .collect();
    prefixed("resolv", lines.iter().map(String::as_str))
}

/// Lines of a hosts file as they are right in a guest, where this machine's loopback is not its own.
fn hosts(text: &str) -> String {
    let mut told = String::new();
    for words in lines_of_words(text) {
        let Some((Ok(address), names)) = words
            .split_first()
            .map(|(first, rest)| (first.parse::<IpAddr>(), rest))
        else {
            continue;
        };
        // What blocks a name, or is the address of a whole network.
        if address.is_unspecified()
            || address.is_multicast()
            || address.to_string() == "255.255.255.255"
        {
            continue;
        }
        let is_own = |name: &&&str| !is_local(name);
        let names: Vec<&str> = names.iter().filter(is_own).copied().collect();
        if names.is_empty() {
            continue;
        }
        let address = if address.is_loopback() {
            HOST_ADDRESS.to_owned()
        } else {
            address.to_string()
        };
        let line = format!("hosts {address} {}\n", names.join(" "));
        if told.len() + line.len() > MOST_HOSTS {
            break;
        }
        told += &line;
    }
    told
}

/// Names that each machine has for itself.
fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let of_distributions = [
        "ip6-localhost",
        "ip6-loopback",
        "ip6-localnet",
        "localhost4",
        "localhost4.localdomain4",
        "localhost6",
        "localhost6.localdomain6",
    ];
    name == "localhost"
        || name.starts_with("localhost.")
        || name.ends_with(".localhost")
        || of_distributions.contains(&name)
}

/// The words of each line that has any, comments left out.
fn lines_of_words(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let line = line.split(['#', ';']).next()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        (!words.is_empty()).then_some(words)
    })
}
