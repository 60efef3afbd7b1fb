//! This machine's store inside a guest, as the guest's root sees it. `scripts/test` makes the images and runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use xpool::nix::System;
use xpool::nix::registrations::Registrations;
use xpool::vm::{Qemu, QemuVm, RunningVm as _, VmSpec};

use crate::common::inputs::{damage, listing};
use crate::common::nix::stderr;
use crate::common::vm::{boot_with, handshake, in_guest, soon, spec, templates};

const SYSTEM: System = System::Riscv64Linux;

/// A store of this machine's in a folder, whose paths nobody has told a guest of.
struct HostStore {
    dir: TempDir,
}

impl HostStore {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let store = Self { dir };
        store.add("first", "this makes the folder");
        store
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn folder(&self) -> PathBuf {
        self.root().join("nix/store")
    }

    #[track_caller]
    fn nix_store(&self, args: &[&str]) -> String {
        let mut command = Command::new("nix-store");
        command.arg("--store").arg(self.root()).args(args);
        let output = command.env_remove("NIX_REMOTE").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Adds a file; its path.
    fn add(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        fs::write(&file, text).unwrap();
        self.add_file(&file)
    }

    fn add_file(&self, file: &Path) -> String {
        let path = self.nix_store(&["--add", file.to_str().unwrap()]);
        path.trim().to_owned()
    }

    /// Where a path is on this machine.
    fn on_host(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// What registers paths in a guest.
    fn registrations(&self, paths: &[&str]) -> Registrations {
        Registrations {
            paths: self.nix_store(&[&["--dump-db"], paths].concat()).into(),
            ..Registrations::default()
        }
    }

    fn spec(&self) -> VmSpec {
        VmSpec {
            store: Some(self.folder()),
            ..spec(SYSTEM, self.dir.path())
        }
    }

    /// A copy of a saved guest, as most VMs are.
    async fn clone_vm(&self) -> QemuVm {
        let templates = Some(templates());
        let spec = VmSpec {
            templates,
            ..self.spec()
        };
        boot_with(&Qemu::default(), spec).await
    }

    /// A VM that serves its second session, and whose first one had no inputs that were registered.
    async fn used_vm(&self) -> QemuVm {
        let vm = self.clone_vm().await;
        handshake(&mut vm.open_hop(0).await.unwrap()).await;
        soon("the slot", vm.slot_released(0)).await.unwrap();
        handshake(&mut vm.open_hop(0).await.unwrap()).await;
        vm
    }

    async fn register(&self, vm: &QemuVm, paths: &[&str]) {
        vm.register(&self.registrations(paths)).await.unwrap();
    }
}

impl Drop for HostStore {
    fn drop(&mut self) {
        // What is in a store is read-only, and only root could remove it.
        let _ = Command::new("chmod")
            .args(["-R", "u+w"])
            .arg(self.dir.path())
            .output();
    }
}

/// What a guest's Nix says of a path: `valid`, or `intact` if it is also what was registered; or nothing good.
async fn verdict(vm: &QemuVm, path: &str) -> String {
    let script = format!(
        "unset NIX_REMOTE; if nix-store --verify-path {path} 2>&1; then echo intact
        elif nix-store --check-validity {path} 2>&1; then echo valid; else echo invalid; fi"
    );
    let said = in_guest(vm, &script).await;
    said.lines().last().unwrap().to_owned()
}

async fn text(vm: &QemuVm, path: &str) -> String {
    in_guest(vm, &format!("cat {path} 2>&1; true")).await
}

async fn end(vm: QemuVm) {
    vm.kill();
    soon("the VM's end", vm.ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_finds_out_that_a_path_is_damaged_on_this_machine() {
    let store = HostStore::new();
    let good = store.add("good", "a good one");
    let damaged = store.add("damaged", "a good one, too");
    damage(&store.on_host(&damaged), "a good one, two");
    let vm = store.clone_vm().await;
    store.register(&vm, &[&good, &damaged]).await;
    assert_eq!(text(&vm, &damaged).await, "a good one, two");
    assert_eq!(text(&vm, &good).await, "a good one");
    assert_eq!(verdict(&vm, &damaged).await, "valid");
    assert_eq!(verdict(&vm, &good).await, "intact");
    end(vm).await;
}

/// Looks for a path in a guest before this machine has it, and then registers it.
async fn looked_for_too_early(store: &HostStore, vm: &QemuVm, name: &str) {
    let path = store.add(name, "it is there now");
    let registrations = store.registrations(&[&path]);
    store.nix_store(&["--delete", &path]);
    let look = format!("cat {path} 2>&1; ls /nix/store | grep {name}; true");
    let looked = in_guest(vm, &look).await;
    assert!(looked.ends_with("No such file or directory\n"), "{looked}");
    assert_eq!(store.add(name, "it is there now"), path);
    vm.register(&registrations).await.unwrap();
    assert_eq!(text(vm, &path).await, "it is there now");
    assert_eq!(verdict(vm, &path).await, "intact");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_a_guest_looked_for_in_vain_is_there_with_its_first_inputs() {
    let store = HostStore::new();
    let vm = store.used_vm().await;
    looked_for_too_early(&store, &vm, "early").await;
    end(vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_a_guest_looked_for_in_vain_is_there_with_later_inputs() {
    let store = HostStore::new();
    let vm = store.used_vm().await;
    let first = store.add("registered", "the first");
    store.register(&vm, &[&first]).await;
    looked_for_too_early(&store, &vm, "early").await;
    looked_for_too_early(&store, &vm, "earlier").await;
    end(vm).await;
}

/// A path that the guest has itself, with a text of its own, and one that it has not; on this machine both are others.
async fn own_and_other(store: &HostStore, vm: &QemuVm, name: &str) {
    let own = store.add(&format!("own-{name}"), "this machine's");
    let other = store.add(&format!("other-{name}"), "another one");
    in_guest(vm, &format!("echo the guest\\'s > {own}")).await;
    store.register(vm, &[&own, &other]).await;
    assert_eq!(text(vm, &own).await, "the guest's\n");
    assert_eq!(verdict(vm, &own).await, "invalid");
    assert_eq!(verdict(vm, &other).await, "intact");
    let here = fs::read_to_string(store.on_host(&own)).unwrap();
    assert_eq!(here, "this machine's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_has_itself_is_not_replaced_by_its_first_inputs() {
    let store = HostStore::new();
    let vm = store.used_vm().await;
    own_and_other(&store, &vm, "first").await;
    end(vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_has_itself_is_not_replaced_by_later_inputs() {
    let store = HostStore::new();
    let vm = store.used_vm().await;
    let first = store.add("registered", "the first");
    store.register(&vm, &[&first]).await;
    own_and_other(&store, &vm, "later").await;
    own_and_other(&store, &vm, "still-later").await;
    end(vm).await;
}

/// What a guest may be sent that is no registration.
fn nonsense(good: &[u8]) -> Vec<Vec<u8>> {
    let text = str::from_utf8(good).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    vec![
        b"nonsense\n".to_vec(),
        format!("{}\n{}\n", lines[0], lines[1]).into(),
        // A whole one, and the beginning of another: none of the two is taken.
        format!("{text}{}\n{}\n", lines[0], lines[1]).into(),
        text.replace(lines[2], "many").into(),
        format!("/etc/passwd\n{}\n1\n\n0\n", lines[1]).into(),
        b"\0\xff\n\0".to_vec(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_refuses_what_is_no_registration_and_takes_the_next_one() {
    let store = HostStore::new();
    // Not a copy: a guest that boots starts its registrar itself.
    let vm = boot_with(&Qemu::default(), store.spec()).await;
    let unused = store.add("unused", "what nonsense is about");
    let nonsense = nonsense(&store.registrations(&[&unused]).paths);
    let mut taken = Vec::new();
    for (number, bad) in nonsense.iter().enumerate() {
        let registrations = Registrations {
            paths: bad.clone(),
            ..Registrations::default()
        };
        let refused = vm.register(&registrations).await;
        let error = format!("{:#}", refused.expect_err(&String::from_utf8_lossy(bad)));
        assert!(
            error.contains("did not register inputs: failed: error: "),
            "{error}"
        );
        let good = store.add(&format!("good-{number}"), "a good one");
        store.register(&vm, &[&good]).await;
        taken.push(good);
    }
    assert_eq!(verdict(&vm, &unused).await, "invalid");
    for good in taken {
        assert_eq!(verdict(&vm, &good).await, "intact");
    }
    end(vm).await;
}

/// Tries all ways to change what is in a folder, and tells which of them worked.
fn changes(folder: &str, file: &str) -> String {
    format!(
        r#"cd {folder} && ls {file} > /dev/null && exec 2> /dev/null
        does() {{ "$@" && echo "did $*"; }}
        does sh -c "echo changed > {file}"
        does sh -c "echo changed >> {file}"
        does dd if=/dev/zero of={file} conv=notrunc count=1
        does truncate -s 0 {file}
        does chmod 777 {file}
        does chown 1:1 {file}
        does touch {file}
        does sh -c "echo new > new"
        does mkdir new-folder
        does mknod new-pipe p
        does ln -s {file} new-symlink
        does ln {file} new-link
        does mv {file} moved
        does rm -f {file}
        does chmod 777 .
        sync; true"#
    )
}

/// How many ways that are.
const WAYS: usize = 15;

#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_a_guest_can_change_nothing_in_this_machines_store() {
    let store = HostStore::new();
    let path = store.add("path", "what is to stay");
    let removed = store.add("removed", "what the guest removes for itself");
    let vm = store.clone_vm().await;
    let before = listing(&store.folder());
    store.register(&vm, &[&path, &removed]).await;
    let name = path.strip_prefix("/nix/store/").unwrap();

    let own = "mkdir /run/own && echo text > /run/own/file\n";
    let own = in_guest(&vm, &(own.to_owned() + &changes("/run/own", "file"))).await;
    assert_eq!(own.lines().count(), WAYS, "{own}");
    let shared = "/run/xpool/shared/store";
    assert_eq!(in_guest(&vm, &changes(shared, name)).await, "");
    // That it is mounted to be only read is the guest's own doing, and its root can undo that.
    let remount = format!("mount -o remount,rw {shared} && grep -c ' {shared} 9p rw' /proc/mounts");
    assert_eq!(in_guest(&vm, &remount).await, "1\n");
    assert_eq!(in_guest(&vm, &changes(shared, name)).await, "");

    // Through the overlay, what is written and removed is the guest's own.
    let own = format!("rm {removed} && ! ls {removed} 2>&1 && echo changed > {path} && cat {path}");
    assert!(in_guest(&vm, &own).await.ends_with("\nchanged\n"));

    let again = "mount -t 9p -o trans=virtio,version=9p2000.L,rw xpool-store /mnt/again";
    in_guest(&vm, "mkdir -p /mnt/again").await;
    let busy = in_guest(&vm, &format!("{again} 2>&1 || echo refused")).await;
    assert!(busy.ends_with("refused\n"), "{busy}");
    in_guest(
        &vm,
        &format!("umount -l /nix/store && umount {shared} && {again}"),
    )
    .await;
    assert_eq!(in_guest(&vm, &changes("/mnt/again", name)).await, "");
    let why = in_guest(&vm, "touch /mnt/again/new 2>&1 || true").await;
    assert!(why.contains("Read-only file system"), "{why}");
    assert_eq!(listing(&store.folder()), before);
    end(vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_sees_no_store_has_no_device_to_see_one_by() {
    let tags = "cat /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag /sys/bus/virtio/devices/*/mount_tag 2>/dev/null
        ls /dev/virtio-ports; true";
    let store = HostStore::new();
    for shares in [true, false] {
        let spec = VmSpec {
            store: shares.then(|| store.folder()),
            templates: Some(templates()),
            ..store.spec()
        };
        let vm = boot_with(&Qemu::default(), spec).await;
        let seen = in_guest(&vm, tags).await;
        assert_eq!(seen.contains("xpool-store"), shares, "{seen}");
        assert_eq!(seen.contains("xpool.store"), shares, "{seen}");
        end(vm).await;
    }
}
