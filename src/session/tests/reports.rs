//! What the manager is told of a session.

use std::time::Duration;

use super::fetching::{build, receive};
use super::*;
use crate::manager::ticket::{BuildBegan, BuildEnded, BuildProgress, SessionReport};
use crate::nix::observe::{MAX_LINE, MAX_LINES};

/// A session that builds.
async fn building() -> (Rig, NewSession, UnixStream) {
    Rig::joined_with(&build()).await
}

fn log_line(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [stderr::RESULT, 1, 101, 1, 1] {
        put_number(&mut out, number);
    }
    put_string(&mut out, text.as_bytes());
    out
}

/// The reply to a build, with the time that its processor took.
fn built(status: u64) -> Vec<u8> {
    let numbers = [
        stderr::LAST,
        status,
        0,
        1,
        0,
        5,
        7,
        1,
        2_000_000,
        1,
        500_000,
        0,
    ];
    numbers.map(u64::to_le_bytes).concat()
}

async fn next(session: &mut NewSession) -> SessionReport {
    session.reports.recv().await.expect("a report")
}

async fn next_progress(session: &mut NewSession) -> BuildProgress {
    loop {
        if let SessionReport::Progress(progress) = next(session).await {
            return progress;
        }
    }
}

fn began() -> SessionReport {
    SessionReport::BuildBegan(BuildBegan {
        derivation: "/nix/store/a-hello-2.12.drv".to_owned(),
        outputs: Vec::new(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_build_is_told_from_its_begin_to_its_end() {
    let (mut rig, mut session, mut guest) = building().await;
    let activity = SessionReport::Activity("building hello-2.12.drv".to_owned());
    assert_eq!(next(&mut session).await, activity);
    assert_eq!(next(&mut session).await, began());
    assert_eq!(
        next_progress(&mut session).await.bytes_in,
        build().len() as u64
    );
    let frames = [log_line("one"), log_line("two"), built(0)].concat();
    guest.write_all(&frames).await.unwrap();
    rig.expect(&frames).await;
    let progress = BuildProgress {
        phase: None,
        last_lines: vec!["one".to_owned(), "two".to_owned()],
        n_lines: 2,
        bytes_in: build().len() as u64,
        bytes_out: frames.len() as u64,
    };
    assert_eq!(next_progress(&mut session).await, progress);
    let ended = BuildEnded {
        failure: None,
        cpu: Some((Duration::from_secs(2), Duration::from_millis(500))),
    };
    assert_eq!(next(&mut session).await, SessionReport::BuildEnded(ended));
    rig.leave().await;
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_twice_a_second_at_the_most_and_only_when_there_is_some() {
    let (mut rig, mut session, mut guest) = building().await;
    let mut told = Vec::new();
    let start = tokio::time::Instant::now();
    for n in 0..100 {
        let line = log_line(&format!("line {n}"));
        guest.write_all(&line).await.unwrap();
        rig.expect(&line).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Ok(report) = session.reports.try_recv() {
            if let SessionReport::Progress(progress) = report {
                told.push((start.elapsed(), progress.n_lines));
            }
        }
    }
    assert!((9..=12).contains(&told.len()), "{told:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let last = next_progress(&mut session).await;
    assert_eq!(last.n_lines, 100);
    assert_eq!(last.last_lines.len(), MAX_LINES);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(session.reports.try_recv().is_err(), "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_does_not_end_takes_no_more_than_a_short_one() {
    let (mut rig, mut session, mut guest) = building().await;
    let line = log_line(&"x".repeat(1 << 20));
    let writing = async { guest.write_all(&line).await.unwrap() };
    let reading = async { rig.expect(&line).await };
    tokio::join!(writing, reading);
    loop {
        let progress = next_progress(&mut session).await;
        if progress.n_lines == 1 {
            assert_eq!(progress.last_lines, ["x".repeat(MAX_LINE)]);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn begins_and_ends_are_not_lost_when_the_manager_is_busy() {
    let (mut rig, mut session, mut guest) = building().await;
    let mut passed = built(0);
    guest.write_all(&passed).await.unwrap();
    for _ in 0..40 {
        rig.expect(&passed).await;
        rig.client.write_all(&build()).await.unwrap();
        receive(&mut guest, &[], &build()).await;
        passed = built(0);
        guest.write_all(&passed).await.unwrap();
    }
    rig.expect(&passed).await;
    // There is room for fewer reports than that, and bytes have passed all the same.
    let (mut n_began, mut n_ended) = (0, 0);
    let leaving = tokio::spawn(rig.leave());
    while let Some(report) = session.reports.recv().await {
        match report {
            SessionReport::BuildBegan(_) => n_began += 1,
            SessionReport::BuildEnded(_) => n_ended += 1,
            _ => {}
        }
    }
    assert_eq!((n_began, n_ended), (41, 41));
    leaving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_client_leaves_or_whose_daemon_hangs_up_has_that_as_its_result() {
    for client_leaves in [true, false] {
        let (rig, mut session, guest) = building().await;
        let leaving = if client_leaves {
            tokio::spawn(rig.leave())
        } else {
            drop(guest);
            rig.ended
        };
        let expected = if client_leaves {
            "the client left"
        } else {
            "the nix-daemon in the VM hung up"
        };
        let failure = loop {
            if let SessionReport::BuildEnded(ended) = next(&mut session).await {
                break ended.failure.unwrap();
            }
        };
        assert_eq!(failure, expected);
        leaving.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_has_fetched_in_full_is_told() {
    const PATH: &str = "/nix/store/1pr6dn8cqlvgmgsv2njsm40kwqjb3f8y-hello-2.12";
    let mut ask = Vec::new();
    put_number(&mut ask, 38);
    put_string(&mut ask, PATH.as_bytes());
    let (mut rig, mut session, mut guest) = Rig::joined_with(&ask).await;
    let mut nar = Vec::new();
    put_number(&mut nar, stderr::LAST);
    for word in ["nix-archive-1", "(", "type", "symlink", "target", "x", ")"] {
        put_string(&mut nar, word.as_bytes());
    }
    guest.write_all(&nar).await.unwrap();
    rig.expect(&nar).await;
    loop {
        if let SessionReport::Fetched(path) = next(&mut session).await {
            assert_eq!(path.as_str(), PATH);
            break;
        }
    }
}
