//! What is known of the outputs, from a build to the last of them.

use super::*;

/// An observer of a session whose build ended with `status`.
fn built(version: Version, outputs: &[&str], status: u64) -> Observer {
    let mut observer = Observer::new(version);
    observer.from_client(&build_of(outputs));
    assert!(!observer.outputs_remain(), "nothing is built yet");
    observer.from_server(&frames().concat());
    let ended = observer.from_server(&result(version, status));
    assert_eq!(
        ended.last(),
        Some(&Event::Ended(Operation::BuildDerivation))
    );
    observer
}

fn fetch(observer: &mut Observer, path: &str) {
    observer.from_client(&ask(38, path));
    let ended = observer.from_server(&nar());
    assert_eq!(ended, [fetched(path), Event::Ended(Operation::NarFromPath)]);
}

#[test]
fn outputs_remain_until_the_last_byte_of_the_last_one() {
    for minor in [21, 27, 28, 29, 34, 36, 37] {
        let mut observer = built(Version::new(1, minor), &OUTPUTS, 0);
        for path in OUTPUTS {
            observer.from_client(&ask(26, path));
            let ended = observer.from_server(&path_info());
            assert_eq!(ended, [Event::Ended(Operation::QueryPathInfo)], "1.{minor}");
        }
        fetch(&mut observer, OUTPUTS[1]);
        assert!(observer.outputs_remain());
        observer.from_client(&ask(38, OUTPUTS[0]));
        let nar = nar();
        let (head, last) = nar.split_at(nar.len() - 1);
        observer.from_server(head);
        assert!(observer.outputs_remain());
        observer.from_server(last);
        assert!(!observer.outputs_remain());
    }
}

#[test]
fn what_counts_as_built_is_what_nix_counts() {
    for status in [0, 1, 2, 13] {
        assert!(built(V, &OUTPUTS, status).outputs_remain(), "{status}");
    }
    for status in [3, 4, 9, 10, 14, u64::MAX] {
        assert!(!built(V, &OUTPUTS, status).outputs_remain(), "{status}");
    }
}

#[test]
fn a_build_that_ends_in_an_error_leaves_nothing() {
    let mut observer = building();
    let ended = observer.from_server(&stderr::error(V, "no"));
    let failed = BuildResult {
        failure: Some("no".to_owned()),
        times: None,
        cpu: None,
    };
    let expected = [
        Event::Built(failed),
        Event::Ended(Operation::BuildDerivation),
    ];
    assert_eq!(ended, expected);
    assert!(!observer.outputs_remain());
}

#[test]
fn outputs_of_two_builds_are_told_apart() {
    let mut observer = built(V, &OUTPUTS[..1], 0);
    observer.from_client(&build_of(&OUTPUTS[1..]));
    observer.from_server(&result(V, 0));
    fetch(&mut observer, OUTPUTS[0]);
    assert!(observer.outputs_remain());
    fetch(&mut observer, OUTPUTS[1]);
    assert!(!observer.outputs_remain());
}

#[test]
fn other_paths_and_refusals_fetch_nothing() {
    let mut observer = built(V, &OUTPUTS[..1], 0);
    fetch(&mut observer, "/nix/store/something-else");
    assert!(observer.outputs_remain());
    observer.from_client(&ask(38, OUTPUTS[0]));
    observer.from_server(&stderr::error(V, "no"));
    assert!(observer.outputs_remain());
}

#[test]
fn outputs_whose_paths_only_the_build_knows_remain_to_the_end() {
    let mut observer = built(V, &[OUTPUTS[0], ""], 0);
    fetch(&mut observer, OUTPUTS[0]);
    fetch(&mut observer, "/nix/store/c-hello-2.12");
    assert!(observer.outputs_remain());
}

#[test]
fn a_session_that_fetches_what_another_built_cannot_tell_what_remains() {
    for number in [1, 26, 38, 43] {
        let mut observer = Observer::new(V);
        observer.from_client(&ask(number, OUTPUTS[0]));
        assert!(observer.outputs_remain(), "{number}");
    }
    let mut observer = Observer::new(V);
    fetch(&mut observer, OUTPUTS[0]);
    assert!(observer.outputs_remain());
}

