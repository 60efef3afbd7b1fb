//! A gateway in a process of its own: this very program, run again. Then its memory is its own, and `scripts/bench gateway` can
//! measure it beside another server.

use std::collections::BTreeMap;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use xpool::activation::Handover;
use xpool::control::{self, Info};
use xpool::manager::{Manager, VmFactory};
use xpool::nix::System;
use xpool::nix::handshake::{ClientSide, ServerProgress, ServerSide};
use xpool::nix::wire::Version;
use xpool::open_files;
use xpool::pool::policy::Policy;
use xpool::shutdown::Shutdown;

use crate::fake::{FakeVms, spec};
use crate::rig::{
    NixClient, Rig, SLOT, echo_to_all, gateway, keys_in, promise, query, shake_hands_as_client,
    ssh_options, within,
};

/// Names the folder of such a process. Without it the tests below have nothing to do.
const FOLDER: &str = "XPOOL_TEST_GATEWAY";

/// VMs behind the gateway, each of which serves one session at a time.
pub(crate) const VMS: u32 = 4;

/// A gateway, a manager, and fake VMs in another process.
pub(crate) struct Apart {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) manager: control::client::Client,
    pub(crate) port: u16,
    process: Child,
}

impl Apart {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "apart::a_gateway_apart_serves_fake_vms"])
            .env(FOLDER, folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().unwrap();
        let socket = control_socket(folder.path());
        let (manager, info) = within(async {
            loop {
                match control::client::Client::connect(&socket).await {
                    Ok(reached) => return reached,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        Self {
            folder,
            manager,
            port: info.gateway.port(),
            process,
        }
    }

    /// A Nix client that has shaken hands.
    pub(crate) async fn client(&self) -> NixClient {
        let folder = self.folder.path();
        let mut command = Command::new("ssh");
        command.args(ssh_options(
            folder,
            &keys_in(folder).client_file(),
            self.port,
        ));
        command
            .arg(format!("{SLOT}@127.0.0.1"))
            .arg("nix-daemon --stdio");
        let mut client = NixClient::run(command);
        shake_hands_as_client(&mut client).await;
        client
    }

    /// A figure of the process's memory, in KiB: `VmRSS`, or `VmHWM` for the most that it was.
    pub(crate) fn memory_kib(&self, figure: &str) -> u64 {
        let pid = self.process.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(figure));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse().unwrap()
    }
}

fn control_socket(folder: &Path) -> PathBuf {
    folder.join("control")
}

/// The folder, in a process that is to serve.
fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Returns when who has started this process wants it to end, or is gone.
async fn told_to_end() {
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    let _ = ended.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_apart_serves_fake_vms() {
    let Some(folder) = folder() else { return };
    open_files::raise_limit().unwrap();
    let policy = Policy {
        max_vms: NonZeroU32::new(VMS).unwrap(),
        memory_floor_mib: 0,
        memory_estimate_mib: 0,
        ..Policy::default()
    };
    let factory = VmFactory {
        backend: Arc::new(FakeVms::default()),
        store: None,
        spec: Arc::new(|_, name, _| Ok(spec(name))),
        console_log: Arc::new(|name| format!("{name}.log").into()),
    };
    let pools = BTreeMap::from([(System::Riscv64Linux, policy)]);
    let (manager, handle) = Manager::new(pools, &factory);
    let (listener, config) = gateway(&folder).await;
    let info = Info {
        version: "test".to_owned(),
        pid: std::process::id(),
        gateway: listener.local_addr().unwrap(),
        is_started_on_demand: false,
    };
    let (shutdown, end) = (Shutdown::default(), CancellationToken::new());
    let desk = handle.desk().clone();
    tokio::spawn(xpool::gateway::serve(
        listener,
        config,
        desk,
        Handover::default(),
        end.clone(),
    ));
    let socket = UnixListener::bind(control_socket(&folder)).unwrap();
    let control = control::server::serve(socket, info, handle, shutdown.clone(), end);
    tokio::spawn(control);
    tokio::select! {
        () = manager.run(shutdown) => {}
        () = told_to_end() => {}
    }
}

/// What `scripts/bench gateway` runs, with files in its folder: `ssh` has options for `ssh`, `hello` is what a client says
/// before its bytes are sent back, and `answer` is as long as what it then hears.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_apart_echoes() {
    let Some(folder) = folder() else { return };
    let rig = Rig::start().await;
    let hello = [ClientSide::new(Version::PROMISED).hello(), query()].concat();
    let mut answer = match ServerSide::new(promise()).receive(&hello).unwrap() {
        ServerProgress::Done { reply, .. } => reply,
        ServerProgress::More { .. } => panic!("the client says too little"),
    };
    answer.extend(query());
    let options = rig.ssh_options().join(" ");
    std::fs::write(folder.join("hello"), hello).unwrap();
    std::fs::write(folder.join("answer"), answer).unwrap();
    std::fs::write(folder.join("ssh.new"), options).unwrap();
    std::fs::rename(folder.join("ssh.new"), folder.join("ssh")).unwrap();
    echo_to_all(rig.sessions);
    told_to_end().await;
}
