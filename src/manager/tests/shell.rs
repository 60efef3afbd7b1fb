//! Shells in VMs: beside sessions, and in nobody's way.

use super::*;
use crate::manager::rest::REST_AFTER;
use crate::manager::shell::{AfterShell, NoShell, OpenShell, ShellEnd};
use crate::vm::ShellProgram;

async fn open(fixture: &Fixture, vm: &str, after: AfterShell) -> Result<OpenShell, NoShell> {
    let program = ShellProgram::default();
    fixture.handle.open_shell(vm, program, after).await
}

async fn until_ready(fixture: &Fixture) {
    fixture
        .until(|status| status.systems[0].vms.iter().any(|vm| vm.boot_ms.is_some()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_not_there_or_not_ready_gives_no_shell() {
    let fixture = Fixture::new(1);
    let why = open(&fixture, "riscv64-7", AfterShell::VmStays).await;
    let why = why.unwrap_err().to_string();
    assert_eq!(why, "there is no such VM, and none is running");
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    fixture
        .until(|status| {
            status.systems[0]
                .vms
                .iter()
                .any(|vm| vm.stage.contains("agent"))
        })
        .await;
    let why = open(&fixture, "riscv64-1", AfterShell::VmStays).await;
    let why = why.unwrap_err().to_string();
    assert_eq!(why, "it is not ready yet: waiting for the guest agent");
    until_ready(&fixture).await;
    let why = open(&fixture, "riscv64-7", AfterShell::VmStays).await;
    let why = why.unwrap_err().to_string();
    assert_eq!(why, "there is no such VM; running: riscv64-1");
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_is_resumed_for_a_shell_and_rests_after_it() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    let is_paused = |status: &Status| status.systems[0].vms.first().is_some_and(|vm| vm.paused);
    fixture.until(is_paused).await;
    let shell = open(&fixture, "riscv64-1", AfterShell::VmStays)
        .await
        .unwrap();
    tokio::time::sleep(REST_AFTER * 10).await;
    assert!(!is_paused(&fixture.handle.status().await.unwrap()));
    drop(shell.streams);
    assert_eq!(shell.ended.await, Ok(ShellEnd::Exited(3)));
    fixture.until(is_paused).await;
    let expected = [
        "pause",
        "paused",
        "resume",
        "resumed",
        "open shell",
        "pause",
        "paused",
    ];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_builds_end_does_not_wait_for_a_shell_which_is_told() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    let (vm, hop) = granted(&mut ticket).await;
    let shell = open(&fixture, &vm, AfterShell::VmStays).await.unwrap();
    drop((ticket, hop));
    let end = ShellEnd::VmGone("has had its build and is gone".to_owned());
    assert_eq!(shell.ended.await, Ok(end));
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_shell_is_told_when_its_vm_dies_or_is_stopped() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_ready(&fixture).await;
    let shell = open(&fixture, "riscv64-1", AfterShell::VmStays)
        .await
        .unwrap();
    fixture.backend.break_vm(0);
    let end = ShellEnd::VmGone("has ended: QEMU was killed by signal 9".to_owned());
    assert_eq!(shell.ended.await, Ok(end));
    let is_second = |status: &Status| {
        let vms = &status.systems[0].vms;
        vms.iter()
            .any(|vm| vm.name == "riscv64-2" && vm.boot_ms.is_some())
    };
    fixture.until(is_second).await;
    let shell = open(&fixture, "riscv64-2", AfterShell::VmStays)
        .await
        .unwrap();
    fixture.handle.down(vec![SYSTEM], Down::Now).await.unwrap();
    let end = ShellEnd::VmGone("was stopped".to_owned());
    assert_eq!(shell.ended.await, Ok(end));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_was_there_for_a_shell_ends_with_it() {
    let fixture = Fixture::with(policy(Reuse::Always, 1), "/nonexistent".into());
    let mut ticket = fixture.open().await;
    let (vm, _hop) = granted(&mut ticket).await;
    let shell = open(&fixture, &vm, AfterShell::VmEnds).await.unwrap();
    drop(shell.streams);
    assert_eq!(shell.ended.await, Ok(ShellEnd::Exited(3)));
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
    assert_eq!(fixture.backend.calls(0), ["open hop", "open shell", "kill"]);
}
