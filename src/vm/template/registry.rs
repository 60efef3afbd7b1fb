//! Which template a VM can be cloned from, made when there is none: once, however many VMs wait for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::TemplateFiles;
use super::files::Stamp;
use super::key::Key;
use super::make::make;
use super::shelf;
use crate::nix::System;
use crate::vm::{BootProgress, VmSpec};

/// How long a template that could not be made is not tried again.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// After this many clones in a row that did not come up another template is made, though every byte of this one is right.
const BAD_CLONES: u32 = 3;

/// After this many in a row it is not the template.
const TOO_MANY_BAD_CLONES: u32 = 2 * BAD_CLONES;

/// The templates that a manager knows.
#[derive(Debug, Default)]
pub(in crate::vm) struct Templates {
    known: Mutex<HashMap<PathBuf, Arc<Known>>>,
}

/// A template to clone a VM from.
#[derive(Debug)]
pub(in crate::vm) struct Usable {
    pub(in crate::vm) files: TemplateFiles,
    known: Arc<Known>,
}

/// What is known of one template.
#[derive(Debug, Default)]
struct Known {
    /// Locked while it is made or checked.
    state: tokio::sync::Mutex<State>,
    /// Clones that did not come up, in a row.
    bad_clones: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    /// Its files as they were when every byte was right.
    verified: Option<Stamp>,
    given_up: Option<Instant>,
}

/// What is found where a template should be.
enum Found {
    Good,
    Nothing,
    Removed,
}

impl Templates {
    /// The template for a VM; `None` when there can be none, which was said. An error means that nobody needs it any more.
    pub(in crate::vm) async fn get(
        &self,
        spec: &VmSpec,
        dir: &Path,
        progress: &BootProgress<'_>,
        abort: &CancellationToken,
    ) -> anyhow::Result<Option<Usable>> {
        let system = spec.image.manifest.system;
        let key = Key::of(spec);
        let files = TemplateFiles::new(dir.join(format!("{system}-{}", key.short()?)));
        let known = self.known(files.dir());
        let Some(mut state) = lock(&known.state, system, progress, abort).await else {
            bail!("the start was aborted");
        };
        if state.given_up.is_some_and(|since| since.elapsed() < PAUSE) {
            return Ok(None);
        }
        if known.bad_clones.load(Ordering::Relaxed) >= TOO_MANY_BAD_CLONES {
            state.give_up(system, &anyhow::anyhow!("clones of it do not come up"));
            known.bad_clones.store(0, Ordering::Relaxed);
            return Ok(None);
        }
        let is_doubtful = known.bad_clones.load(Ordering::Relaxed) == BAD_CLONES;
        let made = state.find_or_make(spec, &files, key, is_doubtful, progress, abort);
        match made.await {
            Ok(()) => {}
            Err(error) if abort.is_cancelled() => return Err(error),
            Err(error) => {
                state.give_up(system, &error);
                return Ok(None);
            }
        }
        drop(state);
        Ok(Some(Usable { files, known }))
    }

    fn known(&self, dir: &Path) -> Arc<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(dir.to_owned()).or_default())
    }
}

impl Usable {
    /// Notes that a clone came up.
    pub(in crate::vm) fn is_proven(&self) {
        self.known.bad_clones.store(0, Ordering::Relaxed);
    }

    /// Notes that a clone did not come up. That may be the fault of this machine, so the template is only looked at again,
    /// and made anew when it is damaged or when further clones do not come up.
    pub(in crate::vm) async fn is_doubted(&self, spec: &VmSpec, error: &anyhow::Error) {
        let system = spec.image.manifest.system;
        tracing::warn!(
            "{} could not be cloned from the template of {system}, and is booted from its image: {error:#}",
            spec.name
        );
        self.known.bad_clones.fetch_add(1, Ordering::Relaxed);
        self.known.state.lock().await.verified = None;
    }
}

/// Waits for whoever makes the template; `None` when nobody needs it any more.
async fn lock<'a>(
    state: &'a tokio::sync::Mutex<State>,
    system: System,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> Option<tokio::sync::MutexGuard<'a, State>> {
    if let Ok(state) = state.try_lock() {
        return Some(state);
    }
    progress(&format!("waiting for the template of {system}"));
    abort.run_until_cancelled(state.lock()).await
}

impl State {
    async fn find_or_make(
        &mut self,
        spec: &VmSpec,
        files: &TemplateFiles,
        key: Key,
        is_doubtful: bool,
        progress: &BootProgress<'_>,
        abort: &CancellationToken,
    ) -> anyhow::Result<()> {
        let system = spec.image.manifest.system;
        let shelf_dir = files.dir().parent().context("no folder for templates")?;
        if is_doubtful && files.dir().exists() {
            tracing::warn!(
                "clones of the template of {system} do not come up, another one is made"
            );
            shelf::remove(files.dir())?;
        }
        match self.find(files, progress).await? {
            Found::Good => return Ok(()),
            Found::Removed => {}
            Found::Nothing => {
                if let Some(why) = shelf::why_not(shelf_dir, system, &key) {
                    tracing::warn!("no template of {system} fits, another one is made: {why}");
                }
            }
        }
        self.verified = make(spec, key, files, progress, abort).await?;
        let kept = shelf::mark_used(files.dir()).map_err(Into::into);
        if let Err(error) = kept.and_then(|()| shelf::prune(shelf_dir, system)) {
            tracing::warn!("old templates of {system} could not be removed: {error:#}");
        }
        Ok(())
    }

    /// Looks whether the template is there and whole. A damaged one is removed.
    async fn find(
        &mut self,
        files: &TemplateFiles,
        progress: &BootProgress<'_>,
    ) -> anyhow::Result<Found> {
        let stamp = files.stamp().ok();
        if stamp.is_some() && stamp == self.verified {
            return Ok(Found::Good);
        }
        let checked = match files.manifest() {
            Ok(None) if !files.dir().exists() => return Ok(Found::Nothing),
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
            return Ok(Found::Removed);
        }
        if let Err(error) = shelf::mark_used(files.dir()) {
            tracing::warn!("`{}` cannot be written: {error}", files.dir().display());
        }
        self.verified = stamp;
        Ok(Found::Good)
    }

    fn give_up(&mut self, system: System, error: &anyhow::Error) {
        let minutes = PAUSE.as_secs() / 60;
        tracing::warn!(
            "{system} has no template, VMs boot from the image for the next {minutes} minutes: {error:#}"
        );
        self.given_up = Some(Instant::now());
    }
}
