//! Inputs that this machine's store has: in the guest before it hears the question for them.

use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::manager::ticket::InputsTaker;
use crate::store::Inputs;
use crate::store::tests::{Rig as StoreRig, path};

/// The VM's side of handing over inputs.
type Handed = mpsc::Receiver<(Inputs, oneshot::Sender<()>)>;

/// A parked session that has asked for `a` and `b`, and is granted a VM: the session, the guest's end, and where inputs are
/// handed over.
async fn granted(store: &StoreRig) -> (Rig, NewSession, UnixStream, Handed) {
    let stores = BTreeMap::from([(System::Riscv64Linux, Arc::new(store.store()))]);
    let mut rig = Rig::start_with(stores);
    rig.shake_hands().await;
    let question = question();
    let (first, rest) = question.split_at(100);
    rig.client.write_all(first).await.unwrap();
    rig.client.flush().await.unwrap();
    rig.client.write_all(rest).await.unwrap();
    let mut session = rig.sessions.recv().await.unwrap();
    let (guest, handed) = grant_sharing(&mut session).await;
    (rig, session, guest, handed)
}

/// Gives a session a VM that sees the store: the guest's end, and where inputs are handed over.
async fn grant_sharing(session: &mut NewSession) -> (UnixStream, Handed) {
    let (stream, guest) = UnixStream::pair().unwrap();
    let (taker, handed) = InputsTaker::channel();
    let grant = Grant {
        vm: "riscv64-1".to_owned(),
        hop: Hop::new(stream),
        fetch_only: false,
        inputs: session.look_up.take().unwrap().hand_over(taker),
        limits: BuildLimits::default(),
    };
    let granted = SessionUpdate::Granted(grant);
    session.updates.send(granted).await.unwrap();
    (guest, handed)
}

fn question() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 31);
    put_strings(&mut out, &["a", "b"].map(|name| path(name).to_string()));
    put_number(&mut out, 0);
    out
}

/// Whether the guest hears the question, in a moment.
async fn hears_the_question(guest: &mut UnixStream, received: Vec<u8>) -> bool {
    let mut heard = received;
    let missing = question().len() - heard.len();
    let mut rest = vec![0; missing];
    let moment = Duration::from_millis(200);
    match tokio::time::timeout(moment, guest.read_exact(&mut rest)).await {
        Err(_) => false,
        Ok(read) => {
            read.unwrap();
            heard.extend(rest);
            heard == question()
        }
    }
}

#[tokio::test]
async fn a_guest_is_asked_for_inputs_once_it_has_those_that_are_shared() {
    let store = StoreRig::new();
    store.add("a", &[]);
    let (rig, _session, mut guest, mut handed) = granted(&store).await;
    let received = shake_hands_as_guest(&mut guest).await;
    let (inputs, given) = handed.recv().await.unwrap();
    assert_eq!((inputs.asked(), inputs.shared()), (2, 1));
    assert!(!hears_the_question(&mut guest, received.clone()).await);
    given.send(()).unwrap();
    assert!(hears_the_question(&mut guest, received).await);
    rig.leave().await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_holds_nothing_up() {
    let store = StoreRig::new();
    let socket = store.socket();
    std::fs::remove_file(&socket).unwrap();
    let (rig, _session, mut guest, mut handed) = granted(&store).await;
    let received = shake_hands_as_guest(&mut guest).await;
    assert!(handed.recv().await.is_none());
    assert!(hears_the_question(&mut guest, received).await);
    rig.leave().await;
}

#[tokio::test]
async fn a_client_may_leave_while_its_inputs_are_handed_over() {
    let store = StoreRig::new();
    store.add("a", &[]);
    let (rig, _session, mut guest, mut handed) = granted(&store).await;
    shake_hands_as_guest(&mut guest).await;
    let (_inputs, given) = handed.recv().await.unwrap();
    assert_eq!(rig.leave().await, Outcome::LeftWaiting);
    assert!(given.is_closed());
}

#[tokio::test]
async fn a_client_that_may_not_see_the_store_is_not_looked_for() {
    let store = StoreRig::new();
    store.add("a", &[]);
    let stores = BTreeMap::from([(System::Aarch64Linux, Arc::new(store.store()))]);
    let mut rig = Rig::start_with(stores);
    rig.shake_hands().await;
    rig.client.write_all(&question()).await.unwrap();
    let session = rig.sessions.recv().await.unwrap();
    let mut guest = grant(&session).await;
    let received = shake_hands_as_guest(&mut guest).await;
    assert!(hears_the_question(&mut guest, received).await);
    assert_eq!(store.count(31), 0);
    rig.leave().await;
}

#[tokio::test]
async fn a_session_that_has_its_vm_need_not_wait_for_those_that_wait() {
    let store = StoreRig::new();
    store.add("a", &[]);
    let host = Arc::new(store.store());
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut rig = Rig::start_with(BTreeMap::from([(System::Riscv64Linux, host.clone())]));
        rig.shake_hands().await;
        rig.client.write_all(&question()).await.unwrap();
        waiting.push(rig);
    }
    let mut last = waiting.pop().unwrap();
    let mut session = last.sessions.recv().await.unwrap();
    assert!(store.count(31) < 20, "all look at once");
    let (mut guest, mut handed) = grant_sharing(&mut session).await;
    shake_hands_as_guest(&mut guest).await;
    let (inputs, _given) = handed.recv().await.unwrap();
    assert_eq!(inputs.shared(), 1);
}

#[tokio::test]
async fn a_request_of_who_makes_this_process_hold_too_much_is_not_kept_to_be_looked_at() {
    let account = account::Account::new(0);
    let mut rig = Rig::start_for(&account, BTreeMap::new());
    rig.shake_hands().await;
    // It is not waited for in full, and nothing of it is lost.
    let question = question();
    let (first, rest) = question.split_at(100);
    rig.client.write_all(first).await.unwrap();
    let session = rig.sessions.recv().await.unwrap();
    assert_eq!(session.request.first, First::Other);
    let mut guest = grant(&session).await;
    let mut heard = shake_hands_as_guest(&mut guest).await;
    rig.client.write_all(rest).await.unwrap();
    let n_heard = heard.len();
    heard.resize(question.len(), 0);
    guest.read_exact(&mut heard[n_heard..]).await.unwrap();
    assert_eq!(heard, question);
    assert_eq!(account.held(), 0);
}
