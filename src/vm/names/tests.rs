//! What is told of this machine's files.

use super::*;

#[test]
fn names_are_told_as_they_are_right_in_a_guest() {
    let text = "127.0.0.1\tlocalhost\n127.0.1.1 laptop laptop.corp # me\n::1 ip6-localhost localhost git.corp\n\
        192.0.2.7  cache.internal cache\n2001:db8::7 six\n0.0.0.0 ads.example\nff02::1 ip6-allnodes\n\
        255.255.255.255 broadcasthost\nnot-an-address x\n# 192.0.2.8 no\n192.0.2.9\n";
    insta::assert_snapshot!(hosts(text), @r"
    hosts 10.0.2.2 laptop laptop.corp
    hosts 10.0.2.2 git.corp
    hosts 192.0.2.7 cache.internal cache
    hosts 2001:db8::7 six
    ");
}

#[test]
fn a_list_without_end_is_cut_between_lines() {
    let text = "192.0.2.7 a-name-of-some-length.example\n".repeat(10_000);
    let told = hosts(&text);
    assert!(told.len() <= MOST_HOSTS && told.ends_with(".example\n"));
}

#[test]
fn the_first_name_server_is_one_that_has_a_resolver_to_ask() {
    let ipv4 = "resolv nameserver 10.0.2.3\nresolv nameserver fec0::3\n";
    let ipv6 = "resolv nameserver fec0::3\nresolv nameserver 10.0.2.3\n";
    for (text, expected) in [
        ("nameserver 127.0.0.53\n", ipv4),
        ("nameserver fd00::1\nnameserver 192.0.2.1\n", ipv4),
        ("nameserver fd00::1%eth0\n", ipv6),
        ("", ipv4),
    ] {
        assert_eq!(resolvers(text), expected, "{text}");
    }
}

#[test]
fn search_domains_and_options_are_those_that_count() {
    let text = "domain a.example\nsearch b.example c.example\noptions ndots:2\noptions edns0\n";
    insta::assert_snapshot!(search(text), @r"
    resolv search b.example c.example
    resolv options ndots:2
    resolv options edns0
    ");
}

#[test]
fn without_secrets_no_name_is_told_and_no_password() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let names = HostNames {
        hosts: file("hosts", "192.0.2.7 git.corp\n"),
        resolv_conf: file("resolv.conf", "search corp\nnameserver 192.0.2.1\n"),
        netrc: Some(file("netrc", "machine git.corp\n  login a password b\n")),
        are_known_to_all: true,
    };
    insta::assert_snapshot!(names.told(true), @r"
    resolv nameserver 10.0.2.3
    resolv nameserver fec0::3
    resolv search corp
    hosts 192.0.2.7 git.corp
    netrc machine git.corp
    netrc   login a password b
    ");
    insta::assert_snapshot!(names.told(false), @r"
    resolv nameserver 10.0.2.3
    resolv nameserver fec0::3
    ");
}
