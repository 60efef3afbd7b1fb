//! `xpool up`.

use std::num::NonZeroU32;

use anyhow::{Result, bail};
use clap::Args;

use super::{Context, image, parse_system, start};
use crate::config::Config;
use crate::control::Up;
use crate::control::client::Client;
use crate::image::store::ImageError;
use crate::manager::status::{Status, SystemStatus};
use crate::nix::System;
use crate::output::progress::Progress;
use crate::pool::status::VmStage;
use crate::vm::host;

#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// riscv64 or aarch64
    #[arg(value_parser = parse_system)]
    system: System,
    /// How many VMs to keep running until `xpool down`
    #[arg(long, default_value_t = NonZeroU32::MIN, value_name = "N")]
    count: NonZeroU32,
}

pub(super) async fn run(context: &Context, args: &UpArgs) -> Result<()> {
    let system = args.system;
    let config = context.config()?;
    check_host(&config, system).await?;
    match image::check(context, system).await {
        Ok(_) => {}
        Err(ImageError::Missing(_)) => {
            image::make(context, system).await?;
        }
        Err(error) => return Err(error.into()),
    }
    let (client, _) = start::manager(context).await?;
    bring_up(context, &client, system, args.count.get()).await?;
    context.printer.say(&next_steps(context, Some(system)));
    Ok(())
}

/// What is missing is said before anything is started.
async fn check_host(config: &Config, system: System) -> Result<()> {
    if let Some(pool) = config.systems.get(&system) {
        let qemu = host::find_program(&pool.profile.qemu, &config.search_path)?;
        host::check_qemu(&qemu).await?;
    }
    host::find_program("qemu-img", &config.search_path)?;
    Ok(())
}

async fn bring_up(context: &Context, client: &Client, system: System, count: u32) -> Result<()> {
    let before = client.status().await?;
    if let Some(pool) = of(&before, system)
        && pool.max_vms < count
    {
        bail!(
            "{count} VMs are more than `max-vms` allows, which is {} for {system}",
            pool.max_vms
        );
    }
    let progress = Progress::new(context.printer, "Starting", &system.to_string());
    client.up(&Up { system, count }).await?;
    // Looked at from after the wish was noted: an earlier failure is not this one's.
    let mut changes = client.watch().await?;
    while let Some(status) = changes.next().await? {
        let Some(pool) = of(&status, system) else {
            continue;
        };
        if let Some(failure) = &pool.start_failure {
            bail!("no VM could be started: {failure}");
        }
        let ready = pool
            .vms
            .iter()
            .filter(|vm| vm.state == VmStage::Ready)
            .count();
        if ready >= count as usize {
            progress.finish("Ready", &ready_text(pool));
            return Ok(());
        }
        progress.step(&step(pool, ready, count));
    }
    bail!("the manager ended while the VM was being started")
}

fn of(status: &Status, system: System) -> Option<&SystemStatus> {
    status.systems.iter().find(|pool| pool.system == system)
}

fn step(pool: &SystemStatus, ready: usize, count: u32) -> String {
    let booting = pool.vms.iter().find(|vm| vm.state == VmStage::Booting);
    let stage = booting.map_or("waiting for room", |vm| vm.stage.as_str());
    if count == 1 {
        stage.to_owned()
    } else {
        format!("{ready} of {count} ready, {stage}")
    }
}

fn ready_text(pool: &SystemStatus) -> String {
    let ready = pool.vms.iter().filter(|vm| vm.state == VmStage::Ready);
    let name = |vm: &crate::manager::status::VmView| match vm.boot_ms {
        Some(ms) => format!("{} (booted in {}.{} s)", vm.name, ms / 1000, ms / 100 % 10),
        None => vm.name.clone(),
    };
    ready.map(name).collect::<Vec<_>>().join(", ")
}

/// What to type next, to be copied as it stands.
pub(super) fn next_steps(context: &Context, system: Option<System>) -> String {
    let ssh_config = context.paths.ssh_config();
    let system = system.unwrap_or(System::Riscv64Linux);
    // For who has no nixpkgs at hand; the guest's /bin/sh is all that it needs.
    let expression = format!(
        r#"derivation {{ name = "hello"; system = "{system}"; builder = "/bin/sh"; args = [ "-c" "uname -srm > $out" ]; }}"#
    );
    format!(
        "\nBuild something for {system}:\n\n  \
         export NIX_SSHOPTS=\"-F {}\"\n  \
         nix-build --builders \"$(xpool machines)\" --no-out-link -E \\\n    '{expression}'\n\n\
         See what it does: `xpool status`. Stop it: `xpool down`.",
        ssh_config.display()
    )
}
