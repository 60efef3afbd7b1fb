//! A gateway on a free port, its keys, and the test in the manager's and the guest's place.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::trusting::AnyServer;
use xpool::activation::Handover;
use xpool::gateway::keys::GatewayKeys;
use xpool::gateway::{Client, GatewayConfig, GatewayError, Limits, Slot};
use xpool::manager::ticket::{
    BuildLimits, Grant, InputsOnTheirWay, NewSession, SessionDesk, SessionUpdate, Share,
};
use xpool::nix::System;
use xpool::nix::handshake::{ClientProgress, ClientSide, Promise, ServerProgress, ServerSide};
use xpool::nix::wire::{Version, put_number, put_strings};
use xpool::vm::Hop;

/// Longer than anything here takes on a busy machine. No test waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SLOT: &str = "riscv64-00";

/// A gateway and what it needs.
pub(crate) struct Rig {
    pub(crate) port: u16,
    pub(crate) keys: GatewayKeys,
    /// Those of Alice, who comes from elsewhere and may see nothing of this machine's store.
    pub(crate) alices: GatewayKeys,
    pub(crate) sessions: mpsc::Receiver<NewSession>,
    pub(crate) folder: TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: JoinHandle<Result<(), GatewayError>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default(), Version::PROMISED).await
    }

    pub(crate) async fn with(limits: Limits, version: Version) -> Self {
        Self::with_more(limits, version, None).await
    }

    /// With a further client's key.
    pub(crate) async fn with_key(key: PublicKey) -> Self {
        let bob = Some(client_of("bob", key, Share::None));
        Self::with_more(Limits::default(), Version::PROMISED, bob).await
    }

    async fn with_more(limits: Limits, version: Version, further: Option<Client>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (listener, mut config) = gateway(folder.path()).await;
        let alices = GatewayKeys::load_or_create(&folder.path().join("alice")).unwrap();
        config.clients.push(client("alice", &alices, Share::None));
        config.clients.extend(further);
        for slot in config.slots.values_mut() {
            slot.promise.version = version;
        }
        config.limits = limits;
        let port = listener.local_addr().unwrap().port();
        let (desk, sessions) = SessionDesk::channel();
        let stop = CancellationToken::new();
        let ended = tokio::spawn(xpool::gateway::serve(
            listener,
            config,
            desk,
            Handover::default(),
            stop.clone(),
        ));
        Self {
            port,
            keys: keys_in(folder.path()),
            alices,
            sessions,
            folder,
            stop,
            ended,
        }
    }

    /// What `ssh` needs to reach the gateway, without anything of the user's.
    pub(crate) fn ssh_options(&self) -> Vec<String> {
        ssh_options(self.folder.path(), &self.keys.client_file(), self.port)
    }

    pub(crate) fn ssh(&self, user: &str) -> Command {
        self.ssh_with(&self.keys.client_file(), user)
    }

    /// With the private key in this file.
    pub(crate) fn ssh_with(&self, key: &Path, user: &str) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(ssh_options(self.folder.path(), key, self.port))
            .arg(format!("{user}@127.0.0.1"));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A Nix client that has shaken hands.
    pub(crate) async fn client(&self) -> NixClient {
        self.client_with(&self.keys.client_file()).await
    }

    /// The same, with the private key in this file.
    pub(crate) async fn client_with(&self, key: &Path) -> NixClient {
        let mut command = self.ssh_with(key, SLOT);
        command.arg("nix-daemon --stdio");
        let mut client = NixClient::run(command);
        shake_hands_as_client(&mut client).await;
        client
    }

    /// The next session that asks for a VM.
    pub(crate) async fn session(&mut self) -> NewSession {
        within(self.sessions.recv()).await.unwrap()
    }

    /// A client that waits, and its session.
    pub(crate) async fn parked(&mut self) -> (NixClient, NewSession) {
        let mut client = self.client().await;
        client.send(&query()).await;
        let session = self.session().await;
        (client, session)
    }

    /// A client that has a guest, which has its first operation.
    pub(crate) async fn joined(&mut self) -> (NixClient, NewSession, UnixStream) {
        let (client, session) = self.parked().await;
        let mut guest = grant(&session).await;
        let mut first = shake_hands_as_guest(&mut guest).await;
        let n_first = first.len();
        first.resize(query().len(), 0);
        within(guest.read_exact(&mut first[n_first..]))
            .await
            .unwrap();
        assert_eq!(first, query());
        (client, session, guest)
    }

    /// A connection by russh, logged in.
    pub(crate) async fn russh(&self) -> russh::client::Handle<AnyServer> {
        let config = Arc::new(russh::client::Config::default());
        let mut connection = russh::client::connect(config, ("127.0.0.1", self.port), AnyServer)
            .await
            .unwrap();
        let key = private_key(&self.keys.client_file());
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let login = connection.authenticate_publickey(SLOT, key).await.unwrap();
        assert!(login.success());
        connection
    }
}

