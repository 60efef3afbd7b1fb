//! Builds that take too long, in stopped time.

use std::time::Duration;

use super::fetching::{build, receive};
use super::*;
use crate::manager::ticket::{BuildEnded, SessionReport};

const MINUTE: Duration = Duration::from_secs(60);

const SILENT: BuildLimits = BuildLimits {
    timeout: None,
    max_silent_time: Some(Duration::from_secs(10 * 60)),
};

const LONG: BuildLimits = BuildLimits {
    timeout: Some(Duration::from_secs(3600)),
    max_silent_time: None,
};

const WAS_SILENT: &str = "xpool: riscv64-1: building hello-2.12.drv was ended: it was silent for 10m \
    (max-silent-time of the pool; set it in xpool.toml); `xpool logs hello-2.12.drv` shows its last lines";

const WAS_LONG: &str = "xpool: riscv64-1: building hello-2.12.drv was ended: it took longer than 1h \
    (timeout of the pool; set it in xpool.toml); `xpool logs hello-2.12.drv` shows its last lines";

/// A session whose first operation its guest has received.
pub(super) async fn begun(first: &[u8], limits: BuildLimits) -> (Rig, NewSession, UnixStream) {
    let (rig, session) = Rig::parked_with(first).await;
    let mut guest = grant_limited(&session, false, limits).await;
    let early = shake_hands_as_guest(&mut guest).await;
    receive(&mut guest, &early, first).await;
    (rig, session, guest)
}

pub(super) fn log_line(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [stderr::RESULT, 1, 101, 1, 1] {
        put_number(&mut out, number);
    }
    put_string(&mut out, text.as_bytes());
    out
}

/// The guest says this, and the client hears it.
pub(super) async fn say(rig: &mut Rig, guest: &mut UnixStream, frame: &[u8]) {
    guest.write_all(frame).await.unwrap();
    rig.expect(frame).await;
}

/// The failure that the manager is told.
async fn result(session: &mut NewSession) -> String {
    loop {
        let report = session.reports.recv().await.expect("a build ended");
        if let SessionReport::BuildEnded(BuildEnded { failure, .. }) = report {
            return failure.unwrap();
        }
    }
}

/// The client is told this, and the guest's side closed in full.
async fn ends_with(mut rig: Rig, mut guest: UnixStream, text: &str) {
    rig.expect(&stderr::error(V, text)).await;
    assert_eq!(guest.read(&mut [0; 10]).await.unwrap(), 0);
    guest.write_all(b"still there?").await.unwrap_err();
    assert_eq!(rig.leave().await, told(text));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_silent_for_too_long_is_ended_with_an_error() {
    let (rig, mut session, guest) = begun(&build(), SILENT).await;
    let began = tokio::time::Instant::now();
    assert_eq!(
        result(&mut session).await,
        "it was silent for 10m (max-silent-time)"
    );
    assert_eq!(began.elapsed().as_secs(), 600);
    ends_with(rig, guest, WAS_SILENT).await;
}

#[tokio::test(start_paused = true)]
async fn each_line_and_phase_begins_the_silence_anew() {
    let (mut rig, mut session, mut guest) = begun(&build(), SILENT).await;
    let began = tokio::time::Instant::now();
    let mut phase = log_line("checkPhase");
    phase[16..24].copy_from_slice(&104_u64.to_le_bytes());
    for frame in [log_line("one"), stderr::line("two"), phase] {
        tokio::time::advance(9 * MINUTE).await;
        say(&mut rig, &mut guest, &frame).await;
    }
    // An activity is not the build's own word.
    let stop = [stderr::STOP_ACTIVITY, 1].map(u64::to_le_bytes).concat();
    tokio::time::advance(9 * MINUTE).await;
    say(&mut rig, &mut guest, &stop).await;
    result(&mut session).await;
    assert_eq!(began.elapsed().as_secs() / 60, 37);
    ends_with(rig, guest, WAS_SILENT).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_takes_too_long_is_ended_whatever_it_says() {
    let (mut rig, mut session, mut guest) = begun(&build(), LONG).await;
    for _ in 0..6 {
        tokio::time::advance(9 * MINUTE).await;
        say(&mut rig, &mut guest, &log_line("still at it")).await;
    }
    assert_eq!(
        result(&mut session).await,
        "it took longer than 1h (timeout)"
    );
    ends_with(rig, guest, WAS_LONG).await;
}

#[tokio::test(start_paused = true)]
async fn neither_limit_counts_while_inputs_or_outputs_are_copied() {
    let limits = BuildLimits {
        timeout: LONG.timeout,
        ..SILENT
    };
    let upload = [44_u64, 0, 1, 8].map(u64::to_le_bytes).concat();
    let (mut rig, _session, mut guest) = begun(&upload, limits).await;
    tokio::time::advance(120 * MINUTE).await;
    let rest = [7_u64, 0].map(u64::to_le_bytes).concat();
    rig.client.write_all(&rest).await.unwrap();
    receive(&mut guest, &[], &rest).await;
    let last = stderr::LAST.to_le_bytes();
    say(&mut rig, &mut guest, &last).await;
    // A build whose request is not there in full has not begun.
    rig.client.write_all(&build()[..30]).await.unwrap();
    tokio::time::advance(120 * MINUTE).await;
    rig.client.write_all(&build()[30..]).await.unwrap();
    receive(&mut guest, &[], &build()).await;
    tokio::time::advance(9 * MINUTE).await;
    let mut reply = [stderr::LAST, 0, 0, 1, 0, 5, 7, 0, 0, 0].map(u64::to_le_bytes);
    say(&mut rig, &mut guest, reply.as_flattened_mut()).await;
    tokio::time::advance(120 * MINUTE).await;
    rig.client.write_all(&fetch()).await.unwrap();
    receive(&mut guest, &[], &fetch()).await;
    tokio::time::advance(120 * MINUTE).await;
    say(&mut rig, &mut guest, &last).await;
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_not_understood_any_more_has_no_limit() {
    let (mut rig, mut session, mut guest) = begun(&build(), SILENT).await;
    say(&mut rig, &mut guest, &99_u64.to_le_bytes()).await;
    let unknown = "not known: what the client or the guest sent is not understood";
    assert_eq!(result(&mut session).await, unknown);
    tokio::time::advance(600 * MINUTE).await;
    say(&mut rig, &mut guest, &[0; 8]).await;
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_frame_that_a_limit_comes_upon_is_passed_to_its_end() {
    let (mut rig, _session, mut guest) = begun(&build(), LONG).await;
    let frame = log_line("a line that the guest takes its time for");
    tokio::time::advance(59 * MINUTE).await;
    say(&mut rig, &mut guest, &frame[..20]).await;
    tokio::time::sleep(MINUTE).await;
    let flood = [&frame[20..], &frame[..], &frame[..11]].concat();
    guest.write_all(&flood).await.unwrap();
    rig.expect(&frame[20..]).await;
    ends_with(rig, guest, WAS_LONG).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_within_a_frame_that_does_not_end_is_left_to_the_front_end() {
    let (mut rig, _session, mut guest) = begun(&build(), LONG).await;
    say(&mut rig, &mut guest, &log_line("half")[..20]).await;
    let expected = Outcome::Untold {
        text: WAS_LONG.to_owned(),
        to_hook: true,
    };
    assert_eq!(rig.ended.await.unwrap(), expected);
}
