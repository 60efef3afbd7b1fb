//! Keys that may log in, and what VMs see of this machine's store.

use super::*;
use crate::pool::policy::Share;

const ALICE: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH1rbfn2fZheRbLhC8FhOLY5eXrp6RR1K7COjUWQBn1d alice@laptop";
const BOB: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBCDIq5a3JpL2we1SVRo9D8nfhvN7tj9NW9V1UlC0x/e2Xy33sDcyu+71e5yC2XeMUKRYL10Ju9g1a6F65wkgHx4= bob@laptop";
/// The gateway is built without what it takes to verify it.
const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDT1I/E9QDT3vD9pSIOyI+mz5+vTbeZahwq9r8j3RVXS7reO4yn8nFZ2QiHXD9/9Ng311H5Mci7M6M8PvpEaTBDp7tHx8BeOoIKfIFhaA0j67jctXTcGamdC67iqmlvLwT9uAyHHlKXEeHjlsK5W5Qx33sfAVWl/onZ8NjLz5ItYEAwq2r5N1BOPbIx0rk8RvQ9a10ECbD+yYn1JZF+O8AgNM3FSO+XNkALIa+MjGsm4DWWFHEewpWDL8GpgjigcCDXHnIBGpAO7T8bwikZNu/cR952WIWPUd9pQ/3nHWzrXdf2S5raU6sdMw69/yWQBguGBi2Nx72V67Cnytrwmc4T carol@laptop";

fn shares(text: &str) -> (Share, Share) {
    let config = parse(text).unwrap();
    let share = |system| config.systems[&system].policy.share;
    (share(System::Riscv64Linux), share(System::Aarch64Linux))
}

/// A configuration with one key, which is `key` in the third line.
fn with_key(name: &str, key: &str) -> String {
    format!("[pool]\n[keys.{name}]\npublic-key = \"{key}\"\n")
}

#[test]
fn vms_see_this_machines_store_unless_it_is_configured() {
    assert_eq!(shares(""), (Share::Host, Share::Host));
    assert_eq!(
        shares("[pool]\nstore.share = \"none\"\n"),
        (Share::None, Share::None)
    );
    assert_eq!(
        shares("[pool]\nstore.share = \"none\"\n[systems.riscv64-linux]\nstore.share = \"host\"\n"),
        (Share::Host, Share::None)
    );
}

#[test]
fn a_share_that_there_is_not_is_refused() {
    assert_eq!(
        refused("[pool]\nstore.share = \"hots\"\n"),
        "xpool.toml:2: unknown value `hots`; did you mean `host`?"
    );
    assert_eq!(
        refused("[pool]\n[pool.store]\nshares = \"host\"\n"),
        "xpool.toml:3: unknown key `shares`; did you mean `share`?"
    );
}

#[test]
fn keys_from_elsewhere_see_nothing_unless_they_are_given_more() {
    let text = format!(
        "[keys.bob]\npublic-key = \"{BOB}\"\nstore.share = \"host\"\n[keys.alice]\npublic-key = \"{ALICE}\"\n"
    );
    let keys = parse(&text).unwrap().keys;
    let seen: Vec<_> = keys.iter().map(|key| (&*key.name, key.share)).collect();
    assert_eq!(seen, [("alice", Share::None), ("bob", Share::Host)]);
    assert_eq!(keys[0].public_key.to_openssh().unwrap(), ALICE);
}

#[test]
fn a_keys_name_is_short_and_plain() {
    assert!(parse(&with_key("Alice_2-x", ALICE)).is_ok());
    assert!(parse(&with_key(&"a".repeat(32), ALICE)).is_ok());
    let long = "a".repeat(33);
    assert_eq!(
        refused(&with_key(&long, ALICE)),
        format!(
            "xpool.toml:2: `{long}` cannot be a key's name: letters, digits, - and _ can, at most 32 of them"
        )
    );
    assert_eq!(
        refused(&with_key("\"al ice\"", ALICE)),
        "xpool.toml:2: `al ice` cannot be a key's name: letters, digits, - and _ can, at most 32 of them"
    );
    assert_eq!(
        refused(&with_key("local", ALICE)),
        "xpool.toml:2: `local` is the name of xpool's own key: give this one another"
    );
}

#[test]
fn a_key_that_is_none_or_missing_is_refused() {
    assert_eq!(
        refused(&with_key("alice", "AAAA alice@laptop")),
        "xpool.toml:3: `public-key` of `alice` is not a public key as OpenSSH writes it; \
         it is the one line of a file such as `~/.ssh/id_ed25519.pub`"
    );
    assert_eq!(
        refused("[pool]\n[keys.alice]\nstore.share = \"none\"\n"),
        "xpool.toml:2: `alice` has no `public-key`; \
         it is the one line of a file such as `~/.ssh/id_ed25519.pub`"
    );
    assert_eq!(
        refused("[keys.alice]\npublickey = \"\"\n"),
        "xpool.toml:2: unknown key `publickey`; did you mean `public-key`?"
    );
}

#[test]
fn a_key_that_cannot_be_verified_is_refused() {
    assert_eq!(
        refused(&with_key("carol", RSA)),
        "xpool.toml:3: `carol` has a key of the kind `ssh-rsa`, which xpool cannot verify; \
         `ssh-keygen -t ed25519` makes one that it can"
    );
}

#[test]
fn a_key_is_configured_once() {
    let other_comment = ALICE.replace("alice@", "bob@");
    let text =
        with_key("alice", ALICE) + &format!("[keys.bob]\npublic-key = \"{other_comment}\"\n");
    assert_eq!(
        refused(&text),
        "xpool.toml:5: `bob` has the same key as `alice`; \
         a key is told from others by itself: leave one of the two out"
    );
}

#[test]
fn a_keys_priority_is_none_unless_it_is_given() {
    let priority = |text: &str| {
        let text = with_key("alice", ALICE) + text;
        parse(&text).map(|config| config.keys[0].priority)
    };
    assert_eq!(priority("").unwrap(), 0);
    assert_eq!(priority("priority = -5\n").unwrap(), -5);
    assert_eq!(
        refused(&(with_key("alice", ALICE) + "priority = 101\n")),
        "xpool.toml:4: `priority` is 101 but must be from -100 to 100"
    );
}
