//! Builds as the commands name, find and show them. Pure.

use crate::manager::status::{BuildOutcome, BuildView};
use crate::output::plain::{head, plain};
use crate::output::table::{age, size};

/// How many builds that have ended are shown; the JSON has all that the manager remembers.
const SHOWN_ENDED: usize = 10;

/// The widest that the last cell of a build gets.
const WIDEST: usize = 70;

/// A build's row: number, derivation, session, VM, time, bytes in and out, and what it does or how it ended.
pub(super) type Row = [String; 8];

/// What the cells are.
pub(super) const HEAD: [&str; 8] = [
    "BUILD",
    "DERIVATION",
    "SESSION",
    "VM",
    "TIME",
    "IN",
    "OUT",
    "IS",
];

/// Those that run, and the last of the others; `now` is in seconds since the epoch.
pub(super) fn rows(builds: &[BuildView], now: u64) -> Vec<Row> {
    let n_ended = builds.iter().filter(|build| build.ended.is_some()).count();
    let mut n_hidden = n_ended.saturating_sub(SHOWN_ENDED);
    let is_shown = |build: &&BuildView| {
        let is_hidden = build.ended.is_some() && n_hidden > 0;
        n_hidden -= usize::from(is_hidden);
        !is_hidden
    };
    builds
        .iter()
        .filter(is_shown)
        .map(|build| row(build, now))
        .collect()
}

fn row(build: &BuildView, now: u64) -> Row {
    [
        build.id.to_string(),
        name(build),
        build.session.to_string(),
        build.vm.clone(),
        age(build.ended.unwrap_or(now).saturating_sub(build.began)),
        size(build.progress.bytes_in),
        size(build.progress.bytes_out),
        head(&state(build), WIDEST),
    ]
}

/// `hello-2.12.drv` of `/nix/store/8bz3…-hello-2.12.drv`.
pub(super) fn name(build: &BuildView) -> String {
    plain(name_of(&build.derivation))
}

fn name_of(derivation: &str) -> &str {
    let base = derivation.rsplit('/').next().unwrap_or(derivation);
    base.split_once('-').map_or(base, |(_, name)| name)
}

/// Its phase and last line, or how it ended.
fn state(build: &BuildView) -> String {
    if let Some(outcome) = &build.outcome {
        return ending(outcome);
    }
    let phase = build.progress.phase.as_deref();
    let line = build.progress.last_lines.last().map(String::as_str);
    match (phase, line) {
        (Some(phase), Some(line)) => format!("{phase}: {line}"),
        (Some(said), None) | (None, Some(said)) => said.to_owned(),
        (None, None) => "running".to_owned(),
    }
}

/// `built`, or `failed: …`.
pub(super) fn ending(outcome: &BuildOutcome) -> String {
    match outcome {
        BuildOutcome::Built => "built".to_owned(),
        BuildOutcome::Failed { because } => format!("failed: {because}"),
    }
}

/// The last build that this names: a session's number, or a derivation's path or name, with or without `.drv`.
pub(super) fn find<'a>(builds: &'a [BuildView], wanted: &str) -> Option<&'a BuildView> {
    let is_wanted = |build: &&BuildView| {
        let derivation = build.derivation.as_str();
        let base = derivation.rsplit('/').next().unwrap_or(derivation);
        let name = name_of(derivation);
        let without = |name: &str| name.strip_suffix(".drv").map(str::to_owned);
        wanted.parse() == Ok(build.session)
            || [derivation, base, name].contains(&wanted)
            || without(name).as_deref() == Some(wanted)
    };
    builds.iter().rev().find(is_wanted)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::manager::ticket::BuildProgress;
    use crate::nix::System;

    /// A build that began five seconds after the epoch.
    pub(in crate::cli) fn build(id: u64, name: &str, outcome: Option<BuildOutcome>) -> BuildView {
        BuildView {
            id,
            session: id + 10,
            system: System::Riscv64Linux,
            vm: "riscv64-1".to_owned(),
            slot: "riscv64-01".to_owned(),
            client: "127.0.0.1:5".to_owned(),
            derivation: format!("/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-{name}.drv"),
            outputs: Vec::new(),
            progress: BuildProgress {
                phase: Some("buildPhase".to_owned()),
                last_lines: vec!["cc -o hello".to_owned()],
                n_lines: 120,
                bytes_in: 4096,
                bytes_out: 12,
            },
            began: 5,
            ended: outcome.as_ref().map(|_| 70),
            outcome,
            cpu: None,
        }
    }

    #[test]
    fn all_builds_that_run_are_shown_and_the_last_that_ended() {
        let mut builds: Vec<BuildView> = (1..=20)
            .map(|id| build(id, "a", Some(BuildOutcome::Built)))
            .collect();
        builds.insert(0, build(0, "long", None));
        builds.push(build(21, "b", None));
        let rows = rows(&builds, 100);
        let ids: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        let expected = "0 11 12 13 14 15 16 17 18 19 20 21";
        assert_eq!(ids.join(" "), expected);
    }

    #[test]
    fn a_build_is_found_by_its_session_and_by_its_names() {
        let builds = [build(1, "hello-2.12", None), build(2, "hello-2.12", None)];
        let id = |wanted| find(&builds, wanted).map(|build| build.id);
        let path = builds[0].derivation.as_str();
        assert_eq!(id("11"), Some(1));
        for wanted in [path, &path[11..], "hello-2.12.drv", "hello-2.12"] {
            assert_eq!(id(wanted), Some(2), "{wanted}");
        }
        assert_eq!([id("hello"), id("1"), id("")], [None; 3]);
    }

    #[test]
    fn a_build_says_what_it_does_or_how_it_ended() {
        let because = "\x1b[31mbuilder failed\x1b[0m with exit code 1;\nlast lines".to_owned();
        let failed = build(1, "a", Some(BuildOutcome::Failed { because }));
        let mut young = build(2, "a", None);
        young.progress = BuildProgress::default();
        let says = [&failed, &build(3, "a", None), &young].map(|build| row(build, 65)[7].clone());
        assert_eq!(says[0], "failed: builder failed with exit code 1;");
        assert_eq!(says[1..], ["buildPhase: cc -o hello", "running"]);
    }
}
