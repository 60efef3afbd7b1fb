//! Saving a guest and restoring it, by QEMU's migration to and from a file.
//!
//! Memory that QEMU shares with a file is left out of the migration (`x-ignore-shared`), so it is the file that a clone maps
//! again, and the state of processors and devices is less than a megabyte.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use qapi::qmp::{
    MigrationCapability, MigrationCapabilityStatus, MigrationStatus, RunState, migrate,
    migrate_incoming, migrate_set_capabilities, query_migrate, query_status, quit, stop,
};

use super::TemplateFiles;
use crate::vm::guest_text::quoted;
use crate::vm::port::GUEST_PROGRAM;
use crate::vm::qemu::QemuVm;
use crate::vm::qmp::Qmp;
use crate::vm::wait::{Pace, within};
use crate::vm::{RunningVm as _, VmExit};

/// A trivial build on an emulated processor: 3 s on a quiet machine.
const WARM_LIMIT: Duration = Duration::from_secs(150);

/// Two programs and a connection.
const AHEAD_LIMIT: Duration = Duration::from_secs(60);

/// The hop that showed that the guest serves.
const PORTS_LIMIT: Duration = Duration::from_secs(60);

/// State of less than a megabyte: 15 ms.
const STATE_LIMIT: Duration = Duration::from_secs(60);

/// QEMU writes what it holds of the disk.
const QUIT_LIMIT: Duration = Duration::from_secs(60);

/// Warms a guest up, saves it, and ends its VM, which then has done its duty.
pub(super) async fn save(vm: &QemuVm, files: &TemplateFiles) -> anyhow::Result<()> {
    let warmed = vm.run(GUEST_PROGRAM, &["warm"], WARM_LIMIT).await?;
    ensure!(
        warmed.status == Some(0),
        "`{GUEST_PROGRAM} warm` failed in the guest: {}",
        quoted(&warmed.stderr)
    );
    vm.start_registrar().await?;
    // A port or an agent in use would be so in every clone.
    within(
        "the guest to close its ports",
        PORTS_LIMIT,
        vm.slot_released(0),
    )
    .await??;
    let ahead = vm.run(GUEST_PROGRAM, &["ahead", "0"], AHEAD_LIMIT).await?;
    ensure!(
        ahead.status == Some(0),
        "`{GUEST_PROGRAM} ahead` failed in the guest: {}",
        quoted(&ahead.stderr)
    );
    vm.agent().hang_up().await;
    let qmp = vm.qmp();
    qmp.execute(stop {}).await?;
    ignore_shared(qmp).await?;
    let to_file = migrate {
        uri: Some(uri(&files.state())?),
        channels: None,
        detach: None,
        resume: None,
    };
    qmp.execute(to_file).await?;
    within("QEMU to save the guest", STATE_LIMIT, saved(qmp)).await??;
    vm.expect_end();
    // QEMU may be gone before its answer is read.
    let _ = qmp.execute(quit {}).await;
    let end = within("QEMU's end", QUIT_LIMIT, vm.ended()).await?;
    ensure!(
        end == VmExit::Stopped,
        "QEMU did not end in order: {}",
        end.in_words()
    );
    Ok(())
}

async fn saved(qmp: &Qmp) -> anyhow::Result<()> {
    let mut pace = Pace::new(Duration::from_millis(5), Duration::from_millis(100));
    loop {
        let info = qmp.execute(query_migrate {}).await?;
        match info.status {
            Some(MigrationStatus::completed) => return Ok(()),
            Some(MigrationStatus::failed | MigrationStatus::cancelled) => {
                let why = info
                    .error_desc
                    .unwrap_or_else(|| "QEMU does not say why".to_owned());
                bail!("QEMU could not save the guest: {why}");
            }
            _ => pace.pause().await,
        }
    }
}

/// Restores a guest in a QEMU that waits for it. It stays paused.
pub(in crate::vm) async fn restore(qmp: &Qmp, files: &TemplateFiles) -> anyhow::Result<()> {
    ignore_shared(qmp).await?;
    let from_file = migrate_incoming {
        uri: Some(uri(&files.state())?),
        channels: None,
        exit_on_error: None,
    };
    qmp.execute(from_file).await?;
    // A QEMU that fails here says why and ends.
    within("QEMU to restore the guest", STATE_LIMIT, restored(qmp)).await?
}

async fn restored(qmp: &Qmp) -> anyhow::Result<()> {
    let mut pace = Pace::new(Duration::from_millis(2), Duration::from_millis(50));
    while qmp.execute(query_status {}).await?.status == RunState::inmigrate {
        pace.pause().await;
    }
    Ok(())
}

async fn ignore_shared(qmp: &Qmp) -> anyhow::Result<()> {
    let ignore_shared = MigrationCapabilityStatus {
        capability: MigrationCapability::x_ignore_shared,
        state: true,
    };
    let capabilities = vec![ignore_shared];
    let set = migrate_set_capabilities { capabilities };
    qmp.execute(set).await.map(drop)
}

fn uri(path: &Path) -> anyhow::Result<String> {
    let path = path
        .to_str()
        .context("the cache folder's name is not UTF-8")?;
    // Behind a comma QEMU reads an offset.
    ensure!(!path.contains(','), "`{path}` has a comma in its name");
    Ok(format!("file:{path}"))
}
