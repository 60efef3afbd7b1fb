//! The observer sees what there is to be seen of each session, however its bytes are split.

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use xpool::nix::observe::{Event, Observer};

use super::RECORDED;
use super::capture::{Capture, Side};

/// What is seen of a session: each operation, what is built, where the watching ends, and whether outputs are left. Each chunk
/// is split into parts of these sizes, over and over.
fn seen(capture: &Capture, sizes: &[usize]) -> String {
    let (version, chunks) = capture.after_handshake();
    let mut observer = Observer::new(version);
    let mut sizes = sizes.iter().copied().cycle();
    let mut text = format!("{} ({version}):", capture.name);
    for (side, chunk) in &chunks {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let (part, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            rest = later;
            let was_watching = observer.is_watching();
            let events = match side {
                Side::Client => observer.from_client(part),
                Side::Server => observer.from_server(part),
            };
            for event in &events {
                note(&mut text, event);
            }
            if was_watching && !observer.is_watching() {
                let number = chunk
                    .first_chunk()
                    .map(|number| u64::from_le_bytes(*number));
                write!(text, " NOT WATCHED since {side:?} sent {}", number.unwrap()).unwrap();
            }
        }
    }
    if observer.outputs_remain() {
        text.push_str(" [outputs remain]");
    }
    text + "\n"
}

fn note(text: &mut String, event: &Event) {
    match event {
        Event::Started(operation) => write!(text, " {operation:?}(").unwrap(),
        Event::Building(building) => {
            text.push_str(building.derivation.rsplit('/').next().unwrap());
        }
        // What they say is tested by itself; here it is the order of operations.
        Event::Built(_) | Event::Fetched { .. } => {}
        Event::Ended(_) => text.push(')'),
    }
}

fn seen_of_all(captures: &[Capture], sizes: &[usize]) -> String {
    captures
        .iter()
        .map(|capture| seen(capture, sizes))
        .collect()
}

const WHOLE: &[usize] = &[usize::MAX];

fn watched(nix: &str) -> String {
    seen_of_all(&Capture::all(nix), WHOLE)
}

// A `NarFromPath` without an end is one of a path that is not there: the daemon's error comes in the middle of the NAR. The
// client hangs up then.

#[test]
fn sessions_of_nix_2_8_are_watched() {
    insta::assert_snapshot!(watched("2.8.0"), @r"
    build.1 (1.34): QueryValidPaths() AddMultipleToStore() BuildDerivation(rvdlhrcy2xil0zsfi3ij1gg3j30sv3wb-hello.drv) QueryPathInfo() QueryPathInfo() NarFromPath() NarFromPath()
    copy-from.1 (1.34): BuildPathsWithResults() QueryPathInfo() NarFromPath() [outputs remain]
    copy-to.1 (1.34): QueryValidPaths() AddMultipleToStore()
    failing.1 (1.34): QueryValidPaths() AddMultipleToStore() BuildDerivation(f6k1kxkb6fy0iyqip7zfbk44xcpm964b-failing.drv)
    info.1 (1.34):
    missing.1 (1.34): QueryMissing() QueryPathInfo() [outputs remain]
    missing.2 (1.34): NarFromPath( [outputs remain]
    path-info.1 (1.34): QueryMissing() QueryPathInfo() [outputs remain]
    store-build.1 (1.34): AddToStore() AddToStore() AddToStore() QueryMissing() QueryPathInfo() BuildPaths() QueryDerivationOutputMap() [outputs remain]
    ");
}

#[test]
fn sessions_of_nix_2_26_are_watched() {
    insta::assert_snapshot!(watched("2.26.3"), @r"
    build.1 (1.37): QueryValidPaths() AddMultipleToStore() BuildDerivation(rvdlhrcy2xil0zsfi3ij1gg3j30sv3wb-hello.drv) QueryPathInfo() QueryPathInfo() NarFromPath() [outputs remain]
    build.2 (1.37): NarFromPath() [outputs remain]
    copy-from.1 (1.37): QueryMissing() BuildPathsWithResults() QueryPathInfo() NarFromPath() [outputs remain]
    copy-to.1 (1.37): QueryValidPaths() AddMultipleToStore()
    failing.1 (1.37): QueryValidPaths() AddMultipleToStore() BuildDerivation(f6k1kxkb6fy0iyqip7zfbk44xcpm964b-failing.drv)
    info.1 (1.37):
    missing.1 (1.37): QueryMissing() QueryPathInfo() [outputs remain]
    missing.2 (1.37): NarFromPath( [outputs remain]
    path-info.1 (1.37): QueryMissing() QueryPathInfo() [outputs remain]
    store-build.1 (1.37): AddToStore() AddToStore() AddToStore() QueryMissing() QueryPathInfo() BuildPaths() NarFromPath() QueryDerivationOutputMap() [outputs remain]
    ");
}

#[test]
fn sessions_of_nix_2_34_are_watched() {
    insta::assert_snapshot!(watched("2.34.8"), @r"
    build.1 (1.37): QueryValidPaths() AddMultipleToStore() BuildDerivation(rvdlhrcy2xil0zsfi3ij1gg3j30sv3wb-hello.drv) QueryPathInfo() QueryPathInfo() NarFromPath() NarFromPath()
    copy-from.1 (1.37): QueryMissing() BuildPathsWithResults() QueryPathInfo() NarFromPath() [outputs remain]
    copy-to.1 (1.37): QueryValidPaths() AddMultipleToStore()
    failing.1 (1.37): QueryValidPaths() AddMultipleToStore() BuildDerivation(f6k1kxkb6fy0iyqip7zfbk44xcpm964b-failing.drv)
    info.1 (1.37):
    missing.1 (1.37): QueryMissing() QueryPathInfo() NarFromPath( [outputs remain]
    path-info.1 (1.37): QueryMissing() QueryPathInfo() [outputs remain]
    store-build.1 (1.37): AddToStore() AddToStore() AddTempRoot() IsValidPath() AddToStore() QueryMissing() QueryPathInfo() BuildPaths() NarFromPath() QueryDerivationOutputMap() [outputs remain]
    ");
}

#[test]
fn byte_by_byte_the_same_is_seen() {
    for (nix, _) in RECORDED {
        assert_eq!(seen_of_all(&Capture::all(nix), &[1]), watched(nix));
    }
}

#[test]
fn in_any_pieces_the_same_is_seen() {
    let recorded = RECORDED.map(|(nix, _)| (Capture::all(nix), watched(nix)));
    let sizes = prop::collection::vec(1..200_usize, 1..20);
    let outcome = TestRunner::default().run(&sizes, |sizes| {
        for (captures, watched) in &recorded {
            prop_assert_eq!(&seen_of_all(captures, &sizes), watched);
        }
        Ok(())
    });
    outcome.unwrap();
}
