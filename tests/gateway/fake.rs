//! VMs that are tasks of this process. Their guest does what a client's first operation says by the name of its path.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use xpool::config::vm::{Accel, Network};
use xpool::image::Image;
use xpool::image::manifest::{ImageFile, ImageKind, Manifest};
use xpool::nix::System;
use xpool::nix::registrations::Registrations;
use xpool::nix::stderr;
use xpool::nix::wire::put_number;
use xpool::vm::{BootProgress, Hop, RunningVm, Shell, ShellProgram, VmBackend, VmExit, VmSpec};

use crate::rig::{named_query, shake_hands_as_guest};

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Says that it knows none of the paths, and sends back what comes then.
    Answers,
    /// Sends [`counting`] without end.
    Floods,
    /// Reads nothing until another session wants [`Role::Wakes`]; then sends back what it reads.
    IsDeaf,
    /// Ends the deafness of the others, and answers.
    Wakes,
}

/// The first operation of a client that wants a guest of this role.
pub(crate) fn wish(role: Role) -> Vec<u8> {
    named_query(&format!("{role:?}"))
}

/// What a guest answers to the first operation: the empty set.
pub(crate) fn answer() -> Vec<u8> {
    let mut reply = Vec::new();
    put_number(&mut reply, stderr::LAST);
    put_number(&mut reply, 0);
    reply
}

/// Numbers from `first` on, so that a missing, doubled, or misplaced byte shows.
pub(crate) fn counting(first: u64) -> impl Iterator<Item = u8> {
    (first..).flat_map(u64::to_le_bytes)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FakeVms {
    wake: Arc<Notify>,
}

pub(crate) struct FakeVm {
    wake: Arc<Notify>,
    exit: watch::Sender<Option<VmExit>>,
}

impl VmBackend for FakeVms {
    type Vm = FakeVm;

    async fn boot(&self, _: VmSpec, _: &BootProgress<'_>, _: CancellationToken) -> Result<FakeVm> {
        Ok(FakeVm {
            wake: self.wake.clone(),
            exit: watch::Sender::new(None),
        })
    }
}

impl RunningVm for FakeVm {
    async fn open_hop(&self, _slot: u32) -> Result<Hop> {
        let (stream, guest) = UnixStream::pair()?;
        tokio::spawn(serve(guest, self.wake.clone()));
        Ok(Hop::new(stream))
    }

    async fn tell_names(&self, _: &std::sync::atomic::AtomicBool) -> Result<()> {
        Ok(())
    }

    async fn set_clock(&self) -> Result<()> {
        Ok(())
    }

    async fn register(&self, _: &Registrations) -> Result<()> {
        Ok(())
    }

    async fn slot_released(&self, _slot: u32) -> Result<()> {
        Ok(())
    }

    async fn open_ahead(&self, _slot: u32) -> Result<()> {
        Ok(())
    }

    async fn open_shell(&self, _: ShellProgram) -> Result<Shell> {
        bail!("these VMs have no shells")
    }

    async fn ended(&self) -> VmExit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.unwrap().clone();
        ended.unwrap()
    }

    async fn killed_for_memory(&self) -> String {
        std::future::pending().await
    }

    async fn pause(&self) -> Result<()> {
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn is_disposable(&self) -> bool {
        true
    }

    fn is_worn(&self) -> bool {
        false
    }

    fn power_down(&self) {
        self.exit.send_replace(Some(VmExit::Stopped));
    }

    fn kill(&self) {
        self.power_down();
    }
}

/// A guest's nix-daemon, as far as anybody here wants one. Ends when its client does.
async fn serve(mut guest: UnixStream, wake: Arc<Notify>) {
    let first = shake_hands_as_guest(&mut guest).await;
    let roles = [Role::Answers, Role::Floods, Role::IsDeaf, Role::Wakes];
    let mut wished = first;
    let role = loop {
        // A client may have sent more by now.
        let is_wished = |role: &Role| wished.starts_with(&wish(*role));
        if let Some(role) = roles.into_iter().find(is_wished) {
            break role;
        }
        if let Ok(0) | Err(_) = guest.read_buf(&mut wished).await {
            return;
        }
    };
    match role {
        Role::Answers => {}
        Role::Floods => return flood(guest).await,
        Role::IsDeaf => wake.notified().await,
        Role::Wakes => wake.notify_waiters(),
    }
    let further = &wished[wish(role).len()..];
    let said = [&answer(), further].concat();
    if guest.write_all(&said).await.is_ok() {
        let (mut reader, mut writer) = guest.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    }
}

async fn flood(mut guest: UnixStream) {
    const NUMBERS: usize = 8192;
    let mut first = 0;
    loop {
        let chunk: Vec<u8> = counting(first).take(NUMBERS * 8).collect();
        if guest.write_all(&chunk).await.is_err() {
            return;
        }
        first += NUMBERS as u64;
    }
}

pub(crate) fn spec(name: &str) -> VmSpec {
    let file = || ImageFile {
        name: "x".to_owned(),
        size: 0,
        sha256: String::new(),
    };
    let manifest = Manifest {
        contract: 1,
        system: System::Riscv64Linux,
        kind: ImageKind::Portable,
        recipe: String::new(),
        nix_version: "2.26.3".to_owned(),
        kernel_version: "6.12".to_owned(),
        cmdline: String::new(),
        kernel: file(),
        initrd: file(),
        disk: file(),
    };
    VmSpec {
        name: name.to_owned(),
        profile: toml::from_str(include_str!("../../vm-configs/riscv64-linux.toml")).unwrap(),
        vcpus: 2,
        memory_mib: 2048,
        accel: Accel::Tcg,
        qemu: PathBuf::new(),
        qemu_identity: "10".to_owned(),
        qemu_img: PathBuf::new(),
        image: Image {
            dir: PathBuf::new(),
            manifest,
        },
        slots: 1,
        network: Network::None,
        given: Vec::new(),
        names: None,
        store: None,
        templates: None,
        pauses: true,
        private_parent: PathBuf::new(),
        console_log: PathBuf::new(),
        boot_timeout: Duration::MAX,
        stop_grace: Duration::ZERO,
    }
}
