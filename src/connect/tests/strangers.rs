//! Helpers that are not of this program: of another version, or written to do harm.

use super::*;

/// A helper opens a session; what it is told.
async fn told(folder: &TempDir, open: ToManager) -> ToHelper {
    let stream = UnixStream::connect(folder.path().join("sock"))
        .await
        .unwrap();
    let (mut reader, writer) = wire::split(stream);
    writer.send(&open).await.unwrap();
    within(reader.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_helper_of_another_version_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Server::start(&folder, owner());
    let open = |version| ToManager::Open {
        slot: "riscv64-99".to_owned(),
        first: First::Other,
        version,
    };
    let rejected = async |version| match told(&folder, open(version)).await {
        ToHelper::Rejected(why) => why,
        other => panic!("{other:?}"),
    };
    insta::assert_snapshot!(rejected(Some(wire::VERSION - 1)).await, @"the xpool that Nix runs is older than its manager: `xpool machines --install` has Nix run the new one, as root where root did it before (they speak versions 0 and 1 of the local transport)");
    insta::assert_snapshot!(rejected(Some(wire::VERSION + 1)).await, @"the xpool that Nix runs is newer than its manager: have the manager started anew, with `xpool down` and `xpool up` or by `systemctl restart xpool` (they speak versions 2 and 1 of the local transport)");
    // One that says nothing of versions gets on, to a slot that is not there.
    let no_slot = "this manager has no slot `riscv64-99`";
    for version in [None, Some(wire::VERSION)] {
        assert_eq!(rejected(version).await, no_slot);
    }
}

/// The descriptors that this process has.
fn n_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn a_helper_that_sends_descriptors_is_cut_and_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder, owner());
    let before = n_descriptors();
    for _ in 0..20 {
        let stream = UnixStream::connect(folder.path().join("sock"))
            .await
            .unwrap();
        let (mut reader, writer) = wire::split(stream);
        let open = ToManager::Open {
            slot: SLOT.to_owned(),
            first: First::Other,
            version: Some(wire::VERSION),
        };
        writer.send(&open).await.unwrap();
        let session = server.session().await;
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let report = ToManager::Report(SessionReport::NotUnderstood);
        // Fails once the manager has hung up.
        while writer
            .send_with(&report, &[near.as_fd(), far.as_fd(), far.as_fd()])
            .await
            .is_ok()
        {}
        while let Ok(Some(_)) = within(reader.next::<ToHelper>()).await {}
        drop(session);
    }
    // Connections are closed by threads of their own.
    within(async {
        while n_descriptors() > before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
