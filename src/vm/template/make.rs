//! Making a template: boot, warm, save, prove that it can be restored, publish.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::TemplateFiles;
use super::key::Key;
use super::save::save;
use super::shelf::{LOCK, MAKING};
use crate::vm::guest_text::quoted;
use crate::vm::port::GUEST_PROGRAM;
use crate::vm::start::{Origin, bring_up};
use crate::vm::{BootProgress, RunningVm as _, VmSpec};

/// Waits of ten milliseconds, one per processor.
const TIMERS_LIMIT: Duration = Duration::from_secs(60);

/// Why there is no template.
pub(super) enum Failure {
    /// The guest does not even boot, or nobody wants it any more: there is no VM at all.
    NoVm(anyhow::Error),
    /// It boots but cannot be saved and restored.
    NoTemplate(anyhow::Error),
}

/// Makes the template `target`, the folder of which must not be there.
pub(super) async fn make(
    spec: &VmSpec,
    key: Key,
    target: &Path,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> Result<(), Failure> {
    let system = spec.image.manifest.system;
    let maker = VmSpec {
        name: format!("{}-template", system.cpu()),
        console_log: spec
            .console_log
            .with_file_name(format!("template-{system}.log")),
        ..spec.clone()
    };
    let tell = |stage: &str| progress(&format!("preparing {system}, once per image: {stage}"));
    let workshop = target.parent().context("no folder for templates");
    let workshop = workshop
        .and_then(Workshop::open)
        .map_err(Failure::NoTemplate)?;
    let files = workshop.files();
    let vm = bring_up(&maker, Origin::ToBeSaved(&files), &tell, abort)
        .await
        .map_err(Failure::NoVm)?;
    tell("saving it");
    let saved = abort.run_until_cancelled(save(&vm, &files)).await;
    vm.kill();
    vm.ended().await;
    match saved {
        None => return Err(aborted()),
        Some(saved) => saved.map_err(Failure::NoTemplate)?,
    }
    prove(&maker, &files, &tell, abort).await?;
    tell("reading it back");
    let target = target.to_owned();
    let published = tokio::task::spawn_blocking(move || {
        files.seal(key)?;
        workshop.publish(&target)
    });
    let published = published.await.context("publishing the template");
    published.flatten().map_err(Failure::NoTemplate)
}

fn aborted() -> Failure {
    Failure::NoVm(anyhow::anyhow!("the making of a template was aborted"))
}

/// Restores the saved guest once, because what cannot be restored must not become a template.
async fn prove(
    maker: &VmSpec,
    files: &TemplateFiles,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> Result<(), Failure> {
    let proving = |stage: &str| progress(&format!("trying it: {stage}"));
    let clone = match bring_up(maker, Origin::Template(files), &proving, abort).await {
        Ok(clone) => clone,
        Err(_) if abort.is_cancelled() => return Err(aborted()),
        Err(error) => return Err(Failure::NoTemplate(error)),
    };
    let timers = clone.run(GUEST_PROGRAM, &["timers"], TIMERS_LIMIT);
    let timers = abort.run_until_cancelled(timers).await;
    clone.kill();
    clone.ended().await;
    let output = timers.ok_or_else(aborted)?.map_err(Failure::NoTemplate)?;
    let told = String::from_utf8_lossy(&output.stdout);
    let vcpus = maker.profile.vcpus.to_string();
    if output.status == Some(0) && told.trim() == vcpus {
        return Ok(());
    }
    Err(Failure::NoTemplate(anyhow::anyhow!(
        "the restored guest's timers do not all work: {}{}",
        told.trim(),
        quoted(&output.stderr)
    )))
}

/// A folder in which a template is made. Gone when it is dropped, and recognised as abandoned when its maker was killed.
struct Workshop {
    dir: TempDir,
    /// Locked as long as somebody works here.
    _lock: File,
}

impl Workshop {
    fn open(parent: &Path) -> anyhow::Result<Self> {
        let making = || format!("making a folder for a template in `{}`", parent.display());
        fs::create_dir_all(parent).with_context(making)?;
        let dir = tempfile::Builder::new()
            .prefix(MAKING)
            .tempdir_in(parent)
            .with_context(making)?;
        let lock = File::create(dir.path().join(LOCK)).with_context(making)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(making)?;
        Ok(Self { dir, _lock: lock })
    }

    fn files(&self) -> TemplateFiles {
        TemplateFiles::new(self.dir.path().to_owned())
    }

    /// Makes the folder the template `target`. If another manager was faster, its template is as good.
    fn publish(self, target: &Path) -> anyhow::Result<()> {
        let from = self.dir.path();
        fs::remove_file(from.join(LOCK)).context("removing a template's lock")?;
        match fs::rename(from, target) {
            Ok(()) => {
                // It is not there any more under this name.
                let _ = self.dir.keep();
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            Err(error) => {
                Err(error).with_context(|| format!("making the template `{}`", target.display()))
            }
        }
    }
}
