//! `xpool status`.

use anyhow::Result;
use clap::Args;

use super::Context;
use crate::control::Info;
use crate::manager::status::{InputsView, InputsWay, SessionView, Status, SystemStatus, VmView};
use crate::output::table::{age, render, tenths};
use crate::pool::Mode;
use crate::pool::policy::Share;
use crate::pool::status::VmStage;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &Context, args: &StatusArgs) -> Result<()> {
    let (client, info) = context.connect().await?;
    let status = client.status().await?;
    if args.json {
        context
            .printer
            .json(&serde_json::json!({ "manager": info, "systems": status.systems }))
    } else {
        context.printer.data(&text(&info, &status));
        Ok(())
    }
}

fn text(info: &Info, status: &Status) -> String {
    let head = format!(
        "manager {} (pid {}), gateway on {}",
        info.version, info.pid, info.gateway
    );
    let pools: Vec<[String; 8]> = status.systems.iter().map(pool_row).collect();
    let vms: Vec<[String; 6]> = status
        .systems
        .iter()
        .flat_map(|system| &system.vms)
        .map(vm_row)
        .collect();
    let sessions: Vec<[String; 6]> = status
        .systems
        .iter()
        .flat_map(|system| &system.sessions)
        .map(session_row)
        .collect();
    let mut parts = vec![
        head,
        render(
            [
                "SYSTEM", "STATE", "VMS", "KEPT", "BUSY", "WAITING", "REUSE", "INPUTS",
            ],
            &pools,
        ),
    ];
    parts.extend(status.systems.iter().filter_map(failure));
    parts.extend(status.systems.iter().filter_map(shortage));
    parts.extend(status.systems.iter().filter_map(copying));
    if !vms.is_empty() {
        parts.push(render(
            ["VM", "STATE", "AGE", "BOOT", "MEMORY", "DOES"],
            &vms,
        ));
    }
    if !sessions.is_empty() {
        parts.push(render(
            ["SESSION", "SLOT", "VM", "AGE", "INPUTS", "DOES"],
            &sessions,
        ));
    }
    parts.join("\n\n")
}

/// Why a pool has no VM, where starts fail.
fn failure(system: &SystemStatus) -> Option<String> {
    let reason = system.start_failure.as_ref()?;
    let times = match system.start_failures {
        1 => "once".to_owned(),
        n => format!("{n} times in a row"),
    };
    let next = system.retry_in_s.map_or(String::new(), |seconds| {
        format!("\nnext start in {}", age(seconds))
    });
    Some(format!("{} failed {times}: {reason}{next}", system.system))
}

/// Why there is no further VM, where the host's memory holds it back.
fn shortage(system: &SystemStatus) -> Option<String> {
    let shortage = system.shortage.as_ref()?;
    Some(format!("{}: {shortage}", system.system))
}

/// Why inputs are copied, where they should not be.
fn copying(system: &SystemStatus) -> Option<String> {
    match (system.share, &system.inputs) {
        (Share::Host, InputsWay::Copied { because }) => Some(format!(
            "{}: inputs: copied, because {because}",
            system.system
        )),
        _ => None,
    }
}

fn pool_row(system: &SystemStatus) -> [String; 8] {
    let waiting = system
        .sessions
        .iter()
        .filter(|session| session.vm.is_none())
        .count();
    let busy = system.vms.iter().filter(|vm| vm.sessions > 0).count();
    let state = match (system.mode, system.vms.is_empty(), &system.start_failure) {
        (Mode::Draining, true, _) => "down".to_owned(),
        (Mode::Draining, false, _) => "draining".to_owned(),
        (Mode::Open, _, Some(_)) => "failing".to_owned(),
        (Mode::Open, _, None) => "open".to_owned(),
    };
    let vms = format!("{} of {}", system.vms.len(), system.max_vms);
    let inputs = match system.inputs {
        InputsWay::Shared => "shared",
        InputsWay::Copied { .. } => "copied",
    };
    let kept = match system.warm {
        0 => system.kept.to_string(),
        warm => format!("{} + {warm} warm", system.kept),
    };
    [
        system.system.to_string(),
        state,
        vms,
        kept,
        busy.to_string(),
        waiting.to_string(),
        system.reuse.as_str().to_owned(),
        inputs.to_owned(),
    ]
}