/// What `ssh` needs to reach a gateway that has its files in this folder.
pub(crate) fn ssh_options(folder: &Path, key: &Path, port: u16) -> Vec<String> {
    let known_hosts = folder.join("known_hosts");
    let options = [
        "-F/dev/null".to_owned(),
        format!("-i{}", key.display()),
        format!("-p{port}"),
        "-oIdentitiesOnly=yes".to_owned(),
        "-oBatchMode=yes".to_owned(),
        format!("-oUserKnownHostsFile={}", known_hosts.display()),
        "-oStrictHostKeyChecking=yes".to_owned(),
    ];
    options.into()
}

/// Those of a gateway that has its files in this folder.
pub(crate) fn keys_in(folder: &Path) -> GatewayKeys {
    GatewayKeys::load_or_create(&folder.join("keys")).unwrap()
}

/// A gateway that has its files in this folder, ready to be served.
pub(crate) async fn gateway(folder: &Path) -> (TcpListener, GatewayConfig) {
    let keys = keys_in(folder);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let known_hosts = keys.known_hosts_line(&format!("[127.0.0.1]:{port}")) + "\n";
    std::fs::write(folder.join("known_hosts"), known_hosts).unwrap();
    let slot = Slot {
        system: System::Riscv64Linux,
        promise: promise(),
    };
    let config = GatewayConfig {
        host_key: keys.host().clone(),
        clients: vec![client("local", &keys, Share::Host)],
        slots: [(SLOT.to_owned(), slot)].into(),
        limits: Limits::default(),
    };
    (listener, config)
}

pub(crate) fn promise() -> Promise {
    Promise {
        version: Version::PROMISED,
        nix: "2.26.3".to_owned(),
    }
}

/// A client that logs in with these keys' client key.
pub(crate) fn client(name: &str, keys: &GatewayKeys, share: Share) -> Client {
    client_of(name, keys.client().clone(), share)
}

fn client_of(name: &str, key: PublicKey, share: Share) -> Client {
    Client {
        name: name.to_owned(),
        key,
        share,
        secrets: true,
    }
}

/// A Nix client at the other end of a real `ssh`.
pub(crate) struct NixClient {
    pub(crate) ssh: Child,
}

impl NixClient {
    /// What this command is, an `ssh`.
    pub(crate) fn run(mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let ssh = command.spawn().expect("ssh should be installed");
        Self { ssh }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let stdin = self.ssh.stdin.as_mut().unwrap();
        within(stdin.write_all(bytes)).await.unwrap();
        within(stdin.flush()).await.unwrap();
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, bytes: &[u8]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut got = vec![0; bytes.len()];
            let read = within(self.ssh.stdout.as_mut().unwrap().read_exact(&mut got)).await;
            read.unwrap_or_else(|error| panic!("{caller}: {error}"));
            let (got, expected) = (
                String::from_utf8_lossy(&got),
                String::from_utf8_lossy(bytes),
            );
            assert_eq!(got, expected, "at {caller}");
        }
    }

    /// What `ssh` writes to its standard error until it ends, and its exit status.
    pub(crate) async fn ended(mut self) -> (String, Option<i32>) {
        let mut text = String::new();
        within(self.ssh.stderr.take().unwrap().read_to_string(&mut text))
            .await
            .unwrap();
        let status = within(self.ssh.wait()).await.unwrap();
        (text, status.code())
    }
}

