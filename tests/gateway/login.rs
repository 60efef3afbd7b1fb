//! Who may log in, and how long that may take.

use std::sync::Arc;
use std::time::Duration;

use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use xpool::activation::Handover;
use xpool::config::keys::KEY_KINDS;
use xpool::gateway::keys::GatewayKeys;
use xpool::gateway::{GatewayConfig, GatewayError, Limits};
use xpool::manager::ticket::{SessionDesk, Share};
use xpool::nix::wire::Version;

use crate::rig::{Rig, SLOT, client, private_key, query, within};
use crate::trusting::AnyServer;

/// Runs `ssh` with more options; its exit status and what it says.
async fn ssh(rig: &Rig, user: &str, options: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new("ssh");
    command.args(options).args(rig.ssh_options());
    command
        .arg(format!("{user}@127.0.0.1"))
        .arg("nix-daemon --stdio");
    command
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = within(command.output()).await.unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn only_public_keys_are_accepted() {
    let rig = Rig::start().await;
    for method in [
        "none",
        "password",
        "keyboard-interactive",
        "hostbased",
        "gssapi-with-mic",
    ] {
        let (status, said) = ssh(
            &rig,
            SLOT,
            &[&format!("-oPreferredAuthentications={method}")],
        )
        .await;
        assert_eq!(status, Some(255), "{method}: {said}");
        assert!(
            said.contains("Permission denied (publickey)."),
            "{method}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_and_an_unknown_slot_are_refused() {
    let rig = Rig::start().await;
    let other = GatewayKeys::load_or_create(&rig.folder.path().join("other")).unwrap();
    let identity = format!("-oIdentityFile={}", other.client_file().display());
    let none = "-oIdentityFile=none";
    let (status, said) = ssh(&rig, SLOT, &["-F/dev/null", &identity, none]).await;
    // The right key is offered after the wrong one, so this works: a wrong key costs nothing but its refusal.
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = ssh(&rig, "riscv64-99", &[]).await;
    assert_eq!(status, Some(255), "{said}");
    let config = Arc::new(russh::client::Config::default());
    let mut client = russh::client::connect(config, ("127.0.0.1", rig.port), AnyServer)
        .await
        .unwrap();
    let stranger = PrivateKeyWithHashAlg::new(Arc::new(private_key(&other.client_file())), None);
    assert!(
        !client
            .authenticate_publickey(SLOT, stranger)
            .await
            .unwrap()
            .success()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_see_what_its_key_may_and_is_shown_with_the_keys_name() {
    let mut rig = Rig::start().await;
    let known = [
        ("local", rig.keys.clone(), Share::Host),
        ("alice", rig.alices.clone(), Share::None),
    ];
    for (name, keys, share) in known {
        let mut client = rig.client_with(&keys.client_file()).await;
        client.send(&query()).await;
        let request = rig.session().await.request;
        assert_eq!(request.share, share, "{name}");
        let fingerprint = keys.client().fingerprint(HashAlg::Sha256).to_string();
        assert_eq!(request.key, fingerprint);
        let shown: Vec<&str> = request.client.split(' ').collect();
        assert_eq!((shown[0], shown[2]), (name, &*fingerprint));
        assert!(shown[1].starts_with("127.0.0.1:"), "{}", request.client);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_that_can_be_configured_can_log_in() {
    for (kind, bits) in [
        ("ed25519", "256"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let mut keygen = tokio::process::Command::new("ssh-keygen");
        keygen.args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]);
        let made = within(keygen.arg(&file).status()).await.unwrap();
        assert!(made.success());
        // Not out of the private key, of which one in 256 has a number that begins with zeros, and cannot be read here.
        let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
        let key = PublicKey::from_openssh(&public).unwrap();
        assert!(KEY_KINDS.contains(&key.algorithm()), "{kind} {bits}");
        let rig = Rig::with_key(key).await;
        drop(rig.client_with(&file).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_modern_algorithms_are_offered() {
    let rig = Rig::start().await;
    let (_, said) = ssh(&rig, SLOT, &["-vv"]).await;
    let offered = said.split("peer server KEXINIT proposal").nth(1).unwrap();
    let offered = offered
        .split("\r\n")
        .take(10)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        offered.contains("kex-strict-s-v00@openssh.com"),
        "{offered}"
    );
    assert!(
        offered.contains("host key algorithms: ssh-ed25519\n"),
        "{offered}"
    );
    assert!(offered.contains("compression stoc: none\n"), "{offered}");
    for weak in ["sha1", "ssh-rsa", "cbc", "zlib", "nistp", "ctr", "group"] {
        assert!(!offered.contains(weak), "{weak} is in {offered}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_logged_in_may_take_its_time() {
    let limits = Limits {
        login_grace: Duration::from_millis(700),
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let (client, session) = rig.parked().await;
    let outlived =
        tokio::time::timeout(Duration::from_millis(1500), session.updates.closed()).await;
    assert!(outlived.is_err(), "the session was cut");
    drop(client);
}

#[tokio::test]
async fn a_gateway_that_nobody_could_use_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let keys = GatewayKeys::load_or_create(&folder.path().join("keys")).unwrap();
    let config = GatewayConfig {
        host_key: keys.host().clone(),
        clients: Vec::new(),
        slots: std::collections::BTreeMap::new(),
        limits: Limits::default(),
    };
    let start = async |config| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (desk, _sessions) = SessionDesk::channel();
        xpool::gateway::serve(
            listener,
            config,
            desk,
            Handover::default(),
            CancellationToken::new(),
        )
        .await
    };
    assert_eq!(start(config.clone()).await, Err(GatewayError::NoClients));
    let clients = vec![client("local", &keys, Share::Host)];
    assert_eq!(
        start(GatewayConfig { clients, ..config }).await,
        Err(GatewayError::NoSlots)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_stopped_takes_no_more_and_cuts_what_stays() {
    let limits = Limits {
        closing_grace: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let (_client, session) = rig.parked().await;
    rig.stop.cancel();
    within(session.updates.closed()).await;
    within(rig.ended).await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_a_configured_system_can_be_logged_in_to_by_its_name() {
    let rig = Rig::start().await;
    for (user, expected) in [
        ("vm-riscv64-1", 0),
        ("vm-riscv64-99", 0),
        ("vm-riscv64-0", 255),
        ("vm-riscv64", 255),
        ("vm-aarch64-1", 255),
    ] {
        let (status, said) = ssh(&rig, user, &[]).await;
        assert_eq!(status, Some(expected), "{user}: {said}");
    }
}
