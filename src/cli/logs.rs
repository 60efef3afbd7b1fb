//! `xpool logs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::io::AsyncReadExt;

use super::{Context, builds};
use crate::control::client::{Client, ControlError};
use crate::manager::events::Happening;
use crate::manager::status::BuildView;
use crate::manager::ticket::BuildProgress;
use crate::output::plain::plain;
use crate::output::{LogPrinter, Printer};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// A VM such as riscv64-1, a session's number or a derivation [default: the manager in the background]
    #[arg(value_name = "VM|SESSION|DERIVATION")]
    of: Option<String>,
    /// Show what is added, until the VM, the build or the manager ends
    #[arg(short, long)]
    follow: bool,
}

/// How often a log is looked at for news: files tell nobody when they grow.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn run(context: &Context, args: &LogsArgs) -> Result<()> {
    let log = match &args.of {
        None => context.paths.manager_log(),
        Some(name) => match vm_log(context, name) {
            Some(log) => log,
            None => return build_log(context, name, args.follow).await,
        },
    };
    let mut file = tokio::fs::File::open(&log)
        .await
        .with_context(|| format!("opening `{}`", log.display()))?;
    let mut printer = context.printer.log();
    copy_new(&mut file, &mut printer).await?;
    while args.follow && is_alive(context, args.of.as_deref()).await {
        tokio::time::sleep(LOOK).await;
        copy_new(&mut file, &mut printer).await?;
    }
    Ok(())
}

/// The console log of the VM of this name, if there is one.
fn vm_log(context: &Context, vm: &str) -> Option<PathBuf> {
    let log = context.paths.console_log(vm);
    let is_name = Path::new(vm).file_name().is_some_and(|name| name == vm);
    (is_name && log.exists()).then_some(log)
}

/// The last lines of a build, as the manager has them.
async fn build_log(context: &Context, name: &str, follow: bool) -> Result<()> {
    let unknown = |builds: &[BuildView]| unknown(name, &known_vms(&context.paths.logs()), builds);
    let client = match Client::connect(&context.paths.control_socket()).await {
        Ok((client, _)) => client,
        Err(ControlError::NotRunning { .. }) => bail!("{}; no manager is running", unknown(&[])),
        Err(error) => return Err(error.into()),
    };
    // Before the status, so that nothing is lost between the two.
    let mut events = client.events().await?;
    let status = client.status().await?;
    let Some(build) = builds::find(&status.builds, name) else {
        bail!("{}", unknown(&status.builds));
    };
    let mut reader = Reader::new(context.printer);
    reader.show(&build.progress);
    let id = build.id;
    let mut outcome = build.outcome.clone();
    while follow && outcome.is_none() {
        let Some(event) = events.next().await? else {
            bail!("the manager has ended, and the build with it; `xpool logs` shows what it said");
        };
        match event.happening {
            Happening::Progress { id: of, progress } if of == id => reader.show(&progress),
            Happening::BuildEnded(build) if build.id == id => outcome = build.outcome,
            Happening::Missed { .. } => {
                let status = client.status().await?;
                let build = status.builds.into_iter().find(|build| build.id == id);
                let build = build.context("the manager has forgotten the build")?;
                reader.show(&build.progress);
                outcome = build.outcome;
            }
            _ => {}
        }
    }
    if let Some(outcome) = outcome {
        context.printer.say(&plain(&builds::ending(&outcome)));
    }
    Ok(())
}

fn unknown(name: &str, vms: &[String], builds: &[BuildView]) -> String {
    let builds: Vec<String> = builds.iter().rev().take(5).map(builds::name).collect();
    let there_are = [("logs of the VMs", vms), ("builds", &builds)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {}", names.join(", ")))
        .collect::<Vec<_>>();
    let name = plain(name);
    if there_are.is_empty() {
        return format!("there is no log of `{name}`: nothing has been started yet");
    }
    format!(
        "there is no log of `{name}`; there are {}",
        there_are.join(", and ")
    )
}

/// Shows each line of a build once, of those that the manager has.
struct Reader {
    printer: Printer,
    log: LogPrinter,
    n_shown: u64,
}

impl Reader {
    fn new(printer: Printer) -> Self {
        let (log, n_shown) = (printer.log(), 0);
        Self {
            printer,
            log,
            n_shown,
        }
    }

    fn show(&mut self, progress: &BuildProgress) {
        let (n_lost, lines) = news(self.n_shown, progress);
        self.n_shown = progress.n_lines;
        if n_lost > 0 {
            let text = format!("… {n_lost} lines: the manager keeps the last ones only");
            self.printer.say(&text);
        }
        for line in lines {
            self.log.print(format!("{line}\n").as_bytes());
        }
    }
}

/// What of a build's lines is new to somebody who has seen so many: how many of them are not kept, and those that are.
fn news(n_shown: u64, progress: &BuildProgress) -> (u64, &[String]) {
    let n_new = progress.n_lines.saturating_sub(n_shown);
    let kept = &progress.last_lines;
    let n_known = usize::try_from(n_new).map_or(kept.len(), |n| n.min(kept.len()));
    (n_new - n_known as u64, &kept[kept.len() - n_known..])
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

async fn copy_new(file: &mut tokio::fs::File, printer: &mut LogPrinter) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        printer.print(&buffer[..n]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_shown_once_and_those_that_are_lost_are_counted() {
        let progress = BuildProgress {
            last_lines: vec!["8".to_owned(), "9".to_owned(), "10".to_owned()],
            n_lines: 10,
            ..BuildProgress::default()
        };
        assert_eq!(news(0, &progress), (7, &progress.last_lines[..]));
        assert_eq!(news(6, &progress), (1, &progress.last_lines[..]));
        assert_eq!(news(8, &progress), (0, &progress.last_lines[1..]));
        assert_eq!(news(10, &progress), (0, &[][..]));
    }

    #[test]
    fn who_asks_for_something_unknown_is_told_what_there_is() {
        let vms = ["riscv64-1".to_owned()];
        let builds = [builds::tests::build(1, "hello-2.12", None)];
        assert_eq!(
            unknown("x", &vms, &builds),
            "there is no log of `x`; there are logs of the VMs riscv64-1, and builds hello-2.12.drv"
        );
        assert_eq!(
            unknown("x", &[], &[]),
            "there is no log of `x`: nothing has been started yet"
        );
    }
}
