//! `xpool up`.

use std::num::NonZeroU32;

use anyhow::{Result, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{Context, image, nix_version, parse_system, start};
use crate::config::{Config, Host};
use crate::control::Up;
use crate::control::client::Client;
use crate::image::Image;
use crate::image::store::ImageError;
use crate::manager::status::{Status, SystemStatus, VmView};
use crate::nix::System;
use crate::nix::client::{Form, Transport};
use crate::output::progress::Progress;
use crate::output::table::tenths;
use crate::pool::Mode;
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
    let (system, count) = (args.system, args.count.get());
    let cancel = image::cancel_on_signals()?;
    prepare(context, system, count, &cancel).await?;
    let up = async {
        let (client, _) = start::manager(context).await?;
        bring_up(context, &client, system, count).await
    };
    tokio::select! {
        result = up => result?,
        () = cancel.cancelled() => bail!("interrupted; what was started goes on until `xpool down`"),
    }
    context.printer.say(&next_steps(context, system).await?);
    Ok(())
}

/// Looks whether this machine can run VMs of a system, and makes the image if there is none.
pub(super) async fn prepare(
    context: &Context,
    system: System,
    count: u32,
    cancel: &CancellationToken,
) -> Result<()> {
    check_host(&context.config()?, system, count).await?;
    match find_image(context, system).await {
        Ok(_) => Ok(()),
        Err(ImageError::Missing(_)) => image::make(context, system, cancel).await.map(drop),
        Err(error) => Err(error.into()),
    }
}

/// The image in use. A manager that runs reads every byte of an image itself, and again only when it has changed.
async fn find_image(context: &Context, system: System) -> Result<Image, ImageError> {
    if context.connect().await.is_ok() {
        return image::current(context, system);
    }
    image::check(context, system).await
}

/// What is missing is said before anything is started.
async fn check_host(config: &Config, system: System, count: u32) -> Result<()> {
    if let Some(pool) = config.systems.get(&system) {
        let policy = &pool.policy;
        check_count(policy.up_limit.get(), policy.max_vms.get(), system, count)?;
        let qemu = host::find_program(&pool.profile.qemu, &config.search_path)?;
        host::check_qemu(&qemu).await?;
    }
    host::find_program("qemu-img", &config.search_path)?;
    Ok(())
}

fn check_count(limit: u32, max_vms: u32, system: System, count: u32) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    if limit > max_vms {
        bail!(
            "{count} VMs of {system} are more than the {limit} that `up` may ask for; `max-vms` in xpool.toml allows more"
        );
    }
    bail!("{count} VMs are more than `max-vms` allows, which is {limit} for {system}")
}

async fn bring_up(context: &Context, client: &Client, system: System, count: u32) -> Result<()> {
    // The manager may have been started with another configuration.
    if let Some(pool) = of(&client.status().await?, system) {
        check_count(pool.up_limit, pool.max_vms, system, count)?;
    }
    let progress = Progress::new(context.printer, "Starting", &system.to_string());
    client.up(&Up { system, count }).await?;
    // Looked at from after the wish was noted: an earlier failure is not this one's.
    let mut changes = client.watch().await?;
    while let Some(status) = changes.next().await? {
        let Some(pool) = of(&status, system) else {
            continue;
        };
        if pool.mode == Mode::Draining {
            bail!("somebody took {system} down while it was being started");
        }
        if let Some(failure) = &pool.start_failure {
            bail!(
                "no VM could be started: {failure}\nxpool goes on trying until `xpool down {}`",
                system.cpu()
            );
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
    let stage = match (booting, &pool.shortage) {
        (Some(vm), _) => vm.stage.clone(),
        (None, Some(shortage)) => shortage.to_string(),
        (None, None) => "waiting for room".to_owned(),
    };
    if count == 1 {
        stage
    } else {
        format!("{ready} of {count} ready, {stage}")
    }
}

fn ready_text(pool: &SystemStatus) -> String {
    let ready = pool.vms.iter().filter(|vm| vm.state == VmStage::Ready);
    let name = |vm: &VmView| match vm.boot_ms {
        Some(ms) => format!("{} (started in {})", vm.name, tenths(ms)),
        None => vm.name.clone(),
    };
    ready.map(name).collect::<Vec<_>>().join(", ")
}

/// What to type next, to be copied as it stands.
pub(super) async fn next_steps(context: &Context, system: System) -> Result<String> {
    let client = nix_version::installed(&Host::this().search_path).await;
    let ssh_options = match Form::of(Transport::default(), client) {
        Form::SshAlias => format!(
            "  export NIX_SSHOPTS=\"-F {}\"\n",
            context.paths.ssh_config().display()
        ),
        Form::SshPort | Form::Local => String::new(),
    };
    let xpool = context.own_command()?;
    // For who has no nixpkgs at hand; the guest's /bin/sh is all that it needs.
    let expression = format!(
        r#"derivation {{ name = "hello"; system = "{system}"; builder = "/bin/sh"; args = [ "-c" "read -r linux < /proc/version; echo $linux > $out" ]; }}"#
    );
    Ok(format!(
        "\nBuild something for {system}:\n\n\
         {ssh_options}  \
         nix-build --builders \"$({xpool} machines)\" --no-out-link -E \\\n    '{expression}'\n\n\
         Have Nix use it without being told: `{xpool} machines --install`.\n\
         See what it does: `{xpool} status`. Stop it: `{xpool} down`."
    ))
}
