//! What the manager has to say to a client while its bytes pass.

use super::fetching::build;
use super::limits::{begun, log_line, say};
use super::*;

const NOTE: &str = "memory ran out in riscv64-1";

async fn note(session: &NewSession) {
    let note = SessionUpdate::Note(NOTE.to_owned());
    session.updates.send(note).await.unwrap();
}

fn told_line() -> Vec<u8> {
    stderr::line(&format!("xpool: {NOTE}"))
}

#[tokio::test(start_paused = true)]
async fn a_note_is_told_at_once_between_two_frames() {
    let (mut rig, session, mut guest) = begun(&build(), BuildLimits::default()).await;
    say(&mut rig, &mut guest, &log_line("one")).await;
    note(&session).await;
    rig.expect(&told_line()).await;
    say(&mut rig, &mut guest, &log_line("two")).await;
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_note_that_comes_upon_a_frame_is_told_after_it() {
    let frame = log_line("a line that the guest takes its time for");
    let last = stderr::LAST.to_le_bytes();
    for cut in 1..frame.len() {
        let (mut rig, session, mut guest) = begun(&build(), BuildLimits::default()).await;
        say(&mut rig, &mut guest, &frame[..cut]).await;
        note(&session).await;
        // Where it is taken before the rest comes, and where it is not.
        if cut % 2 == 0 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let rest = [&frame[cut..], &frame[..], &last[..]].concat();
        guest.write_all(&rest).await.unwrap();
        let told = [&frame[cut..], &told_line(), &frame[..], &last[..]].concat();
        if cut % 2 == 0 {
            rig.expect(&told).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_note_after_the_reply_has_begun_waits_for_the_next_operation() {
    let (mut rig, session, mut guest) = begun(&build(), BuildLimits::default()).await;
    let reply = [stderr::LAST, 0, 0, 1, 0, 5, 7, 0, 0, 0].map(u64::to_le_bytes);
    let reply = reply.as_flattened();
    say(&mut rig, &mut guest, &reply[..16]).await;
    note(&session).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    say(&mut rig, &mut guest, &reply[16..]).await;
    rig.client.write_all(&query()).await.unwrap();
    guest.read_exact(&mut vec![0; query().len()]).await.unwrap();
    let line = stderr::line("looking");
    guest.write_all(&line).await.unwrap();
    rig.expect(&[told_line(), line].concat()).await;
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_note_keeps_nothing_back_of_a_reply_or_of_what_is_not_understood() {
    let (mut rig, session, mut guest) = begun(&build(), BuildLimits::default()).await;
    say(&mut rig, &mut guest, &99_u64.to_le_bytes()).await;
    note(&session).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    say(&mut rig, &mut guest, &vec![7; 100_000]).await;
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}
