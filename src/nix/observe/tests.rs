//! Sessions as Nix speaks them, split anywhere.

mod damage;
mod fetching;
mod log;

use proptest::prelude::*;

use super::*;
use crate::nix::stderr;
use crate::nix::wire::{put_number, put_string, put_strings};

const V: Version = Version::PROMISED;
const OUTPUTS: [&str; 2] = [
    "/nix/store/1pr6dn8cqlvgmgsv2njsm40kwqjb3f8y-hello-2.12",
    "/nix/store/2pr6dn8cqlvgmgsv2njsm40kwqjb3f8y-hello-2.12-dev",
];
const DRV: &str = "/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-hello-2.12.drv";

fn message(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

fn query(version: Version) -> Vec<u8> {
    let mut out = message(&[31]);
    put_strings(&mut out, &["/nix/store/a", "/nix/store/b"]);
    if version.has(27) {
        put_number(&mut out, 0);
    }
    out
}

fn upload() -> Vec<u8> {
    let mut out = message(&[44, 0, 1]);
    put_number(&mut out, 5);
    out.extend(b"12345");
    put_number(&mut out, 3);
    out.extend(b"678");
    put_number(&mut out, 0);
    out
}

fn build() -> Vec<u8> {
    build_of(&OUTPUTS)
}

fn build_of(outputs: &[&str]) -> Vec<u8> {
    let mut out = message(&[36]);
    put_string(&mut out, DRV.as_bytes());
    put_number(&mut out, outputs.len() as u64);
    for path in outputs {
        for part in ["out", path, "", ""] {
            put_string(&mut out, part.as_bytes());
        }
    }
    put_strings(&mut out, &["/nix/store/a"]);
    put_string(&mut out, b"riscv64-linux");
    put_string(&mut out, b"/bin/sh");
    put_strings(&mut out, &["-c", "true"]);
    put_number(&mut out, 1);
    put_string(&mut out, b"name");
    put_string(&mut out, b"hello-2.12");
    put_number(&mut out, 0);
    out
}

/// The reply to a build.
fn result(version: Version, status: u64) -> Vec<u8> {
    let mut out = message(&[stderr::LAST, status]);
    put_string(&mut out, b"a message");
    if version.has(29) {
        out.extend(message(&[1, 0, 1_795_360_679, 1_795_360_680]));
    }
    if version.has(37) {
        out.extend(message(&[1, 250_000, 0]));
    }
    if version.has(28) {
        put_number(&mut out, 1);
        put_string(&mut out, b"sha256:1e8016c7!out");
        put_string(&mut out, b"{\"outPath\":\"o-hello-2.12\"}");
    }
    out
}

/// An operation on a path.
fn ask(number: u64, path: &str) -> Vec<u8> {
    let mut out = message(&[number]);
    put_string(&mut out, path.as_bytes());
    out
}

fn path_info() -> Vec<u8> {
    let mut out = message(&[stderr::LAST, 1]);
    put_string(&mut out, DRV.as_bytes());
    put_string(&mut out, b"0dc6f337626c5d99");
    put_strings(&mut out, &OUTPUTS);
    out.extend(message(&[1_795_360_679, 120, 1]));
    put_strings(&mut out, &["a-key:a-signature"]);
    put_string(&mut out, b"");
    out
}

/// The reply that gives a path: a folder with a program in it.
fn nar() -> Vec<u8> {
    let mut out = message(&[stderr::LAST]);
    let words = "nix-archive-1 ( type directory entry ( name hello node ( type regular executable _ contents";
    for word in words.split(' ') {
        put_string(&mut out, word.trim_matches('_').as_bytes());
    }
    put_string(&mut out, &[b')'; 1001]);
    for word in [")", ")", ")"] {
        put_string(&mut out, word.as_bytes());
    }
    out
}

/// An activity, news of it and its end, and a line: every frame that a build sends, each on its own.
fn frames() -> Vec<Vec<u8>> {
    let mut start = message(&[stderr::START_ACTIVITY, 1, 3, 105]);
    put_string(&mut start, b"building");
    put_number(&mut start, 2);
    put_number(&mut start, 1);
    put_string(&mut start, DRV.as_bytes());
    put_number(&mut start, 0);
    put_number(&mut start, 7);
    put_number(&mut start, 0);
    let mut result = message(&[stderr::RESULT, 1, 101, 1, 1]);
    put_string(&mut result, b"a line of the log");
    let stop = message(&[stderr::STOP_ACTIVITY, 1]);
    vec![start, result, stderr::line("hello"), stop]
}

fn valid_paths() -> Vec<u8> {
    let mut out = message(&[stderr::LAST]);
    put_strings(&mut out, &["/nix/store/a"]);
    out
}

/// A build that works, where the guest's Nix tells what it took.
fn built() -> Event {
    Event::Built(BuildResult {
        failure: None,
        times: Some((1_795_360_679, 1_795_360_680)),
        cpu: None,
    })
}

fn building_hello() -> Event {
    Event::Building(Building {
        derivation: DRV.to_owned(),
        outputs: OUTPUTS
            .map(|path| StorePath::parse(path.as_bytes()).unwrap())
            .into(),
    })
}

fn fetched(path: &str) -> Event {
    Event::Fetched {
        path: path.to_owned(),
        size: nar().len() as u64 - 8,
    }
}

/// An observer whose client began a build.
fn building() -> Observer {
    let mut observer = Observer::new(V);
    observer.from_client(&build());
    observer
}

#[test]
fn a_hooks_session_is_followed_to_the_end_of_its_build() {
    let mut observer = Observer::new(V);
    assert_eq!(
        observer.from_client(&query(V)),
        [Event::Started(Operation::QueryValidPaths)]
    );
    assert!(observer.error_can_be_sent());
    assert_eq!(
        observer.from_server(&valid_paths()),
        [Event::Ended(Operation::QueryValidPaths)]
    );
    assert_eq!(
        observer.from_client(&upload()),
        [Event::Started(Operation::AddMultipleToStore)]
    );
    let last = message(&[stderr::LAST]);
    assert_eq!(
        observer.from_server(&last),
        [Event::Ended(Operation::AddMultipleToStore)]
    );
    let expected = [Event::Started(Operation::BuildDerivation), building_hello()];
    assert_eq!(observer.from_client(&build()), expected);
    for frame in frames() {
        assert!(observer.error_can_be_sent());
        assert!(observer.from_server(&frame).is_empty());
    }
    assert_eq!(observer.operation(), Some(Operation::BuildDerivation));
    let ended = observer.from_server(&result(V, 0));
    let expected = [built(), Event::Ended(Operation::BuildDerivation)];
    assert_eq!(ended, expected);
    assert_eq!(observer.operation(), None);
    assert!(!observer.error_can_be_sent());
}

#[test]
fn an_old_client_asks_without_saying_whether_to_substitute() {
    let old = Version::new(1, 26);
    let mut observer = Observer::new(old);
    observer.from_client(&query(old));
    assert_eq!(
        observer.from_server(&valid_paths()),
        [Event::Ended(Operation::QueryValidPaths)]
    );
}

#[test]
fn an_error_ends_an_operation_and_the_next_one_is_followed() {
    for version in [Version::new(1, 25), V] {
        let mut observer = Observer::new(version);
        observer.from_client(&query(version));
        let ended = observer.from_server(&stderr::error(version, "no"));
        assert_eq!(ended, [Event::Ended(Operation::QueryValidPaths)]);
        assert_eq!(observer.from_client(&query(version)).len(), 1);
    }
}

#[test]
fn an_error_can_be_sent_between_frames_only() {
    for frame in frames() {
        for cut in 1..frame.len() {
            let mut observer = building();
            observer.from_server(&frame[..cut]);
            assert!(
                !observer.error_can_be_sent(),
                "in a frame after {cut} bytes"
            );
            observer.from_server(&frame[cut..]);
            assert!(observer.error_can_be_sent());
        }
    }
}

#[test]
fn no_error_can_be_sent_while_no_operation_runs() {
    let mut observer = Observer::new(V);
    assert!(!observer.error_can_be_sent());
    observer.from_client(&query(V)[..5]);
    assert!(!observer.error_can_be_sent());
    observer.from_client(&query(V)[5..]);
    assert!(observer.error_can_be_sent());
    observer.from_server(&valid_paths());
    assert!(!observer.error_can_be_sent());
}

#[test]
fn what_is_unknown_ends_the_watching_for_good() {
    let after = |client: &[u8], server: &[u8]| {
        let mut observer = Observer::new(V);
        observer.from_client(client);
        observer.from_server(server);
        observer.from_client(&build());
        (observer.operation(), observer.error_can_be_sent())
    };
    let off = (None, false);
    assert_eq!(
        after(&message(&[39]), &[]),
        off,
        "an operation that is not known"
    );
    assert_eq!(
        after(&query(V), &message(&[stderr::READ, 100])),
        off,
        "the server asks for bytes"
    );
    assert_eq!(
        after(&query(V), &message(&[99])),
        off,
        "a frame that is not known"
    );
    assert_eq!(
        after(&[], &message(&[stderr::LAST])),
        off,
        "a server that speaks unasked"
    );
    assert_eq!(
        after(&[query(V), query(V)].concat(), &[]),
        off,
        "a client that does not wait"
    );
}

#[test]
fn an_operation_is_known_with_the_last_byte_of_its_number() {
    for (number, operation) in [(36, Some(Operation::BuildDerivation)), (39, None)] {
        let mut observer = Observer::new(V);
        let number = message(&[number]);
        observer.from_client(&number[..7]);
        assert_eq!((observer.operation(), observer.is_watching()), (None, true));
        observer.from_client(&number[7..]);
        let known = operation.is_some();
        let seen = (observer.operation(), observer.is_watching());
        assert_eq!(seen, (operation, known));
        assert_eq!(observer.error_can_be_sent(), known);
    }
}

#[test]
fn an_error_before_the_end_of_an_upload_ends_the_watching() {
    let mut observer = Observer::new(V);
    observer.from_client(&upload()[..30]);
    observer.from_server(&stderr::error(V, "no space left"));
    observer.from_client(&upload()[30..]);
    assert_eq!(observer.operation(), None);
}

proptest! {
    #[test]
    fn splitting_changes_nothing(sizes in prop::collection::vec(1..50_usize, 1..20)) {
        let mut sizes = sizes.into_iter().cycle();
        let mut observer = Observer::new(V);
        let mut feed = |observer: &mut Observer, from_client: bool, mut bytes: &[u8]| {
            let mut events = Vec::new();
            while !bytes.is_empty() {
                let (part, rest) = bytes.split_at(sizes.next().unwrap().min(bytes.len()));
                bytes = rest;
                events.extend(if from_client { observer.from_client(part) } else { observer.from_server(part) });
            }
            events
        };
        let mut events = feed(&mut observer, true, &query(V));
        events.extend(feed(&mut observer, false, &valid_paths()));
        events.extend(feed(&mut observer, true, &upload()));
        events.extend(feed(&mut observer, false, &message(&[stderr::LAST])));
        events.extend(feed(&mut observer, true, &build()));
        events.extend(feed(&mut observer, false, &frames().concat()));
        prop_assert!(observer.error_can_be_sent());
        events.extend(feed(&mut observer, false, &result(V, 0)));
        prop_assert!(!observer.error_can_be_sent());
        for path in OUTPUTS {
            events.extend(feed(&mut observer, true, &ask(26, path)));
            events.extend(feed(&mut observer, false, &path_info()));
        }
        for path in OUTPUTS {
            prop_assert!(observer.outputs_remain());
            events.extend(feed(&mut observer, true, &ask(38, path)));
            events.extend(feed(&mut observer, false, &nar()));
        }
        prop_assert!(!observer.outputs_remain());
        let expected = [
            Event::Started(Operation::QueryValidPaths),
            Event::Ended(Operation::QueryValidPaths),
            Event::Started(Operation::AddMultipleToStore),
            Event::Ended(Operation::AddMultipleToStore),
            Event::Started(Operation::BuildDerivation),
            building_hello(),
            built(),
            Event::Ended(Operation::BuildDerivation),
            Event::Started(Operation::QueryPathInfo),
            Event::Ended(Operation::QueryPathInfo),
            Event::Started(Operation::QueryPathInfo),
            Event::Ended(Operation::QueryPathInfo),
            Event::Started(Operation::NarFromPath),
            fetched(OUTPUTS[0]),
            Event::Ended(Operation::NarFromPath),
            Event::Started(Operation::NarFromPath),
            fetched(OUTPUTS[1]),
            Event::Ended(Operation::NarFromPath),
        ];
        prop_assert_eq!(events, expected);
        prop_assert_eq!(observer.build_log().lines(), ["a line of the log", "hello"]);
    }
}
