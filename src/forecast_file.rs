//! The file that keeps over restarts what forecasts are made from. Whatever becomes of it, builds go on: a file that cannot be read
//! is one that knows nothing, and one that cannot be written is tried again an hour later.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use crate::forecast::history::History;
use crate::manager::forecast::{Histories, HistoryDesk};
use crate::state;

/// What is in it, as it is written now.
const VERSION: u32 = 1;

/// Far more than the largest that is ever written, in bytes.
const LIMIT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Content<H> {
    version: u32,
    systems: H,
}

/// Reads what was kept and keeps what comes, until nobody has the desk any more.
pub fn start(file: PathBuf) -> (HistoryDesk, JoinHandle<()>) {
    let kept = read(&file).unwrap_or_else(|error| {
        let error = format!("{error:#}");
        warn!(
            error,
            "the forecast begins anew: what came before cannot be used"
        );
        Histories::default()
    });
    let (desk, histories) = HistoryDesk::channel(kept);
    (desk, tokio::spawn(keep(file, histories)))
}

fn read(file: &Path) -> Result<Histories> {
    let name = || format!("reading `{}`", file.display());
    let open = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Histories::default()),
        open => open.with_context(name)?,
    };
    let mut text = String::new();
    open.take(LIMIT)
        .read_to_string(&mut text)
        .with_context(name)?;
    // The version first: what another one has in it may be anything.
    let Content { version, .. }: Content<serde::de::IgnoredAny> =
        serde_json::from_str(&text).with_context(name)?;
    if version != VERSION {
        bail!(
            "`{}` is of version {version}, not {VERSION}",
            file.display()
        );
    }
    let content: Content<Histories> = serde_json::from_str(&text).with_context(name)?;
    if !content.systems.values().all(History::is_sound) {
        bail!("`{}` has more in it than can have happened", file.display());
    }
    Ok(content.systems)
}

async fn keep(file: PathBuf, mut histories: watch::Receiver<Histories>) {
    let mut has_failed = false;
    while histories.changed().await.is_ok() {
        let systems = histories.borrow_and_update().clone();
        let file = file.clone();
        // A disk may take its time.
        let written = spawn_blocking(move || write(&file, systems)).await;
        let error = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        };
        let failed = std::mem::replace(&mut has_failed, error.is_some());
        if let Some(error) = error.filter(|_| !failed) {
            warn!(error, "the forecast will know less after a restart");
        }
    }
}

fn write(file: &Path, systems: Histories) -> Result<()> {
    let version = VERSION;
    let text = serde_json::to_string(&Content { version, systems })?;
    state::write_atomically(file, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Forecaster;
    use crate::nix::System;
    use crate::pool::policy::Policy;

    /// An hour with three sessions, and the one after it.
    fn histories() -> Histories {
        let mut forecaster = Forecaster::new(&Policy::default(), History::default());
        forecaster.look(3600 * 490_000);
        (0..3).for_each(|_| forecaster.arrived());
        forecaster.look(3600 * 490_001);
        Histories::from([(System::Riscv64Linux, forecaster.history().clone())])
    }

    #[tokio::test]
    async fn what_is_told_last_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("forecast.json");
        assert_eq!(read(&file).unwrap(), Histories::default());
        let (desk, histories_to_keep) = HistoryDesk::channel(Histories::default());
        let kept = tokio::spawn(keep(file.clone(), histories_to_keep));
        desk.keep(System::Riscv64Linux, &histories()[&System::Riscv64Linux]);
        drop(desk);
        kept.await.unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        insta::assert_snapshot!(text, @r#"{"version":1,"systems":{"riscv64-linux":{"490000":[0,0,1],"490001":[]}}}"#);
        assert_eq!(read(&file).unwrap(), histories());
    }

    #[tokio::test]
    async fn a_file_that_is_damaged_or_somebody_elses_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("forecast.json");
        let many = vec!["1"; 40].join(",");
        for (text, error) in [
            ("", "EOF"),
            (
                "{\"version\":1,\"systems\":{\"riscv64-linux\":{\"490000\":[0,",
                "EOF",
            ),
            ("buy milk", "expected value"),
            ("{\"version\":2,\"systems\":[]}", "of version 2, not 1"),
            (
                &format!("{{\"version\":1,\"systems\":{{\"riscv64-linux\":{{\"1\":[{many}]}}}}}}"),
                "more in it than can",
            ),
            (
                "{\"version\":1,\"systems\":{\"riscv64-linux\":{\"1\":[361]}}}",
                "more in it than can",
            ),
        ] {
            std::fs::write(&file, text).unwrap();
            let said = format!("{:#}", read(&file).unwrap_err());
            assert!(said.contains(error), "{said}");
            let (desk, kept) = start(file.clone());
            drop(desk);
            kept.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_holds_nothing_up() {
        let (desk, histories_to_keep) = HistoryDesk::channel(Histories::default());
        let kept = tokio::spawn(keep("/proc/no/forecast.json".into(), histories_to_keep));
        desk.keep(System::Riscv64Linux, &histories()[&System::Riscv64Linux]);
        drop(desk);
        kept.await.unwrap();
    }
}
