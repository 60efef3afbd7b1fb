//! Sessions that come for what is built, what they leave, and what they may not do.

use std::sync::atomic::Ordering;

use super::*;

const REFUSED: &str = "xpool: riscv64-1 has had its build and is only kept until that is fetched; anything else needs a new connection";

fn unfetched(session: &NewSession) -> bool {
    session.unfetched.load(Ordering::Acquire)
}

/// A session that fetches, and its guest, which has had its build. The guest has received the operation.
async fn fetching() -> (Rig, NewSession, UnixStream) {
    let (rig, session) = Rig::parked_with(&fetch()).await;
    let mut guest = grant_with(&session, true).await;
    let early = shake_hands_as_guest(&mut guest).await;
    receive(&mut guest, &early, &fetch()).await;
    (rig, session, guest)
}

/// The guest receives exactly this, of which `early` is there already.
async fn receive(guest: &mut UnixStream, early: &[u8], expected: &[u8]) {
    let mut got = early.to_vec();
    got.resize(expected.len(), 0);
    guest.read_exact(&mut got[early.len()..]).await.unwrap();
    assert_eq!(got, expected);
}

/// The guest answers that the path is not there.
async fn answer(rig: &mut Rig, guest: &mut UnixStream) {
    let error = stderr::error(V, "no such path");
    guest.write_all(&error).await.unwrap();
    rig.expect(&error).await;
}

/// What the guest still receives before its hop is closed.
async fn rest(guest: &mut UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    guest.read_to_end(&mut rest).await.unwrap();
    rest
}

fn build() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 36);
    put_string(&mut out, b"/nix/store/a-hello-2.12.drv");
    out.extend([0; 7 * 8]);
    out
}

fn not_told() -> Outcome {
    let text = REFUSED.to_owned();
    let to_hook = false;
    Outcome::Untold { text, to_hook }
}

#[tokio::test]
async fn what_a_first_operation_asks_for_says_whether_it_fetches() {
    for (number, fetches) in [
        (1, true),
        (26, true),
        (38, true),
        (43, true),
        (9, false),
        (31, false),
        (36, false),
        (39, false),
        (44, false),
        (u64::MAX, false),
    ] {
        // With no path, or none at all.
        let first = [number, 0, 0].map(u64::to_le_bytes).concat();
        let (_rig, session) = Rig::parked_with(&first).await;
        assert_eq!(session.request.first.fetches(), fetches, "{number}");
        assert_eq!(unfetched(&session), fetches, "{number}");
    }
}

#[tokio::test]
async fn a_session_that_built_nothing_leaves_nothing() {
    let (rig, session, _guest) = Rig::joined().await;
    rig.leave().await;
    assert!(!unfetched(&session));
}

#[tokio::test]
async fn a_session_that_only_fetches_leaves_what_it_found() {
    let (rig, session, _guest) = Rig::joined_with(&fetch()).await;
    rig.leave().await;
    assert!(unfetched(&session));
}

#[tokio::test]
async fn a_session_that_does_something_unknown_may_leave_outputs_even_when_it_is_dropped() {
    let build_paths = 9_u64.to_le_bytes();
    let (rig, session, _guest) = Rig::joined_with(&build_paths).await;
    assert!(!unfetched(&session));
    rig.ended.abort();
    session.updates.closed().await;
    assert!(unfetched(&session));
}

#[tokio::test]
async fn a_build_on_a_vm_that_has_had_its_build_is_an_error_in_the_protocol() {
    for number in [36, 44_u64] {
        let (mut rig, session, mut guest) = fetching().await;
        answer(&mut rig, &mut guest).await;
        rig.client.write_all(&number.to_le_bytes()).await.unwrap();
        rig.expect(&stderr::error(V, REFUSED)).await;
        assert_eq!(rest(&mut guest).await, b"", "{number}");
        assert_eq!(rig.leave().await, told(REFUSED));
        assert!(unfetched(&session), "what is there may still be fetched");
    }
}

