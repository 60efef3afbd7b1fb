//! How machines end, with shells in the place of QEMU.

use std::ffi::OsString;
use std::path::Path;

use super::*;

fn machine(script: &str, fate: Option<Fate>) -> (Machine, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let arguments = ["-c", script].map(OsString::from);
    let process = Process::spawn(
        Path::new("/bin/sh"),
        &arguments,
        dir.path(),
        &dir.path().join("log"),
    )
    .unwrap();
    let (_, fate) = watch::channel(fate);
    (Machine::new(process, dir, fate), path)
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_has_died() {
    let (machine, dir) = machine("echo no such CPU >&2; exit 1", None);
    let died = VmExit::Died("QEMU exited with status 1: no such CPU".to_owned());
    assert_eq!(machine.ended().await.exit, died);
    assert!(!dir.exists());
}

#[tokio::test]
async fn what_the_monitor_told_explains_the_end() {
    let (machine, _dir) = machine("exit 0", Some(Fate::Panicked));
    let died = VmExit::Died("the guest's kernel panicked".to_owned());
    assert_eq!(machine.ended().await.exit, died);
}

#[tokio::test]
async fn a_guest_that_is_lost_ends_qemu_with_the_cause() {
    let full = Fate::DiskFull("/vms".into());
    let (machine, dir) = machine("sleep 1000", Some(full.clone()));
    assert_eq!(machine.ended().await.exit, VmExit::Died(full.to_string()));
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_qemu_without_a_monitor_is_ended_unless_it_ends_by_itself() {
    let lost = Fate::MonitorLost("QEMU has closed its monitor".to_owned());
    let (strayed, _dir) = machine("sleep 1000", Some(lost.clone()));
    let (exiting, _dir) = machine("sleep 0.1; exit 1", Some(lost.clone()));
    let died = VmExit::Died("QEMU exited with status 1".to_owned());
    assert_eq!(exiting.ended().await.exit, died);
    assert_eq!(strayed.ended().await.exit, VmExit::Died(lost.to_string()));
}

#[tokio::test]
async fn a_kill_overrules_a_stop_and_both_count_as_asked() {
    let (machine, dir) = machine("sleep 1000", None);
    assert!(machine.wish(Wish::Stop));
    assert!(!machine.wish(Wish::Stop));
    assert!(machine.wish(Wish::Kill));
    assert!(!machine.wish(Wish::Stop));
    assert_eq!(machine.ended().await.exit, VmExit::Stopped);
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_dropped_machine_is_killed_and_its_folder_removed() {
    let (machine, dir) = machine("sleep 1000", None);
    let end = machine.end_watch();
    drop(machine);
    assert_eq!(end.ended().await.exit, VmExit::Stopped);
    assert!(!dir.exists());
}

#[tokio::test]
async fn an_end_is_told_soon_although_somebody_holds_its_pipes() {
    let (machine, _dir) = machine("setsid sleep 5 & exit 1", None);
    let end = within("the end", Duration::from_secs(2), machine.ended()).await;
    let died = VmExit::Died("QEMU exited with status 1".to_owned());
    assert_eq!(end.unwrap().exit, died);
}
