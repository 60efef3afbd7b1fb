//! The host's store in a guest.

use std::fs;

use xpool::nix::registrations::Registrations;
use xpool::vm::{RunningVm as _, VmSpec};

use super::{build, copy, for_each_image};
use crate::common::vm::{boot_of, handshake, in_guest, soon};

/// A name that a store path has, of nothing that any guest has.
const NAME: &str = "00000000000000000000000000000000-shared";

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_the_hosts_store_are_valid_in_a_copy_once_they_are_registered() {
    for_each_image(async |image, dir| {
        let store = dir.join("store");
        fs::create_dir(&store).unwrap();
        fs::write(store.join(NAME), "of the host").unwrap();
        let spec = VmSpec {
            store: Some(store),
            ..copy(image, "store", dir)
        };
        let vm = boot_of(spec).await;
        // Path, SHA-256 and size of its archive, nothing that made it, no references.
        let digest = "0".repeat(64);
        let registration = format!("/nix/store/{NAME}\n{digest}\n136\n\n0\n");
        let address = "fixed:sha256:0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk";
        let registrations = Registrations {
            paths: registration.into(),
            addresses: format!("/nix/store/{NAME} {address}\n").into(),
        };
        vm.register(&registrations).await.unwrap();
        let known = format!(
            "nix --extra-experimental-features nix-command path-info --json /nix/store/{NAME}"
        );
        let known = in_guest(&vm, &known).await;
        assert!(known.contains(address), "{known}");
        let valid =
            format!("nix-store --check-validity /nix/store/{NAME} && cat /nix/store/{NAME}");
        assert_eq!(in_guest(&vm, &valid).await, "of the host");
        // The daemon, in a mount namespace of its own, builds with it.
        let script = format!(
            "read -r text < ${{builtins.storePath /nix/store/{NAME}}} || echo $text built > $out"
        );
        let built = in_guest(&vm, &build(&script)).await;
        assert_eq!(built, "of the host built\n");
        handshake(&mut vm.open_hop(1).await.unwrap()).await;
        soon("the slot", vm.slot_released(1)).await.unwrap();
    })
    .await;
}
