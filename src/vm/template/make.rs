//! Making a template: boot, warm, save, prove that it can be restored, publish.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::TemplateFiles;
use super::files::Stamp;
use super::key::Key;
use super::save::save;
use super::shelf::{LOCK, MAKING};
use crate::vm::guest_text::quoted;
use crate::vm::port::GUEST_PROGRAM;
use crate::vm::start::{Origin, bring_up};
use crate::vm::{BootProgress, RunningVm as _, VmSpec};

/// Waits of ten milliseconds, one per processor.
const TIMERS_LIMIT: Duration = Duration::from_secs(60);

/// Makes the template `target`, which must not be there. Gives its files' stamp, unless they are another manager's, which was
/// faster.
pub(super) async fn make(
    spec: &VmSpec,
    key: Key,
    target: &TemplateFiles,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> anyhow::Result<Option<Stamp>> {
    let system = spec.image.manifest.system;
    let maker = VmSpec {
        name: format!("{}-template", system.cpu()),
        console_log: spec
            .console_log
            .with_file_name(format!("template-{system}.log")),
        ..spec.clone()
    };
    let tell = |stage: &str| progress(&format!("preparing {system}, once per image: {stage}"));
    let workshop = Workshop::open(target.dir().parent().context("no folder for templates")?)?;
    let files = workshop.files();
    let vm = bring_up(&maker, Origin::ToBeSaved(&files), &tell, abort).await?;
    tell("saving it");
    let saved = abort.run_until_cancelled(save(&vm, &files)).await;
    vm.kill();
    vm.ended().await;
    saved.context(ABORTED)??;
    prove(&maker, &files, &tell, abort).await?;
    tell("reading it back");
    let target = target.clone();
    let published = tokio::task::spawn_blocking(move || {
        files.seal(key)?;
        workshop.publish(&target)
    });
    published.await.context("publishing the template")?
}

const ABORTED: &str = "the making of a template was aborted";

/// Restores the saved guest once, because what cannot be restored must not become a template.
async fn prove(
    maker: &VmSpec,
    files: &TemplateFiles,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> anyhow::Result<()> {
    let proving = |stage: &str| progress(&format!("trying it: {stage}"));
    let clone = bring_up(maker, Origin::Template(files), &proving, abort).await?;
    let timers = clone.run(GUEST_PROGRAM, &["timers"], TIMERS_LIMIT);
    let timers = abort.run_until_cancelled(timers).await;
    clone.kill();
    clone.ended().await;
    let output = timers.context(ABORTED)??;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status == Some(0) && told.trim() == maker.vcpus.to_string(),
        "the restored guest's timers do not all work: {}{}",
        told.trim(),
        quoted(&output.stderr)
    );
    Ok(())
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

    /// Makes the folder the template `target`, lock and all: it is locked until it is published.
    fn publish(self, target: &TemplateFiles) -> anyhow::Result<Option<Stamp>> {
        match fs::rename(self.dir.path(), target.dir()) {
            Ok(()) => {
                // It is not there any more under this name.
                let _ = self.dir.keep();
                Ok(target.stamp().ok())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(error).with_context(|| format!("making `{}`", target.dir().display()))
            }
        }
    }
}