fn vm_row(vm: &VmView) -> [String; 6] {
    let state = match vm.state {
        VmStage::Booting => "booting",
        VmStage::Ready => "ready",
        VmStage::Leased => "leased",
        VmStage::Pinned => "pinned",
        VmStage::Draining => "draining",
        VmStage::Stopping => "stopping",
    };
    let state = if vm.paused {
        format!("{state}, paused")
    } else {
        state.to_owned()
    };
    let does = match (vm.sessions, vm.idle_s) {
        _ if vm.state == VmStage::Leased => "waits for its outputs to be fetched".to_owned(),
        (0, Some(idle)) => format!("idle for {}", age(idle)),
        (0, None) => vm.stage.clone(),
        (1, _) => "1 session".to_owned(),
        (n, _) => format!("{n} sessions"),
    };
    let boot = vm.boot_ms.map_or(String::new(), tenths);
    let memory = vm
        .memory_mib
        .map_or(String::new(), |mib| format!("{mib} MiB"));
    let name = vm.name.clone();
    [name, state, age(vm.age_s), boot, memory, does]
}

fn session_row(session: &SessionView) -> [String; 6] {
    let vm = session.vm.clone().unwrap_or_default();
    [
        session.id.to_string(),
        session.slot.clone(),
        vm,
        age(session.age_s),
        session.inputs.map_or(String::new(), inputs),
        session.activity.clone(),
    ]
}

fn inputs(InputsView { asked, shared }: InputsView) -> String {
    match shared {
        0 => "copied".to_owned(),
        shared if shared == asked => "shared".to_owned(),
        shared => format!("{shared} of {asked} shared"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::System;
    use crate::pool::budget::Shortage;
    use crate::pool::policy::Reuse;

    fn pool() -> SystemStatus {
        SystemStatus {
            system: System::Riscv64Linux,
            mode: Mode::Open,
            max_vms: 1,
            up_limit: 1,
            kept: 0,
            reuse: Reuse::Never,
            share: Share::Host,
            warm: 0,
            inputs: InputsWay::Shared,
            vms: Vec::new(),
            sessions: Vec::new(),
            start_failures: 0,
            start_failure: None,
            retry_in_s: None,
            shortage: None,
        }
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
    }

    #[test]
    fn status_shows_pools_vms_and_sessions() {
        let info = Info {
            version: "0.1.0".to_owned(),
            pid: 42,
            gateway: "127.0.0.1:31022".parse().unwrap(),
        };
        let vm = VmView {
            name: "riscv64-1".to_owned(),
            share: Share::Host,
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
        let session = |id, vm: Option<&str>, activity: &str| SessionView {
            id,
            slot: format!("riscv64-0{id}"),
            client: "127.0.0.1:5".to_owned(),
            vm: vm.map(str::to_owned),
            activity: activity.to_owned(),
            inputs: vm.map(|_| InputsView {
                asked: 3,
                shared: 2,
            }),
            age_s: 30,
        };
        let system = SystemStatus {
            sessions: vec![
                session(1, Some("riscv64-1"), "building hello.drv"),
                session(
                    2,
                    None,
                    "waiting for riscv64-3, which has what is to be fetched",
                ),
            ],
            ..pool()
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
        let system = SystemStatus {
            max_vms: 4,
            kept: 2,
            warm: 1,
            vms: vec![vm, idle, leased],
            shortage: Some(Shortage {
                available_mib: 812,
                needed_mib: 1536,
            }),
            ..system
        };
        insta::assert_snapshot!(text(&info, &Status { systems: vec![system] }), @r"
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
        ");
    }
}