#[tokio::test]
async fn no_byte_of_a_build_reaches_a_vm_that_has_had_its_build_however_it_is_split() {
    for cut in 1..build().len() {
        let (mut rig, _session, mut guest) = fetching().await;
        answer(&mut rig, &mut guest).await;
        for part in [&build()[..cut], &build()[cut..]] {
            rig.client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        rig.expect(&stderr::error(V, REFUSED)).await;
        assert_eq!(rest(&mut guest).await, b"", "cut after {cut} bytes");
    }
}

#[tokio::test]
async fn a_build_in_the_same_chunk_as_a_fetch_reaches_no_vm_that_has_had_its_build() {
    // At once, and after an operation in a chunk of its own.
    let both = [fetch(), build()].concat();
    let (rig, session) = Rig::parked_with(&both).await;
    let mut guest = grant_with(&session, true).await;
    assert_eq!(shake_hands_as_guest(&mut guest).await, b"");
    assert_eq!(rest(&mut guest).await, b"");
    assert_eq!(rig.ended.await.unwrap(), not_told());

    let (mut rig, _session, mut guest) = fetching().await;
    answer(&mut rig, &mut guest).await;
    rig.client.write_all(&both).await.unwrap();
    assert_eq!(rest(&mut guest).await, b"");
    assert_eq!(rig.ended.await.unwrap(), not_told());
}

#[tokio::test]
async fn a_build_that_does_not_wait_for_the_fetch_before_it_is_cut_off() {
    let (mut rig, _session, mut guest) = fetching().await;
    rig.client.write_all(&build()).await.unwrap();
    assert_eq!(rest(&mut guest).await, b"");
    assert_eq!(rig.ended.await.unwrap(), not_told());
}

#[tokio::test]
async fn an_unknown_operation_reaches_no_vm_that_has_had_its_build() {
    for cut in [3, 16] {
        let (mut rig, session, mut guest) = fetching().await;
        answer(&mut rig, &mut guest).await;
        let collect_garbage = [20_u64.to_le_bytes(), [0; 8]].concat();
        for part in [&collect_garbage[..cut], &collect_garbage[cut..]] {
            rig.client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(rest(&mut guest).await, b"");
        assert_eq!(rig.ended.await.unwrap(), not_told());
        session.updates.closed().await;
    }
}

#[tokio::test]
async fn a_vm_that_has_had_its_build_cannot_blind_the_watching_to_get_another_one() {
    let (mut rig, _session, mut guest) = fetching().await;
    let odd = 99_u64.to_le_bytes();
    guest.write_all(&odd).await.unwrap();
    rig.expect(&odd).await;
    rig.client.write_all(&build()).await.unwrap();
    assert_eq!(rest(&mut guest).await, b"");
    assert_eq!(rig.ended.await.unwrap(), not_told());
}

#[tokio::test]
async fn further_fetches_pass_however_they_are_split() {
    let (mut rig, _session, mut guest) = fetching().await;
    for cut in 1..fetch().len() {
        answer(&mut rig, &mut guest).await;
        for part in [&fetch()[..cut], &fetch()[cut..]] {
            rig.client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        receive(&mut guest, &[], &fetch()).await;
    }
    assert!(matches!(rig.leave().await, Outcome::Served { .. }));
}

#[tokio::test]
async fn a_session_with_a_vm_of_its_own_may_do_anything_after_a_fetch() {
    for wanted in [build(), 9_u64.to_le_bytes().to_vec()] {
        let (mut rig, _session, mut guest) = Rig::joined_with(&fetch()).await;
        rig.client.write_all(&wanted).await.unwrap();
        receive(&mut guest, &[], &wanted).await;
        rig.client.write_all(&[1, 2, 3]).await.unwrap();
        receive(&mut guest, &[], &[1, 2, 3]).await;
    }
}
