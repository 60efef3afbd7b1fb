//! `xpool logs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::io::AsyncReadExt;

use super::Context;
use crate::control::client::Client;
use crate::output::Printer;

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// A VM, such as riscv64-1 [default: the manager in the background]
    vm: Option<String>,
    /// Show what is added, until the VM or the manager ends
    #[arg(short, long)]
    follow: bool,
}

/// How often a log is looked at for news: files tell nobody when they grow.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn run(context: &Context, args: &LogsArgs) -> Result<()> {
    let log = match &args.vm {
        None => context.paths.manager_log(),
        Some(vm) => vm_log(context, vm)?,
    };
    let mut file = tokio::fs::File::open(&log)
        .await
        .with_context(|| format!("opening `{}`", log.display()))?;
    copy_new(&mut file, context.printer).await?;
    while args.follow && is_alive(context, args.vm.as_deref()).await {
        tokio::time::sleep(LOOK).await;
        copy_new(&mut file, context.printer).await?;
    }
    Ok(())
}

fn vm_log(context: &Context, vm: &str) -> Result<PathBuf> {
    let log = context.paths.console_log(vm);
    let is_name = Path::new(vm).file_name().is_some_and(|name| name == vm);
    if is_name && log.exists() {
        return Ok(log);
    }
    let known = known_vms(&context.paths.logs());
    if known.is_empty() {
        bail!("there is no log of `{vm}`: no VM has been started yet");
    }
    bail!(
        "there is no log of `{vm}`; there are logs of {}",
        known.join(", ")
    );
}

fn known_vms(logs: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(logs) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_vm = |name: &String| {
        crate::nix::System::ALL
            .iter()
            .any(|system| name.starts_with(&format!("{}-", system.cpu())))
    };
    let mut vms: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".log").map(str::to_owned))
        .filter(is_vm)
        .collect();
    vms.sort();
    vms
}

async fn copy_new(file: &mut tokio::fs::File, printer: Printer) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        printer.log(&buffer[..n]);
    }
}

/// Whether something may still be added to the log.
async fn is_alive(context: &Context, vm: Option<&str>) -> bool {
    let Ok((client, _)) = Client::connect(&context.paths.control_socket()).await else {
        return false;
    };
    let Some(vm) = vm else { return true };
    let status = client.status().await;
    status.is_ok_and(|status| {
        status
            .systems
            .iter()
            .flat_map(|system| &system.vms)
            .any(|view| view.name == vm)
    })
}
