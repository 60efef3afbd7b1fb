//! Which template a VM can be cloned from, made when there is none: once, however many VMs wait for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::TemplateFiles;
use super::files::Stamp;
use super::key::Key;
use super::make::{Failure, make};
use super::shelf;
use crate::vm::{BootProgress, VmSpec};

/// How long a template that could not be made is not tried again.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// How many templates that turn out bad are replaced before the pause.
const MOST_BAD: u32 = 2;

/// The templates that a manager knows.
#[derive(Debug, Default)]
pub(in crate::vm) struct Templates {
    known: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<Known>>>>,
}

/// What is known of one template. Its lock is held while it is made or verified.
#[derive(Debug, Default)]
struct Known {
    /// Its files as they were when every byte was right.
    verified: Option<Stamp>,
    /// Clones of it that did not come up, in a row.
    bad: u32,
    given_up: Option<Instant>,
}

impl Templates {
    /// The template for a VM; `None` when there can be none, which was said. An error means that nobody needs it any more,
    /// or that the guest does not boot at all.
    pub(in crate::vm) async fn get(
        &self,
        spec: &VmSpec,
        dir: &Path,
        progress: &BootProgress<'_>,
        abort: &CancellationToken,
    ) -> anyhow::Result<Option<TemplateFiles>> {
        let key = Key::of(spec);
        let system = spec.image.manifest.system;
        let files = TemplateFiles::new(dir.join(format!("{system}-{}", key.short()?)));
        let known = self.known(files.dir());
        let Some(mut known) = lock(&known, spec, progress, abort).await else {
            anyhow::bail!("the start was aborted");
        };
        if known.given_up.is_some_and(|since| since.elapsed() < PAUSE) {
            return Ok(None);
        }
        if known.is_good(&files, progress).await? {
            return Ok(Some(files));
        }
        if let Some(why) = shelf::why_not(dir, system, &key) {
            tracing::warn!(
                "the template of {system} is of no use any more, another one is made: {why}"
            );
        }
        match make(spec, key, files.dir(), progress, abort).await {
            Ok(()) => {}
            Err(Failure::NoVm(error)) => return Err(error),
            Err(Failure::NoTemplate(error)) => {
                known.give_up(spec, &error);
                return Ok(None);
            }
        }
        known.verified = files.stamp().ok();
        let kept = shelf::mark_used(files.dir()).map_err(Into::into);
        if let Err(error) = kept.and_then(|()| shelf::prune(dir, system)) {
            tracing::warn!("old templates of {system} could not be removed: {error:#}");
        }
        Ok(Some(files))
    }

    /// Notes whether a clone of a template came up. A template that is no good is removed.
    pub(in crate::vm) async fn judge(
        &self,
        spec: &VmSpec,
        files: &TemplateFiles,
        outcome: Result<(), &anyhow::Error>,
    ) {
        let known = self.known(files.dir());
        let mut known = known.lock().await;
        let Err(error) = outcome else {
            known.bad = 0;
            return;
        };
        let system = spec.image.manifest.system;
        tracing::warn!(
            "{} could not be cloned from the template of {system}, and is booted from its image: {error:#}",
            spec.name
        );
        known.verified = None;
        known.bad += 1;
        if let Err(error) = shelf::remove(files.dir()) {
            tracing::warn!("{error:#}");
        }
        if known.bad >= MOST_BAD {
            known.give_up(spec, error);
        }
    }

    fn known(&self, dir: &Path) -> Arc<tokio::sync::Mutex<Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(dir.to_owned()).or_default())
    }
}

/// Waits for whoever makes the template; `None` when nobody needs it any more.
async fn lock<'a>(
    known: &'a tokio::sync::Mutex<Known>,
    spec: &VmSpec,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> Option<tokio::sync::MutexGuard<'a, Known>> {
    if let Ok(known) = known.try_lock() {
        return Some(known);
    }
    let system = spec.image.manifest.system;
    progress(&format!("waiting for the template of {system}"));
    abort.run_until_cancelled(known.lock()).await
}

impl Known {
    /// Whether the template is there and whole. A damaged one is removed.
    async fn is_good(
        &mut self,
        files: &TemplateFiles,
        progress: &BootProgress<'_>,
    ) -> anyhow::Result<bool> {
        let stamp = files.stamp().ok();
        if stamp.is_some() && stamp == self.verified {
            return Ok(true);
        }
        let checked = match files.manifest() {
            Ok(None) if !files.dir().exists() => return Ok(false),
            Ok(None) => Err(anyhow::anyhow!("it has no manifest")),
            Ok(Some(manifest)) => {
                progress("checking the template");
                let files = files.clone();
                let check = tokio::task::spawn_blocking(move || files.verify(&manifest));
                check.await.context("checking a template")?
            }
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            let name = files.dir().display();
            tracing::warn!("the template `{name}` is damaged, another one is made: {error:#}");
            shelf::remove(files.dir())?;
            return Ok(false);
        }
        if let Err(error) = shelf::mark_used(files.dir()) {
            tracing::warn!("`{}` cannot be written: {error}", files.dir().display());
        }
        self.verified = stamp;
        Ok(true)
    }

    fn give_up(&mut self, spec: &VmSpec, error: &anyhow::Error) {
        let system = spec.image.manifest.system;
        let minutes = PAUSE.as_secs() / 60;
        tracing::warn!(
            "{system} has no template, VMs boot from the image for the next {minutes} minutes: {error:#}"
        );
        self.bad = 0;
        self.given_up = Some(Instant::now());
    }
}