#[test]
fn what_is_unknown_may_leave_outputs() {
    let mut uploading = Observer::new(V);
    uploading.from_client(&query(V));
    uploading.from_server(&valid_paths());
    uploading.from_client(&upload());
    uploading.from_server(&message(&[stderr::LAST]));
    assert!(!uploading.outputs_remain(), "nothing was built");
    uploading.from_client(&message(&[20]));
    assert!(uploading.outputs_remain());

    let mut fetched = built(V, &OUTPUTS[..1], 0);
    fetch(&mut fetched, OUTPUTS[0]);
    fetched.from_client(&message(&[20]));
    assert!(fetched.outputs_remain());
}

#[test]
fn a_build_of_derivations_in_the_store_may_leave_outputs() {
    for (number, reply) in [(9, vec![1]), (46, vec![0])] {
        let mut observer = Observer::new(V);
        let mut request = message(&[number]);
        put_strings(&mut request, &[format!("{DRV}!*")]);
        put_number(&mut request, 0);
        observer.from_client(&request);
        assert!(observer.operation().unwrap().builds());
        observer.from_server(&[message(&[stderr::LAST]), message(&reply)].concat());
        assert_eq!((observer.operation(), observer.is_watching()), (None, true));
        fetch(&mut observer, OUTPUTS[0]);
        assert!(observer.outputs_remain());
    }
}

#[test]
fn what_is_told_of_content_addressed_outputs_is_watched() {
    let before = Version::new(1, 30);
    let of_before = [ask(42, "sha256:1e8016c7!out"), {
        let mut path = Vec::new();
        put_string(&mut path, OUTPUTS[0].as_bytes());
        path
    }];
    for (version, request) in [(V, ask(42, "{}")), (before, of_before.concat())] {
        let mut observer = Observer::new(version);
        observer.from_client(&request);
        assert!(observer.operation().unwrap().builds());
        observer.from_server(&message(&[stderr::LAST]));
        assert_eq!((observer.operation(), observer.is_watching()), (None, true));
        assert_eq!(observer.from_client(&query(version)).len(), 1);
    }
}

#[test]
fn files_before_1_25_came_in_a_shape_that_is_not_known() {
    let version = Version::new(1, 24);
    let mut observer = Observer::new(version);
    assert!(observer.from_client(&message(&[7])).is_empty());
    assert!(!observer.is_watching());
}

#[test]
fn no_error_can_be_sent_within_a_reply() {
    let mut replies = vec![
        (build(), result(V, 0)),
        (ask(26, OUTPUTS[0]), path_info()),
        (ask(26, OUTPUTS[0]), message(&[stderr::LAST, 0])),
        (ask(1, OUTPUTS[0]), message(&[stderr::LAST, 1])),
        (ask(38, OUTPUTS[0]), nar()),
    ];
    let mut realisations = message(&[stderr::LAST]);
    put_strings(&mut realisations, &["{}"]);
    replies.push((ask(43, "sha256:1e8016c7!out"), realisations));
    for (request, reply) in replies {
        for cut in 1..reply.len() {
            let mut observer = Observer::new(V);
            observer.from_client(&request);
            assert!(observer.error_can_be_sent());
            observer.from_server(&reply[..cut]);
            assert!(!observer.error_can_be_sent(), "after {cut} bytes");
            assert!(observer.operation().is_some(), "after {cut} bytes");
            observer.from_server(&reply[cut..]);
            assert!(!observer.error_can_be_sent());
            assert_eq!(observer.from_client(&query(V)).len(), 1);
        }
    }
}

#[test]
fn a_nar_that_is_none_ends_the_watching() {
    let mut observer = built(V, &OUTPUTS[..1], 0);
    observer.from_client(&ask(38, OUTPUTS[0]));
    let mut reply = message(&[stderr::LAST]);
    put_string(&mut reply, b"nix-archive-2");
    observer.from_server(&reply);
    assert_eq!(observer.operation(), None);
    assert!(observer.outputs_remain());
}
