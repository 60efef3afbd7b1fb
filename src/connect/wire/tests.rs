//! What passes between a manager and a helper, on sockets of the tests' own.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::session::account::Account;

/// Where another text comes out, [`VERSION`] has to be another, unless those who know the old one understand it.
#[test]
fn messages_of_this_version_look_like_this() {
    let open = ToManager::Open {
        slot: "riscv64-00".into(),
        first: First::Other,
        version: Some(VERSION),
    };
    let granted = ToHelper::Granted {
        vm: "riscv64-1".into(),
        greeted: vec![1],
        fetch_only: false,
        limits: BuildLimits::default(),
    };
    let texts = [
        serde_json::to_string(&open).unwrap(),
        serde_json::to_string(&ToManager::Ended { unfetched: true }).unwrap(),
        serde_json::to_string(&granted).unwrap(),
        serde_json::to_string(&ToHelper::InputsArrived).unwrap(),
    ];
    insta::assert_snapshot!(texts.join("\n"), @r#"
    {"open":{"slot":"riscv64-00","first":"other","version":1}}
    {"ended":{"unfetched":true}}
    {"granted":{"vm":"riscv64-1","greeted":[1],"fetch_only":false,"limits":{"timeout":null,"max-silent-time":null}}}
    "inputs-arrived"
    "#);
    let from_before = r#"{"open":{"slot":"riscv64-00","first":"other"}}"#;
    let from_before: ToManager = serde_json::from_str(from_before).unwrap();
    assert!(matches!(from_before, ToManager::Open { version: None, .. }));
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order() {
    let (one, other) = UnixStream::pair().unwrap();
    let ((_, writer), (mut reader, _)) = (split(one), split(other));
    let long = "x".repeat(1 << 20);
    let sending = tokio::spawn({
        let long = long.clone();
        async move {
            writer.send(&ToHelper::Waiting("one".into())).await.unwrap();
            writer.send(&ToHelper::Waiting(long)).await.unwrap();
        }
    });
    for expected in ["one".to_owned(), long] {
        match reader.next().await.unwrap() {
            Some(ToHelper::Waiting(text)) => assert!(text == expected),
            other => panic!("{other:?}"),
        }
    }
    sending.await.unwrap();
    assert!(reader.next::<ToHelper>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_descriptor_arrives_with_its_message() {
    let (one, other) = UnixStream::pair().unwrap();
    let ((_, writer), (mut reader, _)) = (split(one), split(other));
    let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let message = ToHelper::InputsArrived;
    writer.send_with(&message, &[far.as_fd()]).await.unwrap();
    drop(far);
    reader.next::<ToHelper>().await.unwrap().unwrap();
    let passed = reader.descriptor().unwrap();
    near.write_all(b"through").unwrap();
    drop(near);
    let mut text = String::new();
    std::os::unix::net::UnixStream::from(passed)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "through");
    assert!(reader.descriptor().is_none());
}

#[tokio::test]
async fn descriptors_that_nobody_wants_end_the_connection() {
    let (one, other) = UnixStream::pair().unwrap();
    let (_, writer) = split(one);
    let charge = Account::unlimited().charge();
    let (mut reader, _) = split_without_descriptors(Arc::new(other), Some(charge));
    let (_near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let message = ToManager::Ended { unfetched: true };
    writer.send(&message).await.unwrap();
    reader.next::<ToManager>().await.unwrap().unwrap();
    writer.send_with(&message, &[far.as_fd()]).await.unwrap();
    let error = reader.next::<ToManager>().await.unwrap_err();
    assert!(error.to_string().contains("sends descriptors"), "{error}");
}

#[tokio::test]
async fn who_makes_the_manager_hold_too_much_has_a_share() {
    const BEGUN: usize = 300 << 10;
    let account = Account::new(1 << 20);
    let mut waiting = Vec::new();
    let mut refused = 0;
    for _ in 0..10 {
        let (mut one, other) = UnixStream::pair().unwrap();
        let charge = Some(account.charge());
        let (mut reader, _) = split_without_descriptors(Arc::new(other), charge);
        let before = account.held();
        let reading = tokio::spawn(async move { reader.next::<ToManager>().await });
        // Fails where nobody reads any more. A line without its end is no message.
        let _ = one.write_all(&[b'x'; 300].repeat(1024)).await;
        let settled = async {
            while !reading.is_finished() && account.held() < before + BEGUN {
                tokio::task::yield_now().await;
            }
        };
        let deadline = Duration::from_secs(60);
        tokio::time::timeout(deadline, settled).await.unwrap();
        if reading.is_finished() {
            reading.await.unwrap().unwrap_err();
            refused += 1;
        } else {
            waiting.push((one, reading));
        }
    }
    assert!(account.held() <= 2 << 20, "{}", account.held());
    assert!(refused > 0 && !waiting.is_empty());
}

#[tokio::test]
async fn a_line_may_be_so_long_and_no_longer() {
    let (one, other) = UnixStream::pair().unwrap();
    let ((_, writer), (mut reader, _)) = (split(one), split(other));
    reader.shorten(1000);
    let sending = tokio::spawn(async move {
        let long = ToHelper::Waiting("x".repeat(1 << 20));
        // Fails when nobody reads any more.
        let _ = writer.send(&long).await;
    });
    reader.next::<ToHelper>().await.unwrap_err();
    drop(reader);
    sending.await.unwrap();
}

#[tokio::test]
async fn what_is_no_message_is_an_error() {
    let (one, other) = UnixStream::pair().unwrap();
    let (mut reader, _) = split(other);
    one.try_write(b"GET / HTTP/1.1\r\n").unwrap();
    reader.next::<ToManager>().await.unwrap_err();
}
