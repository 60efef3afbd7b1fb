//! Who gets a VM that sees this machine's store.

use super::*;

impl Fixture {
    /// A session whose key may see this much.
    async fn open_sharing(&self, share: Share) -> SessionTicket {
        let request = SessionRequest {
            share,
            ..request(0, false)
        };
        self.handle.desk().open(request).await.unwrap()
    }

    fn share_of(&self, vm: &str) -> Share {
        self.shares.lock().unwrap()[vm]
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_key_without_the_store_gets_a_vm_without_it() {
    let fixture = Fixture::new(2);
    let mut blind = fixture.open_sharing(Share::None).await;
    let (name, _hop) = granted(&mut blind).await;
    assert_eq!(fixture.share_of(&name), Share::None);
    let mut seeing = fixture.open_sharing(Share::Host).await;
    let (other, _hop) = granted(&mut seeing).await;
    assert_eq!(fixture.share_of(&other), Share::Host);
    let status = fixture.handle.status().await.unwrap();
    let system = &status.systems[0];
    let shown: Vec<Share> = system.vms.iter().map(|vm| vm.share).collect();
    assert_eq!(
        (system.share, shown),
        (Share::Host, vec![Share::None, Share::Host])
    );
}

#[tokio::test(start_paused = true)]
async fn what_up_brings_sees_what_the_pool_shows_and_makes_room_for_who_may_not() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    fixture
        .until(|status| {
            let vm = status.systems[0].vms.first();
            vm.is_some_and(|vm| vm.state == VmStage::Ready)
        })
        .await;
    assert_eq!(fixture.share_of("riscv64-1"), Share::Host);
    let mut blind = fixture.open_sharing(Share::None).await;
    assert_eq!(granted(&mut blind).await.0, "riscv64-2");
    assert_eq!(fixture.share_of("riscv64-2"), Share::None);
    drop(blind);
    fixture
        .until(|status| {
            status.systems[0]
                .vms
                .iter()
                .any(|vm| vm.name == "riscv64-3" && vm.state == VmStage::Ready)
        })
        .await;
    assert_eq!(fixture.share_of("riscv64-3"), Share::Host);
}

#[tokio::test(start_paused = true)]
async fn no_key_sees_more_than_the_pool_shows() {
    let nothing = Policy {
        share: Share::None,
        warm: 1,
        ..policy(Reuse::Never, 2)
    };
    let fixture = Fixture::with(nothing, "/nonexistent".into());
    let mut ticket = fixture.open_sharing(Share::Host).await;
    let (name, _hop) = granted(&mut ticket).await;
    assert_eq!(fixture.share_of(&name), Share::None);
    let shares = fixture.shares.lock().unwrap().clone();
    assert!(
        shares.values().all(|share| *share == Share::None),
        "{shares:?}"
    );
}