pub(crate) async fn shake_hands_as_client(client: &mut NixClient) {
    let stdin = client.ssh.stdin.as_mut().unwrap();
    let stdout = client.ssh.stdout.as_mut().unwrap();
    shake_hands(stdout, stdin).await;
}

pub(crate) async fn shake_hands<R, W>(reader: &mut R, writer: &mut W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut side = ClientSide::new(Version::PROMISED);
    within(writer.write_all(&side.hello())).await.unwrap();
    within(writer.flush()).await.unwrap();
    loop {
        let mut chunk = [0; 256];
        let n = within(reader.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "the gateway ended the handshake");
        if let ClientProgress::Done { .. } = side.receive(&chunk[..n]).unwrap() {
            return;
        }
    }
}

/// Gives what came after the handshake.
pub(crate) async fn shake_hands_as_guest(guest: &mut UnixStream) -> Vec<u8> {
    let mut side = ServerSide::new(promise());
    loop {
        let mut chunk = [0; 4096];
        let n = within(guest.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "the gateway closed the hop");
        match side.receive(&chunk[..n]).unwrap() {
            ServerProgress::More { reply } => guest.write_all(&reply).await.unwrap(),
            ServerProgress::Done { reply, rest, .. } => {
                guest.write_all(&reply).await.unwrap();
                return rest;
            }
        }
    }
}

/// Gives a session a VM; the guest's end of the hop.
pub(crate) async fn grant(session: &NewSession) -> UnixStream {
    grant_with(session, false).await
}

pub(crate) async fn grant_with(session: &NewSession, fetch_only: bool) -> UnixStream {
    let (stream, guest) = UnixStream::pair().unwrap();
    let grant = Grant {
        vm: "riscv64-1".to_owned(),
        hop: Hop::new(stream),
        fetch_only,
        inputs: InputsOnTheirWay::default(),
        limits: BuildLimits::default(),
    };
    let granted = SessionUpdate::Granted(grant);
    session.updates.send(granted).await.unwrap();
    guest
}

/// A guest that sends back what it gets, for every session that asks.
pub(crate) fn echo_to_all(mut sessions: mpsc::Receiver<NewSession>) {
    tokio::spawn(async move {
        while let Some(session) = sessions.recv().await {
            tokio::spawn(async move {
                let mut guest = grant(&session).await;
                let first = shake_hands_as_guest(&mut guest).await;
                let (reader, mut writer) = guest.split();
                writer.write_all(&first).await.unwrap();
                let mut reader = BufReader::with_capacity(64 << 10, reader);
                let _ = tokio::io::copy_buf(&mut reader, &mut writer).await;
                drop(session);
            });
        }
    });
}

/// How a VM ends whose QEMU was killed.
pub(crate) fn killed() -> SessionUpdate {
    SessionUpdate::VmGone {
        vm: "riscv64-1".to_owned(),
        cause: "QEMU was killed by signal 9".to_owned(),
        log: PathBuf::from("/run/xpool/riscv64-1.log"),
    }
}

/// A first operation: which of these paths do you have?
pub(crate) fn query() -> Vec<u8> {
    named_query("hello-2.12")
}

/// The same, of a path with this name.
pub(crate) fn named_query(name: &str) -> Vec<u8> {
    let path = format!("/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-{name}");
    let mut out = Vec::new();
    put_number(&mut out, 31);
    put_strings(&mut out, &[&path]);
    put_number(&mut out, 0);
    out
}

pub(crate) fn private_key(path: &std::path::Path) -> PrivateKey {
    PrivateKey::from_openssh(std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Fails instead of hanging.
#[track_caller]
pub(crate) fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    within_time(PATIENCE, future)
}

/// The same, for what many clients at once take long for.
#[track_caller]
pub(crate) fn long<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    within_time(4 * PATIENCE, future)
}

#[track_caller]
fn within_time<T>(time: Duration, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        tokio::time::timeout(time, future)
            .await
            .unwrap_or_else(|_| panic!("nothing happened for {} s at {caller}", time.as_secs()))
    }
}
