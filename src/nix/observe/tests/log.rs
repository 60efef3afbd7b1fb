//! What is kept of what a build says.

use std::time::Duration;

use super::*;

fn news(kind: u64, text: &[u8]) -> Vec<u8> {
    let mut out = message(&[stderr::RESULT, 1, kind, 1, 1]);
    put_string(&mut out, text);
    out
}

/// The result that the reply to a build has.
fn result_of(version: Version, reply: &[u8]) -> BuildResult {
    let mut observer = Observer::new(version);
    observer.from_client(&build());
    match observer.from_server(reply).first() {
        Some(Event::Built(result)) => result.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_lines_and_the_phase_are_kept() {
    let mut observer = building();
    for n in 0..100 {
        observer.from_server(&news(101, format!("line {n}").as_bytes()));
    }
    observer.from_server(&news(104, b"buildPhase"));
    observer.from_server(&stderr::line("said plainly"));
    // Progress, and news of other kinds.
    observer.from_server(&message(&[stderr::RESULT, 1, 105, 2, 0, 3, 0, 4]));
    observer.from_server(&news(107, b"of a hook that runs after the build"));
    let log = observer.build_log();
    assert_eq!(log.phase(), Some("buildPhase"));
    let lines = log.lines();
    assert_eq!((lines.len(), log.n_lines()), (MAX_LINES, 101));
    assert_eq!([&*lines[0], &*lines[28]], ["line 71", "line 99"]);
    assert_eq!(lines[29], "said plainly");
    observer.from_server(&result(V, 0));
    assert_eq!(observer.build_log().n_lines(), 101, "kept after the build");
    observer.from_client(&build());
    let log = observer.build_log();
    assert_eq!((log.n_lines(), log.phase()), (0, None), "another build");
}

#[test]
fn what_is_said_outside_of_a_build_is_not_a_builds_log() {
    let mut observer = Observer::new(V);
    observer.from_client(&query(V));
    observer.from_server(&stderr::line("warning: something"));
    observer.from_server(&news(101, b"a line"));
    assert_eq!(observer.build_log().n_lines(), 0);
}

#[test]
fn of_a_line_without_end_only_its_beginning_is_kept() {
    let mut observer = building();
    let length: u64 = 1 << 30;
    observer.from_server(&message(&[stderr::RESULT, 1, 101, 1, 1, length]));
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..1 << 10 {
        assert!(!observer.error_can_be_sent());
        observer.from_server(&piece);
    }
    assert!(observer.error_can_be_sent());
    assert_eq!(observer.build_log().lines(), ["x".repeat(MAX_LINE)]);
}

#[test]
fn a_line_is_cut_between_two_characters() {
    let mut observer = building();
    observer.from_server(&news(101, "\u{1d11e}".repeat(400).as_bytes()));
    observer.from_server(&news(
        101,
        ("x".to_owned() + &"\u{e9}".repeat(400)).as_bytes(),
    ));
    observer.from_server(&news(101, b"no \xff text"));
    let lines = observer.build_log().lines();
    assert_eq!(lines[0], "\u{1d11e}".repeat(128));
    assert_eq!(lines[1], "x".to_owned() + &"\u{e9}".repeat(255));
    assert_eq!(lines[2], "no \u{fffd} text");
}

#[test]
fn a_build_of_very_many_outputs_ends_the_watching_and_takes_no_memory() {
    let mut observer = Observer::new(V);
    let mut begin = message(&[36]);
    put_string(&mut begin, DRV.as_bytes());
    put_number(&mut begin, 1_000_000);
    observer.from_client(&begin);
    let mut output = Vec::new();
    for part in ["out", OUTPUTS[0], "", ""] {
        put_string(&mut output, part.as_bytes());
    }
    for _ in 0..1000 {
        observer.from_client(&output);
    }
    assert!(!observer.is_watching());
}

#[test]
fn how_a_build_ended_is_read_in_every_version() {
    let times = Some((1_795_360_679, 1_795_360_680));
    for minor in [27, 28, 29, 36, 37] {
        let version = Version::new(1, minor);
        let failed = result_of(version, &result(version, 3));
        assert_eq!(failed.failure.as_deref(), Some("a message"), "1.{minor}");
        assert_eq!(failed.times, times.filter(|_| minor >= 29), "1.{minor}");
        assert_eq!(result_of(version, &result(version, 0)).failure, None);
    }
}

#[test]
fn processor_time_is_read_where_both_parts_of_it_are_there() {
    let reply = |cpu: &[u64]| {
        let mut out = message(&[stderr::LAST, 8, 0, 1, 0, 5, 7]);
        out.extend(message(cpu));
        put_number(&mut out, 0);
        result_of(V, &out)
    };
    let both = Some((Duration::from_millis(250), Duration::from_micros(7)));
    assert_eq!(reply(&[1, 250_000, 1, 7]).cpu, both);
    assert_eq!(reply(&[0, 1, 7]).cpu, None);
    assert_eq!(reply(&[0, 0]).cpu, None);
    let silent = "the guest's Nix ended it: it took too long";
    assert_eq!(reply(&[0, 0]).failure.as_deref(), Some(silent));
}
