//! Leftovers of a manager that was killed, with other programs in the place of QEMU.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::*;

/// Something that runs until it is killed.
fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000").stdout(Stdio::null());
    command
}

/// A VM's private folder below `vms`, and the process in QEMU's place.
fn vm(vms: &Path, name: &str) -> (PathBuf, Child) {
    let folder = vms.join(name);
    fs::create_dir(&folder).unwrap();
    let input = alive::input(&folder).unwrap();
    let child = sleeper().stdin(input).spawn().unwrap();
    (folder, child)
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

fn end_of(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_vm_is_found_by_what_it_holds_whatever_its_program_is_called() {
    let vms = tempfile::tempdir().unwrap();
    let (folder, mut child) = vm(vms.path(), "x");
    assert!(alive::is_alive(&folder).unwrap());
    let left = clean(vms.path()).await.unwrap();
    assert_eq!((left.ended, left.held.len()), (1, 0));
    child.wait().unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn who_only_looks_like_a_vm_is_left_alone() {
    let vms = tempfile::tempdir().unwrap();
    let folder = vms.path().join("x");
    fs::create_dir(&folder).unwrap();
    let mut decoy = Command::new("bash");
    let script = "exec -a qemu-system-x tail -f /dev/null \"$1\"";
    let file = folder.join("disk");
    fs::write(&file, "").unwrap();
    decoy
        .args(["-c", script, "bash"])
        .arg(&file)
        .arg0("qemu-system-x");
    let mut decoy = decoy.stdin(Stdio::null()).spawn().unwrap();
    let left = clean(vms.path()).await.unwrap();
    assert_eq!(left.ended, 0);
    assert!(is_running(&mut decoy));
    end_of(decoy);
}

#[tokio::test]
async fn a_vm_whose_folder_was_removed_is_ended() {
    let vms = tempfile::tempdir().unwrap();
    let (folder, mut child) = vm(vms.path(), "x");
    fs::remove_dir_all(&folder).unwrap();
    let (other, other_child) = vm(vms.path(), "y");
    let hold = hop::hold(&other, 0).unwrap();
    let left = clean(vms.path()).await.unwrap();
    assert_eq!((left.ended, left.held.len()), (1, 1));
    child.wait().unwrap();
    drop(hold);
    end_of(other_child);
}

#[test]
fn nothing_can_be_written_by_a_hold() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().unwrap();
    let mut hold = hop::hold(folder.path(), 0).unwrap();
    hold.write_all(b"x").unwrap_err();
    assert!(hop::is_held(folder.path()).unwrap());
}

#[test]
fn who_keeps_a_hold_keeps_nobody_from_the_slot() {
    use rustix::fs::{FlockOperation, flock};
    let folder = tempfile::tempdir().unwrap();
    let kept = hop::hold(folder.path(), 0).unwrap();
    flock(&kept, FlockOperation::NonBlockingLockExclusive).unwrap();
    let next = hop::hold(folder.path(), 0).unwrap();
    assert!(hop::is_held(folder.path()).unwrap());
    drop(next);
    assert!(!hop::is_held(folder.path()).unwrap());
}

#[tokio::test]
async fn a_vm_of_before_there_were_locks_stays_while_it_is_held() {
    let vms = tempfile::tempdir().unwrap();
    let folder = vms.path().join("x");
    fs::create_dir(&folder).unwrap();
    let _users = hop::hold(&folder, 0).unwrap();
    let left = clean(vms.path()).await.unwrap();
    assert_eq!((left.ended, left.held.len()), (0, 1));
    assert!(folder.exists());
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_not_held_for_ever() {
    let vms = tempfile::tempdir().unwrap();
    let (_, mut child) = vm(vms.path(), "x");
    let _users = hop::hold(&vms.path().join("x"), 0).unwrap();
    let held = clean(vms.path()).await.unwrap().held.pop().unwrap();
    held.unused().await.unwrap();
    held.end().await.unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_vm_that_is_held_ends_when_it_is_not() {
    let vms = tempfile::tempdir().unwrap();
    let (folder, mut child) = vm(vms.path(), "x");
    let users = hop::hold(&folder, 0).unwrap();
    let mut left = clean(vms.path()).await.unwrap();
    let held = left.held.pop().unwrap();
    assert!(is_running(&mut child));
    drop(users);
    held.unused().await.unwrap();
    held.end().await.unwrap();
    child.wait().unwrap();
    assert!(!folder.exists());
}
