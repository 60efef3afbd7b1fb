//! Handshakes: bytes as Nix sends them, split anywhere.

use proptest::prelude::*;

use super::*;

fn promise() -> Promise {
    Promise {
        version: Version::PROMISED,
        nix: "2.26.3".to_owned(),
    }
}

fn words(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// Feeds a server's side with `parts`; gives everything that it replied and how it ended.
fn run_server(parts: &[&[u8]]) -> Result<(Vec<u8>, Version, Vec<u8>), HandshakeError> {
    let mut side = ServerSide::new(promise());
    let mut replies = Vec::new();
    for part in parts {
        match side.receive(part)? {
            ServerProgress::More { reply } => replies.extend(reply),
            ServerProgress::Done {
                reply,
                version,
                rest,
            } => {
                replies.extend(reply);
                return Ok((replies, version, rest));
            }
        }
    }
    panic!("the handshake did not end; so far: {replies:02x?}");
}

#[test]
fn a_client_of_nix_2_8_waits_for_the_server_before_each_step() {
    let mut side = ServerSide::new(promise());
    let reply = side.receive(b"cxin\0\0\0\0").unwrap();
    let expected = b"oixd\0\0\0\0\x25\x01\0\0\0\0\0\0".to_vec();
    assert_eq!(reply, ServerProgress::More { reply: expected });
    let reply = side.receive(b"\x22\x01\0\0\0\0\0\0").unwrap();
    assert_eq!(reply, ServerProgress::More { reply: Vec::new() });
    let done = side.receive(&[0; 16]).unwrap();
    let expected = ServerProgress::Done {
        reply: b"\x06\0\0\0\0\0\0\x002.26.3\0\0stla\0\0\0\0".to_vec(),
        version: Version::new(1, 34),
        rest: Vec::new(),
    };
    assert_eq!(done, expected);
}

#[test]
fn a_client_of_nix_2_26_is_told_of_trust_and_asked_for_no_features() {
    let sent = [words(&[0x6e69_7863, 0x126, 0, 0]), b"rest".to_vec()].concat();
    let (replies, version, rest) = run_server(&[&sent]).unwrap();
    let expected = b"oixd\0\0\0\0\x25\x01\0\0\0\0\0\0\
        \x06\0\0\0\0\0\0\x002.26.3\0\0\x01\0\0\0\0\0\0\0stla\0\0\0\0";
    assert_eq!(replies, expected);
    assert_eq!(version, Version::new(1, 37));
    assert_eq!(rest, b"rest");
}

#[test]
fn a_client_of_nix_2_3_is_not_told_what_it_does_not_know() {
    let (replies, version, _) = run_server(&[&words(&[0x6e69_7863, 0x115, 1, 3, 0])]).unwrap();
    assert_eq!(replies, b"oixd\0\0\0\0\x25\x01\0\0\0\0\0\0stla\0\0\0\0");
    assert_eq!(version, Version::new(1, 21));
}

#[test]
fn features_are_never_promised() {
    let newer = Promise {
        version: Version::new(1, 38),
        ..promise()
    };
    let reply = ServerSide::new(newer).receive(&words(&[0x6e69_7863]));
    let expected = words(&[0x6478_696f, 0x125]);
    assert_eq!(reply, Ok(ServerProgress::More { reply: expected }));
}

#[test]
fn clients_that_cannot_be_served_are_told_why() {
    let too_old = run_server(&[&words(&[0x6e69_7863, 0x114])]).unwrap_err();
    insta::assert_snapshot!(too_old, @"the Nix client speaks protocol 1.20, and xpool needs 1.21 (Nix 2.3) or newer");
    let no_nix = run_server(&[b"GET / HTTP/1.1\r\n"]).unwrap_err();
    insta::assert_snapshot!(no_nix, @"the peer does not speak Nix's worker protocol (it began with 0x5448202f20544547)");
    let other_major = run_server(&[&words(&[0x6e69_7863, 0x201])]).unwrap_err();
    insta::assert_snapshot!(other_major, @"the peer gave 0x201 as its protocol version");
}

/// What a guest answers to `version`, as `nix-daemon` 2.26 would.
fn greeting(version: Version, nix: &str) -> Vec<u8> {
    let mut out = words(&[0x6478_696f, 0x126]);
    if version.has(33) {
        put_string(&mut out, nix.as_bytes());
    }
    if version.has(35) {
        put_number(&mut out, 1);
    }
    put_number(&mut out, stderr::LAST);
    out
}

#[test]
fn a_guest_is_greeted_in_one_go() {
    let hello = ClientSide::new(Version::new(1, 34)).hello();
    assert_eq!(hello, words(&[0x6e69_7863, 0x122, 0, 0]));
}

#[test]
fn a_guest_that_is_older_than_promised_is_refused() {
    let mut side = ClientSide::new(Version::new(1, 37));
    let error = side.receive(&words(&[0x6478_696f, 0x122])).unwrap_err();
    insta::assert_snapshot!(error, @"the guest's nix-daemon speaks protocol 1.34, and the client was promised 1.37: use an image with a newer Nix");
}

#[test]
fn what_a_guest_says_against_the_session_is_passed_on() {
    let mut sent = words(&[0x6478_696f, 0x126]);
    put_string(&mut sent, b"2.26.3");
    put_number(&mut sent, 2);
    sent.extend(stderr::line("a warning"));
    sent.extend(stderr::error(
        Version::PROMISED,
        "you are not allowed to connect",
    ));
    let error = ClientSide::new(Version::PROMISED)
        .receive(&sent)
        .unwrap_err();
    insta::assert_snapshot!(error, @"the guest's nix-daemon refused the session: you are not allowed to connect");
}

fn a_version() -> impl Strategy<Value = Version> {
    (21..=41_u8).prop_map(|minor| Version::new(1, minor))
}

proptest! {
    #[test]
    fn a_client_may_split_its_bytes_anywhere(version in a_version(), first in 0..40_usize, second in 0..40_usize) {
        let sent = [words(&[0x6e69_7863, version.to_wire(), 0, 0]), b"an operation".to_vec()].concat();
        let whole = run_server(&[&sent]).unwrap();
        let (a, b) = sent.split_at(first.min(sent.len()));
        let (b, c) = b.split_at(second.min(b.len()));
        let (replies, negotiated, rest) = run_server(&[a, b, c]).unwrap();
        prop_assert_eq!(&replies, &whole.0);
        prop_assert_eq!(negotiated, version.min(Version::PROMISED));
        // What was not fed yet is not in the rest.
        prop_assert!(b"an operation".starts_with(&rest[..]));
    }

    #[test]
    fn a_guest_may_split_its_bytes_anywhere(version in a_version(), cut in 0..60_usize) {
        let version = version.min(Version::PROMISED);
        let sent = greeting(version, "2.26.3");
        let cut = cut.min(sent.len() - 1);
        let mut side = ClientSide::new(version);
        prop_assert_eq!(side.receive(&sent[..cut]).unwrap(), ClientProgress::More);
        let done = side.receive(&sent[cut..]).unwrap();
        let nix = version.has(33).then(|| "2.26.3".to_owned());
        prop_assert_eq!(done, ClientProgress::Done { version, nix, rest: Vec::new() });
    }

    #[test]
    fn both_sides_understand_each_other(version in a_version()) {
        let version = version.min(Version::PROMISED);
        let mut client = ClientSide::new(version);
        let (replies, negotiated, _) = run_server(&[&client.hello()]).unwrap();
        prop_assert_eq!(negotiated, version);
        let done = matches!(client.receive(&replies).unwrap(), ClientProgress::Done { .. });
        prop_assert!(done);
    }

    #[test]
    fn both_sides_agree_on_the_older_of_two_versions(ours in a_version(), theirs in a_version(), cut in 1..40_usize) {
        let promise = Promise { version: theirs, ..promise() };
        let mut server = ServerSide::new(promise);
        let mut client = ClientSide { least: Version::OLDEST, ..ClientSide::new(ours) };
        let expected = ours.min(theirs).min(Version::PROMISED);
        let mut replies = Vec::new();
        for part in client.hello().chunks(cut) {
            match server.receive(part).unwrap() {
                ServerProgress::More { reply } => replies.extend(reply),
                ServerProgress::Done { reply, version, rest } => {
                    replies.extend(reply);
                    prop_assert_eq!((version, rest), (expected, Vec::new()));
                }
            }
        }
        let nix = expected.has(33).then(|| "2.26.3".to_owned());
        let done = client.receive(&replies).unwrap();
        prop_assert_eq!(done, ClientProgress::Done { version: expected, nix, rest: Vec::new() });
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ServerSide::new(promise()).receive(&bytes);
        let _ = ClientSide::new(Version::PROMISED).receive(&bytes);
    }
}
