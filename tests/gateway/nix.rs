//! The real Nix as client, and a real nix-daemon on a store of its own in the guest's place.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use xpool::gateway::Limits;
use xpool::manager::ticket::SessionReport;
use xpool::manager::ticket::SessionUpdate;
use xpool::nix::wire::Version;

use crate::rig::{Rig, SLOT, grant, killed, within};

/// Of Nix 2.8, which Debian 12 has: no newer guest is needed, and a newer one takes it too.
const NIX_2_8: Version = Version::new(1, 34);

/// A gateway, and Nix with settings and stores of its own.
struct NixRig {
    rig: Rig,
    root: PathBuf,
}

impl NixRig {
    /// `None`, with a reason, where there is no Nix.
    async fn start() -> Option<Self> {
        if Command::new("nix").arg("--version").output().await.is_err() {
            skip("there is no `nix` in PATH");
            return None;
        }
        // Of this machine the builds see what `sandbox-paths` below has.
        if !Path::new("/usr/bin/head").exists() {
            skip("there are no tools in /usr/bin, as on NixOS");
            return None;
        }
        let rig = Rig::with(Limits::default(), NIX_2_8).await;
        let root = rig.folder.path().to_owned();
        for folder in ["conf", "home"] {
            std::fs::create_dir(root.join(folder)).unwrap();
        }
        let settings = "experimental-features = nix-command\nbuild-users-group =\nsandbox = false\n\
            sandbox-paths = /bin /lib /lib64 /usr\nsubstitute = false\n";
        std::fs::write(root.join("conf/nix.conf"), settings).unwrap();
        Some(Self { rig, root })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let root = &self.root;
        command
            .env("NIX_CONF_DIR", root.join("conf"))
            .env("HOME", root.join("home"));
        command
            .env("NIX_SSHOPTS", self.rig.ssh_options().join(" "))
            .env_remove("NIX_REMOTE");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// The store of the client or of the guest.
    fn store(&self, of: &str) -> String {
        format!("local?root={}", self.root.join(of).display())
    }

    /// Builds a derivation that runs `script`, on the gateway only.
    fn build(&self, script: &str) -> Command {
        self.build_outputs("out", script)
    }

    /// Builds a derivation with these outputs, with a space between them.
    fn build_outputs(&self, outputs: &str, script: &str) -> Command {
        let outputs = outputs.replace(' ', r#"" ""#);
        let expression = format!(
            r#"derivation {{ name = "hello"; system = builtins.currentSystem; builder = "/bin/sh"; outputs = [ "{outputs}" ];
               args = [ "-c" "{script}" ]; }}"#
        );
        let system = format!("{}-linux", std::env::consts::ARCH);
        let machine = format!("ssh-ng://{SLOT}@127.0.0.1 {system} - 1 1");
        let mut command = self.command("nix-build");
        command.args([
            "--store",
            &self.store("client"),
            "-j0",
            "--builders",
            &machine,
        ]);
        command.args(["--no-out-link", "-E", &expression]);
        command
    }

