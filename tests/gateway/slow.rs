//! Clients that do not get on: logins that take too long, and networks that are gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use xpool::gateway::Limits;
use xpool::nix::wire::Version;
use xpool::open_files;

use crate::rig::{
    NixClient, Rig, SLOT, grant, query, shake_hands_as_client, shake_hands_as_guest, within,
};

/// What a silent connection is asked after, where a test waits for it.
const KEEPALIVE: Duration = Duration::from_millis(100);

async fn connect(rig: &Rig) -> TcpStream {
    TcpStream::connect(("127.0.0.1", rig.port)).await.unwrap()
}

/// Returns when the gateway has ended a connection, whatever it still says.
async fn is_cut(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // Cut with what it sent still unread, so that a reset is as good as an end.
    let _ = within(stream.read_to_end(&mut rest)).await;
    assert!(rest.starts_with(b"SSH-2.0-xpool\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_takes_too_long_is_cut_whatever_it_sends() {
    let limits = Limits {
        login_grace: Duration::from_millis(600),
        ..Limits::default()
    };
    let rig = Rig::with(limits, Version::PROMISED).await;
    let silent = connect(&rig).await;
    let mut greets = connect(&rig).await;
    greets.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
    let mut trickles = connect(&rig).await;
    let trickle = tokio::spawn(async move {
        let bytes = b"SSH-2.0-slow\r\n".iter().chain(std::iter::repeat(&0));
        for byte in bytes {
            if trickles.write_all(&[*byte]).await.is_err() {
                return;
            }
            // How slow it is is what the test is about.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    is_cut(silent).await;
    is_cut(greets).await;
    within(trickle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_silent_connections_do_not_hold_up_a_login() {
    open_files::raise_limit().unwrap();
    let mut rig = Rig::start().await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(connect(&rig).await);
    }
    let started = Instant::now();
    let (_client, _session) = rig.parked().await;
    let took = started.elapsed();
    assert!(took < Limits::default().login_patience, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_that_take_all_places_make_room() {
    let limits = Limits {
        max_logins: 8,
        login_patience: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let mut silent = Vec::new();
    for _ in 0..3 * limits.max_logins {
        silent.push(connect(&rig).await);
    }
    let started = Instant::now();
    let (_client, _session) = rig.parked().await;
    let took = started.elapsed();
    assert!(took < limits.login_grace, "{took:?}");
    is_cut(silent.remove(0)).await;
}

/// A network between a client and the gateway, which can be cut without either hearing of it.
struct Network {
    port: u16,
    gone: CancellationToken,
}

impl Network {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Self {
            port: listener.local_addr().unwrap().port(),
            gone: CancellationToken::new(),
        };
        let gone = network.gone.clone();
        tokio::spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // Kept open, and neither read nor written any more, when it is down.
            let (near, far) = (Arc::new(near), Arc::new(far));
            tokio::join!(carry(&near, &far, &gone), carry(&far, &near, &gone));
        });
        network
    }
}

async fn carry(from: &TcpStream, to: &TcpStream, gone: &CancellationToken) {
    let mut chunk = vec![0; 16 << 10];
    loop {
        tokio::select! {
            biased;
            () = gone.cancelled() => return std::future::pending().await,
            readable = from.readable() => readable.unwrap(),
        }
        let Ok(n @ 1..) = from.try_read(&mut chunk) else {
            continue;
        };
        let mut rest = &chunk[..n];
        while !rest.is_empty() {
            to.writable().await.unwrap();
            if let Ok(n) = to.try_write(rest) {
                rest = &rest[n..];
            }
        }
    }
}

/// A client that waits for a VM, over a network that can go away.
async fn far_client(rig: &Rig, network: &Network, options: &[&str]) -> NixClient {
    let mut command = tokio::process::Command::new("ssh");
    command.args(options).arg(format!("-p{}", network.port));
    command.arg(format!("-oHostKeyAlias=[127.0.0.1]:{}", rig.port));
    command.args(rig.ssh_options());
    command
        .arg(format!("{SLOT}@127.0.0.1"))
        .arg("nix-daemon --stdio");
    let mut client = NixClient::run(command);
    shake_hands_as_client(&mut client).await;
    client.send(&query()).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_network_is_gone_is_missed() {
    let limits = Limits {
        keepalive: KEEPALIVE,
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let network = Network::to(rig.port).await;
    let _client = far_client(&rig, &network, &[]).await;
    let session = rig.session().await;
    // As long as it answers it may be silent.
    let outlived = timeout(15 * KEEPALIVE, session.updates.closed()).await;
    assert!(outlived.is_err(), "the session was cut");
    network.gone.cancel();
    within(session.updates.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_network_goes_while_it_is_sent_much_is_missed() {
    let limits = Limits {
        keepalive: KEEPALIVE,
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let network = Network::to(rig.port).await;
    let mut client = far_client(&rig, &network, &[]).await;
    let session = rig.session().await;
    let mut guest = grant(&session).await;
    shake_hands_as_guest(&mut guest).await;
    let flood =
        tokio::spawn(async move { while guest.write_all(&vec![0; 1 << 20]).await.is_ok() {} });
    let mut some = vec![0; 4 << 20];
    let mut stdout = client.ssh.stdout.take().unwrap();
    within(stdout.read_exact(&mut some)).await.unwrap();
    network.gone.cancel();
    within(session.updates.closed()).await;
    within(flood).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_misses_a_gateway_whose_network_is_gone() {
    let mut rig = Rig::start().await;
    let network = Network::to(rig.port).await;
    let options = ["-oServerAliveInterval=1", "-oServerAliveCountMax=1"];
    let client = far_client(&rig, &network, &options).await;
    let _session = rig.session().await;
    network.gone.cancel();
    let (said, status) = client.ended().await;
    assert!(said.contains("not responding"), "{said}");
    assert_eq!(status, Some(255));
}
