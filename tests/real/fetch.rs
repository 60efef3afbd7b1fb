//! Fixed-output derivations reach by network what they would reach on this machine: names, certificates, proxies, passwords. Clients
//! with a key of their own do not, unless they may know secrets. `scripts/test` makes the images and runs it.

use std::fs;

use crate::common::corp::{Corp, PORT, PRIVATE, PUBLIC};
use crate::common::inputs::Elsewhere;
use crate::common::nix::{Nix, Transport, Version, derivation, started, stderr, tooled};
use crate::common::{Installation, skip};

const SYSTEM: &str = "riscv64-linux";

const CONFIG: &str = r#"[pool]
reuse = "client"
max-vms = 1
[fetch]
netrc-file = "[DIR]/netrc"
[keys.stranger]
public-key = "[STRANGER]"
[keys.known]
public-key = "[KNOWN]"
secrets = true
"#;

/// Attributes of a derivation whose output is this text.
fn fixed(text: &str) -> String {
    let text = text.replace('\n', "\\n");
    format!(
        r#"outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = builtins.hashString "sha256" "{text}";"#
    )
}

/// One that fetches what everybody may have, or says that it could not.
fn fetches(name: &str, host: &str, expected: &str) -> String {
    let script = format!("wget -q -O $out http://{host}:{PORT}/public || echo unknown > $out");
    tooled(SYSTEM, name, &fixed(expected), &script)
}

fn private(name: &str) -> String {
    private_for(SYSTEM, name)
}

fn private_for(system: &str, name: &str) -> String {
    format!(
        r#"derivation {{ name = "{name}"; system = "{system}"; builder = "builtin:fetchurl"; url = "http://only-hosts.test:{PORT}/private";
            urls = [ ]; preferLocalBuild = false; unpack = false; executable = false; {} }}"#,
        fixed(PRIVATE)
    )
}

#[track_caller]
fn built(nix: &Nix<'_>, expression: &str, expected: &str) {
    assert_eq!(nix.results(expression), [expected], "{expression}");
}

#[test]
fn a_fetch_reaches_what_it_would_reach_on_this_machine() {
    let test = "a_fetch_reaches_what_it_would_reach_on_this_machine";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "only root can have a network of its own");
    }
    let (stranger, known) = (Elsewhere::new(), Elsewhere::new());
    let config = CONFIG
        .replace("[STRANGER]", stranger.public_key.trim())
        .replace("[KNOWN]", known.public_key.trim());
    let installation = Installation::with_own_templates(&config);
    let file = |name: &str, text: &str| fs::write(installation.path().join(name), text).unwrap();
    file("netrc", "machine only-hosts.test\n  login a password b\n");
    file(
        "bundle",
        "MARKER\n-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    );
    let bundle = installation.path().join("bundle").display().to_string();
    let proxy = "http://192.0.2.7:3128";
    let variables = [
        ("NIX_SSL_CERT_FILE", bundle),
        ("http_proxy", proxy.to_owned()),
    ];
    let corp = Corp::serve(&installation, &variables);
    let nix = Nix::by(Transport::Local, Version::Own, &installation);

    built(
        &nix,
        &fetches("by-hosts", "only-hosts.test", PUBLIC),
        PUBLIC,
    );
    // By a resolver that has no IPv4 address, and a domain that is searched.
    built(&nix, &fetches("by-search", "h", PUBLIC), PUBLIC);
    let script = "grep -c MARKER /etc/ssl/certs/ca-certificates.crt > $out";
    built(&nix, &tooled(SYSTEM, "ca", &fixed("1\n"), script), "1\n");
    let extra = format!(
        r#"{} impureEnvVars = [ "NIX_SSL_CERT_FILE" ];"#,
        fixed("1\n")
    );
    let script = "grep -c MARKER $NIX_SSL_CERT_FILE > $out";
    built(&nix, &tooled(SYSTEM, "ca-named", &extra, script), "1\n");
    let extra = format!(r#"{} impureEnvVars = [ "http_proxy" ];"#, fixed(proxy));
    let script = "printf %s \"$http_proxy\" > $out";
    built(&nix, &derivation(SYSTEM, "proxy", &extra, script), proxy);
    built(&nix, &private("private"), PRIVATE);
    assert!(corp.was_proxied("http://only-hosts.test:8080/private"));

    // One for any system, which newer Nix gives to a builder where nothing may be built here.
    let newer = Nix::by(Transport::Local, Version::Newer, &installation);
    built(&newer, &private_for("builtin", "any"), PRIVATE);

    // The VM is warm, and what this machine knows changes.
    let hosts = "127.0.0.1 localhost\n192.0.2.7 only-hosts.test new.test\n";
    file("hosts", hosts);
    built(&nix, &fetches("by-new-hosts", "new.test", PUBLIC), PUBLIC);
    let vms = installation.list(SYSTEM, "vms");
    assert_eq!(vms[0]["name"], "riscv64-1", "{vms:?}");

    let over_ssh = |nix: &Nix<'_>, expression: &str| {
        let output = corp.command(&nix.build(expression)).output().unwrap();
        (output.status.success(), stderr(&output))
    };
    let client = stranger.client(&installation);
    let (is_built, log) = over_ssh(&client, &fetches("strange", "only-hosts.test", "unknown\n"));
    assert!(is_built, "{log}");
    let (is_built, log) = over_ssh(&client, &fetches("strange-h", "h", "unknown\n"));
    assert!(is_built, "{log}");
    // Public names are for everybody.
    let (is_built, log) = over_ssh(&client, &fetches("public", "h.corp.test", PUBLIC));
    assert!(is_built, "{log}");
    let (is_built, log) = over_ssh(&client, &private("strange-private"));
    assert!(!is_built, "{log}");
    let client = known.client(&installation);
    let (is_built, log) = over_ssh(&client, &fetches("known", "new.test", PUBLIC));
    assert!(is_built, "{log}");
    let (is_built, log) = over_ssh(&client, &private("known-private"));
    assert!(is_built, "{log}");
}

#[test]
fn without_a_network_a_fetch_fails_at_once_and_other_builtin_builders_work() {
    let (installation, _serving) =
        started("[pool]\nmax-vms = 1\nreuse = \"always\"\nnetwork = \"none\"\n");
    let nix = Nix::newer(&installation);
    let input = derivation(SYSTEM, "input", "", "echo > $out");
    let env = format!(
        r#"derivation {{ name = "env"; system = "{SYSTEM}"; builder = "builtin:buildenv"; derivations = [ ]; manifest = {input}; }}"#
    );
    let output = nix.build(&env).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for system in [SYSTEM, "builtin"] {
        let fetch = private_for(system, "fetch").replace("only-hosts.test", "192.0.2.7");
        let output = nix.build(&fetch).output().unwrap();
        let log = stderr(&output);
        assert!(!output.status.success(), "{log}");
        assert!(log.contains("Failed to connect to 192.0.2.7"), "{log}");
        assert!(!log.to_lowercase().contains("timed out"), "{log}");
    }
}
