//! `xpool status`.

use anyhow::Result;
use clap::Args;

use super::{Context, builds, watch};
use crate::control::Info;
use crate::manager::status::{InputsView, InputsWay, SessionView, Status, SystemStatus, VmView};
use crate::output::table::{age, render, tenths};
use crate::pool::Mode;
use crate::pool::hold::Hold;
use crate::pool::policy::Share;
use crate::pool::status::VmStage;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it again whenever something changes, until the manager ends
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

pub(super) async fn run(context: &Context, args: &StatusArgs) -> Result<u8> {
    let (client, info) = context.connect().await?;
    if args.watch {
        return watch::run(context, &client, &info).await.map(|()| 0);
    }
    let status = client.status().await?;
    let is_degraded = status.systems.iter().any(|system| system.degraded);
    if args.json {
        let Status { systems, builds } = status;
        let all = serde_json::json!({ "manager": info, "systems": systems, "builds": builds });
        context.printer.json(&all)?;
    } else {
        context.printer.data(&text(&info, &status, now()));
    }
    Ok(u8::from(is_degraded))
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The status for people; `now` is in seconds since the epoch.
pub(super) fn text(info: &Info, status: &Status, now: u64) -> String {
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
    parts.extend(status.systems.iter().filter_map(held));
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
    if !status.builds.is_empty() {
        parts.push(render(builds::HEAD, &builds::rows(&status.builds, now)));
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

/// Why there is no further VM, where something of the machine holds it back.
fn held(system: &SystemStatus) -> Option<String> {
    // The table and the failure say these two.
    let is_told = |held: &Hold| !matches!(held, Hold::MaxVms { .. } | Hold::BackOff);
    let held = system.held.filter(is_told)?;
    Some(format!("{}: {held}", system.system))
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
        (Mode::Open, ..) if system.degraded => "degraded".to_owned(),
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
    let state = vm.state.name();
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
pub(super) mod tests;
