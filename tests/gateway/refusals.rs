//! What a client that has logged in may not do.

use russh::ChannelMsg;

use crate::rig::{Rig, SLOT, within};
use xpool::gateway::Limits;
use xpool::nix::wire::Version;

/// Runs a command by `ssh`; its exit status and what it says.
async fn run(rig: &Rig, options: &[&str]) -> (Option<i32>, String) {
    let output = within(rig.ssh(SLOT).args(options).output()).await.unwrap();
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr).replace('\r', "");
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_refused_in_words() {
    let rig = Rig::start().await;
    let only = "this is a builder for Nix, and only `nix-daemon --stdio` can be run";
    let cases = [
        (vec!["id", "-u"], format!("xpool: `id -u` is refused: {only}\n")),
        (
            vec!["nix-store", "--serve", "--write"],
            "xpool: this builder speaks ssh-ng only: write `ssh-ng://` instead of `ssh://` in its URI\n".to_owned(),
        ),
        (
            vec!["nix-daemon", "--stdio", "--store", "/x"],
            "xpool: `nix-daemon --stdio --store /x` is refused: a VM has one store only, so remove `remote-store` from \
             the builder's URI\n"
                .to_owned(),
        ),
        (
            vec!["-T"],
            format!("xpool: there is no shell here: {only}\n"),
        ),
    ];
    for (command, expected) in cases {
        assert_eq!(
            run(&rig, &command).await,
            (Some(1), expected),
            "{command:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subsystem_is_refused() {
    let rig = Rig::start().await;
    let (status, said) = run(&rig, &["-s", "sftp"]).await;
    assert_eq!(status, Some(255));
    assert!(said.contains("subsystem request failed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_anything_else_fail() {
    let rig = Rig::start().await;
    let connection = rig.russh().await;
    let mut channel = connection.channel_open_session().await.unwrap();
    channel
        .request_pty(true, "xterm", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "pty"
    );
    channel
        .request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0)
        .await
        .unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "x11"
    );
    channel.agent_forward(true).await.unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "agent"
    );
    channel
        .set_env(true, "LD_PRELOAD", "/tmp/x.so")
        .await
        .unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "env"
    );
    channel.request_subsystem(true, "sftp").await.unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "subsystem"
    );
    // The channel is still good for what it is for, once.
    channel.exec(true, "nix-daemon --stdio").await.unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Success)),
        "exec"
    );
    channel.exec(true, "nix-daemon --stdio").await.unwrap();
    assert!(
        matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)),
        "a second exec"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_fails() {
    let rig = Rig::start().await;
    let connection = rig.russh().await;
    let tcp =
        connection.channel_open_direct_tcpip("127.0.0.1", u32::from(rig.port), "127.0.0.1", 1);
    assert!(within(tcp).await.is_err(), "to a port");
    let socket = connection.channel_open_direct_streamlocal("/run/nix.sock");
    assert!(within(socket).await.is_err(), "to a socket");
    let x11 = connection.channel_open_x11("127.0.0.1", 1);
    assert!(within(x11).await.is_err(), "to a display");
    assert!(
        within(connection.tcpip_forward("127.0.0.1", 0))
            .await
            .is_err(),
        "from a port"
    );
    assert!(
        within(connection.streamlocal_forward("/tmp/x"))
            .await
            .is_err(),
        "from a socket"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_have_one_command_after_another_without_end() {
    let limits = Limits {
        max_channels: 2,
        max_channels_per_key: 2,
        ..Limits::default()
    };
    let rig = Rig::with(limits, Version::PROMISED).await;
    let path = rig.folder.path().join("master");
    let shared = |more: &[&str]| {
        let mut command = rig.ssh(SLOT);
        command.arg("-S").arg(&path).args(more);
        command
    };
    let mut master = shared(&["-M", "-N"]).spawn().unwrap();
    within(async {
        while !shared(&["-O", "check"])
            .output()
            .await
            .unwrap()
            .status
            .success()
        {}
    })
    .await;
    // Each is closed by the gateway first, which russh tells nobody.
    for _ in 0..6 {
        let said = within(shared(&["ls"]).output()).await.unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        // Where there is no channel, `ssh` says so and makes a connection of its own.
        assert!(said.starts_with("xpool: "), "{said}");
    }
    master.start_kill().unwrap();
    within(master.wait()).await.unwrap();
}
