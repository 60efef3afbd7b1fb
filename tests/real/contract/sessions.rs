//! Sessions, builds and shells in a copy of a guest.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use xpool::vm::{QemuVm, RunningVm as _, ShellProgram, ShellTerminal};

use super::{build, copy, for_each_image};
use crate::common::vm::{boot_of, handshake, in_guest, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_carries_one_session_after_another_and_ports_are_apart() {
    for_each_image(async |image, dir| {
        let vm = boot_of(copy(image, "sessions", dir)).await;
        for _ in 0..3 {
            let mut hop = vm.open_hop(0).await.unwrap();
            handshake(&mut hop).await;
            drop(hop);
            soon("the slot", vm.slot_released(0)).await.unwrap();
        }
        let mut first = vm.open_hop(0).await.unwrap();
        let mut second = vm.open_hop(1).await.unwrap();
        handshake(&mut second).await;
        handshake(&mut first).await;
        drop(first);
        soon("the slot", vm.slot_released(0)).await.unwrap();
        // What is no greeting has the daemon hang up, and the guest closes the port for it.
        let mut third = vm.open_hop(0).await.unwrap();
        third.stream.write_all(&[0; 64]).await.unwrap();
        let mut rest = Vec::new();
        let end = third.stream.read_to_end(&mut rest);
        soon("the daemon's end", end).await.unwrap();
        drop(third);
        soon("the slot", vm.slot_released(0)).await.unwrap();
    })
    .await;
}

/// A builder that succeeds where it has nothing of the guest, is nobody in particular there, and has the tools that every sandbox has.
const IN_SANDBOX: &str = r#"
    for path in /root /usr /home /run /etc/shadow; do
        if [ -e $path ]; then echo "$path is there"; exit 1; fi
    done
    while read -r key user rest; do
        if [ "$key $user" = "Uid: 0" ]; then echo "it is root"; exit 1; fi
    done < /proc/self/status
    [ -d "$NIX_BUILD_TOP" ] && echo built > $out"#;

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_in_a_sandbox_by_users_of_their_own_and_nothing_is_substituted() {
    for_each_image(async |image, dir| {
        let vm = boot_of(copy(image, "builds", dir)).await;
        assert_eq!(in_guest(&vm, &build(IN_SANDBOX)).await, "built\n");
        let show = "nix --extra-experimental-features nix-command";
        let settings = in_guest(
            &vm,
            &format!("{show} config show 2>/dev/null || {show} show-config"),
        )
        .await;
        for setting in [
            "substitute = false",
            "sandbox = true",
            "sandbox-fallback = false",
        ] {
            assert!(
                settings.lines().any(|line| line == setting),
                "{setting}: {settings}"
            );
        }
        let users = in_guest(&vm, "grep ^nixbld: /etc/group").await;
        assert_eq!(users.matches("nixbld").count() - 1, 32, "{users}");
        in_guest(&vm, "xpool-guest warm").await;
    })
    .await;
}

async fn shell(vm: &QemuVm, command: &str, terminal: Option<ShellTerminal>) -> (Vec<String>, i64) {
    let command = command.to_owned();
    let mut shell = vm
        .open_shell(ShellProgram { command, terminal })
        .await
        .unwrap();
    shell.streams[0].write_all(b"in\n").await.unwrap();
    let mut said = Vec::new();
    for stream in &mut shell.streams[1..] {
        let mut text = String::new();
        soon("a shell's output", stream.read_to_string(&mut text))
            .await
            .unwrap();
        said.push(text);
    }
    (said, soon("a shell's end", shell.ended).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_three_streams_or_a_terminal_and_leaves_nothing() {
    for_each_image(async |image, dir| {
        let vm = boot_of(copy(image, "shells", dir)).await;
        let command = "read -r line; echo \"$line $HOME\"; echo errors >&2; sleep 3000 & exit 7";
        let (said, status) = shell(&vm, command, None).await;
        assert_eq!(said, ["in /root\n", "errors\n"]);
        assert_eq!(status, 7);
        let terminal = ShellTerminal {
            rows: 30,
            columns: 100,
            kind: "xterm".to_owned(),
        };
        let command = "stty -echo; read -r line; echo \"$line $TERM\"; stty size; tty >/dev/null && nix-store --version";
        let (said, status) = shell(&vm, command, Some(terminal)).await;
        let version = &image.manifest.nix_version;
        assert!(said[0].contains("in xterm\r\n30 100\r\n"), "{said:?}");
        assert!(said[0].contains(&format!("{version}\r\n")), "{said:?}");
        assert_eq!(status, 0);
        let left = "for line in /proc/[0-9]*/cmdline; do grep -sqz '^3000$' $line && echo $line; done; true";
        assert_eq!(in_guest(&vm, left).await, "");
    })
    .await;
}
