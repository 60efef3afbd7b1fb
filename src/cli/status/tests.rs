//! The status as people see it.

use super::super::builds::tests::build;
use super::*;
use crate::manager::status::{BuildOutcome, example};
use crate::nix::System;
use crate::pool::budget::Shortage;

pub(in super::super) fn pool() -> SystemStatus {
    example::pool(System::Riscv64Linux)
}

#[test]
fn status_says_why_inputs_are_copied() {
    let because = "there is no /nix/store".to_owned();
    let system = SystemStatus {
        inputs: InputsWay::Copied { because },
        ..pool()
    };
    assert_eq!(
        copying(&system).unwrap(),
        "riscv64-linux: inputs: copied, because there is no /nix/store"
    );
    assert_eq!(pool_row(&system)[7], "copied");
    let system = SystemStatus {
        share: Share::None,
        ..system
    };
    assert_eq!(copying(&system), None);
    let of = |shared| inputs(InputsView { asked: 3, shared });
    assert_eq!([0, 2, 3].map(of), ["copied", "2 of 3 shared", "shared"]);
}

#[test]
fn status_says_why_starts_fail() {
    let system = SystemStatus {
        start_failures: 2,
        start_failure: Some("no agent".to_owned()),
        retry_in_s: Some(15),
        ..pool()
    };
    let expected = "riscv64-linux failed 2 times in a row: no agent\nnext start in 15s";
    assert_eq!(failure(&system).unwrap(), expected);
    assert_eq!(pool_row(&system)[1], "failing");
    let degraded = SystemStatus {
        degraded: true,
        ..system
    };
    assert_eq!(pool_row(&degraded)[1], "degraded");
}

fn info() -> Info {
    Info {
        version: "0.1.0".to_owned(),
        pid: 42,
        gateway: "127.0.0.1:31022".parse().unwrap(),
        is_started_on_demand: false,
    }
}

fn vms() -> Vec<VmView> {
    let vm = VmView {
        name: "riscv64-1".to_owned(),
        share: Share::Host,
        vcpus: 2,
        state: VmStage::Ready,
        stage: String::new(),
        age_s: 95,
        boot_ms: Some(4321),
        idle_s: None,
        sessions: 1,
        paused: false,
        pid: Some(77),
        memory_mib: Some(118),
        console_log: "/state/logs/riscv64-1.log".into(),
    };
    let idle = VmView {
        name: "riscv64-2".to_owned(),
        idle_s: Some(61),
        sessions: 0,
        paused: true,
        memory_mib: None,
        ..vm.clone()
    };
    let leased = VmView {
        name: "riscv64-3".to_owned(),
        state: VmStage::Leased,
        idle_s: Some(2),
        ..idle.clone()
    };
    vec![vm, idle, leased]
}

pub(in super::super) fn session(id: u64, vm: Option<&str>, activity: &str) -> SessionView {
    SessionView {
        id,
        slot: format!("riscv64-0{id}"),
        client: "127.0.0.1:5".to_owned(),
        vm: vm.map(str::to_owned),
        ahead: None,
        activity: activity.to_owned(),
        inputs: vm.map(|_| InputsView {
            asked: 3,
            shared: 2,
        }),
        age_s: 30,
    }
}

#[test]
fn status_shows_pools_vms_sessions_and_builds() {
    let for_home = "waiting for riscv64-3, which has what is to be fetched";
    let system = SystemStatus {
        max_vms: 4,
        kept: 2,
        warm: 1,
        vms: vms(),
        sessions: vec![
            session(1, Some("riscv64-1"), "building hello.drv"),
            session(2, None, for_home),
        ],
        held: Some(Hold::Memory(Shortage {
            available_mib: 812,
            needed_mib: 1536,
        })),
        ..pool()
    };
    let because = "riscv64-1 ended: QEMU was killed by signal 9".to_owned();
    let status = Status {
        systems: vec![system],
        builds: vec![
            build(1, "glibc-2.40", Some(BuildOutcome::Failed { because })),
            build(2, "hello", None),
        ],
    };
    insta::assert_snapshot!(text(&info(), &status, 35), @r"
    manager 0.1.0 (pid 42), gateway on 127.0.0.1:31022

    SYSTEM         STATE  VMS     KEPT        BUSY  WAITING  REUSE  INPUTS
    riscv64-linux  open   3 of 4  2 + 1 warm  1     1        never  shared

    riscv64-linux: not enough memory for another VM: 812 MiB available, 1536 MiB needed

    VM         STATE           AGE    BOOT  MEMORY   DOES
    riscv64-1  ready           1m35s  4.3s  118 MiB  1 session
    riscv64-2  ready, paused   1m35s  4.3s  -        idle for 1m01s
    riscv64-3  leased, paused  1m35s  4.3s  -        waits for its outputs to be fetched

    SESSION  SLOT        VM         AGE  INPUTS         DOES
    1        riscv64-01  riscv64-1  30s  2 of 3 shared  building hello.drv
    2        riscv64-02  -          30s  -              waiting for riscv64-3, which has what is to be fetched

    BUILD  DERIVATION      SESSION  VM         TIME   IN       OUT   IS
    1      glibc-2.40.drv  11       riscv64-1  1m05s  4.0 KiB  12 B  failed: riscv64-1 ended: QEMU was killed by signal 9
    2      hello.drv       12       riscv64-1  30s    4.0 KiB  12 B  buildPhase: cc -o hello
    ");
}