    /// A daemon as in a guest.
    fn daemon(&self, stream: UnixStream) -> Child {
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let input = std::os::fd::OwnedFd::from(stream.try_clone().unwrap());
        let mut command = self.command("nix-daemon");
        command
            .arg("--stdio")
            .env("NIX_REMOTE", self.store("guest"));
        command
            .stdin(input)
            .stdout(std::os::fd::OwnedFd::from(stream))
            .stderr(Stdio::inherit());
        command.spawn().unwrap()
    }
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

#[track_caller]
fn text(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_nix_for_the_stores_version_asks_for_no_vm() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let store = format!("ssh-ng://{SLOT}@127.0.0.1");
    let ping = nix
        .command("nix")
        .args(["store", "ping", "--store", &store])
        .output();
    text(&within(ping).await.unwrap());
    assert!(nix.rig.sessions.try_recv().is_err(), "a ticket was opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_builds_through_the_gateway_and_shows_the_wait() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let mut build = nix
        .build("echo from the builder >&2; echo built > $out")
        .spawn()
        .unwrap();
    let session = nix.rig.session().await;
    let waiting = SessionUpdate::Waiting("starting riscv64-1".to_owned());
    session.updates.send(waiting).await.unwrap();
    let mut said = BufReader::new(build.stderr.take().unwrap()).lines();
    while within(said.next_line()).await.unwrap().unwrap() != "xpool: starting riscv64-1" {}
    let _daemon = nix.daemon(grant(&session).await);
    for expected in ["xpool: riscv64-1 is ready", "from the builder"] {
        while within(said.next_line()).await.unwrap().unwrap() != expected {}
    }
    let output = within(build.wait_with_output()).await.unwrap();
    assert!(output.status.success());
    let path = String::from_utf8(output.stdout).unwrap();
    let path = Path::new(path.trim_end()).strip_prefix("/").unwrap();
    let content = std::fs::read_to_string(nix.root.join("client").join(path)).unwrap();
    assert_eq!(content, "built\n");
    within(session.updates.closed()).await;
    assert!(!session.unfetched.load(Ordering::Acquire));
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_has_fetched_all_outputs_of_a_build_when_its_last_session_ends() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let script = "PATH=/usr/bin:/bin; mkdir $out $out/bin; echo $dev > $out/bin/a; chmod +x $out/bin/a; \
        ln -s $dev $out/dev; head -c 300000 /dev/zero > $dev";
    let build = nix.build_outputs("out dev", script).spawn().unwrap();
    let mut last = nix.rig.session().await;
    assert!(!last.request.first.fetches());
    let mut daemons = vec![nix.daemon(grant(&last).await)];
    let ended = build.wait_with_output();
    tokio::pin!(ended);
    // Some clients connect anew for the second output (2.26 is one).
    let output = loop {
        tokio::select! {
            output = &mut ended => break output.unwrap(),
            further = nix.rig.session() => {
                daemons.push(nix.daemon(grant(&further).await));
                last = further;
            }
        }
    };
    text(&output);
    within(last.updates.closed()).await;
    if daemons.len() == 1 {
        assert!(!last.unfetched.load(Ordering::Acquire));
        return;
    }
    // Of the outputs that were fetched before, this one knows nothing; the manager does.
    let reports = std::iter::from_fn(|| last.reports.try_recv().ok());
    let fetched = reports.filter(|report| matches!(report, SessionReport::Fetched(_)));
    assert_eq!(fetched.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_leaves_nothing_to_fetch_after_a_build_that_failed() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let build = nix.build("exit 1").spawn().unwrap();
    let session = nix.rig.session().await;
    let _daemon = nix.daemon(grant(&session).await);
    let output = within(build.wait_with_output()).await.unwrap();
    assert!(!output.status.success());
    within(session.updates.closed()).await;
    assert!(!session.unfetched.load(Ordering::Acquire));
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_says_why_a_build_ended_when_its_vm_was_killed() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let mut build = nix
        .build("PATH=/usr/bin:/bin; echo begun >&2; sleep 30")
        .spawn()
        .unwrap();
    let session = nix.rig.session().await;
    let mut daemon = nix.daemon(grant(&session).await);
    let mut stderr = build.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains("begun") {
        let mut chunk = [0; 1024];
        let n = within(stderr.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "the build ended: {said}");
        said.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    daemon.kill().await.unwrap();
    session.updates.send(killed()).await.unwrap();
    within(stderr.read_to_string(&mut said)).await.unwrap();
    let expected = "xpool: riscv64-1 ended in the middle of the build: QEMU was killed by signal 9; \
        its console is in /run/xpool/riscv64-1.log";
    assert!(said.contains(expected), "{said}");
    assert!(!within(build.wait()).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_says_why_outputs_did_not_arrive_when_its_vm_was_killed() {
    let Some(mut nix) = NixRig::start().await else {
        return;
    };
    let build = nix
        .build("PATH=/usr/bin:/bin; head -c 8000000 /dev/zero > $out")
        .spawn()
        .unwrap();
    let session = nix.rig.session().await;
    let (stream, daemon_side) = UnixStream::pair().unwrap();
    let _daemon = nix.daemon(daemon_side);
    let mut guest = grant(&session).await;
    {
        // As a guest that dies with the output on its way.
        let (mut from_session, mut to_session) = guest.split();
        let (from_daemon, mut to_daemon) = stream.into_split();
        let mut first_half = from_daemon.take(4_000_000);
        tokio::select! {
            _ = tokio::io::copy(&mut from_session, &mut to_daemon) => panic!("the client left"),
            copied = within(tokio::io::copy(&mut first_half, &mut to_session)) => assert_eq!(copied.unwrap(), 4_000_000),
        }
    }
    drop(guest);
    session.updates.send(killed()).await.unwrap();
    let output = within(build.wait_with_output()).await.unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    let expected =
        "xpool: riscv64-1 ended while outputs were copied from it: QEMU was killed by signal 9";
    assert!(said.contains(expected), "{said}");
    within(session.updates.closed()).await;
    assert!(session.unfetched.load(Ordering::Acquire));
}
