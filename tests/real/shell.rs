//! `xpool ssh` with real guests: streams, exit codes, terminals, and what is left when somebody goes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use crate::common::nix::{Nix, sleeper, started};
use crate::common::{Installation, Said, ended, signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcgetwinsize, tcsetwinsize};

const CONFIG: &str = "[pool]\nmax-vms = 2\n";

/// An installation with a VM that nobody uses, `riscv64-1`.
fn with_vm() -> Installation {
    let installation = Installation::with_real_images(CONFIG);
    installation.ok(&["up", "riscv64"]);
    installation
}

fn in_vm(installation: &Installation, command: &str) -> Said {
    installation.run(&["ssh", "riscv64-1", "--", command])
}

#[test]
fn a_command_has_its_streams_apart_and_its_exit_code_is_passed_on() {
    let installation = with_vm();
    let said = in_vm(
        &installation,
        "echo out; echo err >&2; nix-store --version; exit 7",
    );
    assert_eq!(said.code, Some(7), "{said:?}");
    assert!(said.stdout.starts_with("out\nnix-store (Nix) "), "{said:?}");
    assert_eq!(said.stderr, "err\n");
    assert_eq!(in_vm(&installation, "kill -TERM $$").code, Some(143));
    // What a command leaves behind ends with it, and holds nobody up.
    let said = in_vm(&installation, "setsid sleep 1000 & echo done");
    assert_eq!((said.code, &*said.stdout), (Some(0), "done\n"));
    let left = in_vm(&installation, "ps | grep '[s]leep 1000' || echo none");
    assert_eq!(left.stdout, "none\n");
    installation.until("the VM rests again", || {
        installation.list("riscv64-linux", "vms")[0]["paused"] == true
    });
}

#[test]
fn a_megabyte_goes_in_to_its_end_and_comes_out_equal() {
    let installation = with_vm();
    let file = installation.path().join("input");
    let content: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &content).unwrap();
    let output = installation
        .command(&["ssh", "riscv64-1", "--", "cat; echo end >&2"])
        .stdin(File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", output.stderr);
    assert!(output.stdout == content, "{} bytes", output.stdout.len());
    assert_eq!(output.stderr, b"end\n");
}

#[test]
fn a_system_gives_a_vm_of_its_own_that_ends_with_the_command() {
    let installation = Installation::with_real_images("[pool]\nreuse = \"always\"\n");
    // It starts the manager.
    let said = installation.run(&["ssh", "riscv64", "--", "hostname; uname -m"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stdout, "riscv64-1\nriscv64\n");
    installation.until("the VM is gone", || {
        installation.list("riscv64-linux", "vms").is_empty()
    });
    let said = installation.run(&["ssh", "riscv64", "--", "hostname"]);
    assert_eq!(said.stdout, "riscv64-2\n", "{said:?}");
}

#[test]
fn a_second_shell_is_refused_and_a_killed_client_leaves_nothing() {
    let installation = with_vm();
    let mut byte = [0];
    let mut first = background(&installation, "setsid sleep 1234 & echo; cat");
    let stdout = first.stdout.as_mut().unwrap();
    stdout.read_exact(&mut byte).unwrap();
    let said = in_vm(&installation, "true");
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.stderr,
        "error: no shell in riscv64-1: somebody has a shell in it already, and it has room for one\n"
    );
    signal(first.id(), Signal::KILL);
    ended(&mut first);
    let left = in_vm(&installation, "ps | grep '[s]leep 1234' || echo none");
    assert_eq!((left.code, &*left.stdout), (Some(0), "none\n"), "{left:?}");
    // One that is interrupted as well, and says so.
    let mut second = background(&installation, "echo; sleep 1235");
    second
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    signal(second.id(), Signal::INT);
    assert_eq!(ended(&mut second), Some(130));
    let left = in_vm(&installation, "ps | grep '[s]leep 1235' || echo none");
    assert_eq!(left.stdout, "none\n", "{left:?}");
}

#[test]
fn a_shell_runs_beside_a_build_and_says_why_it_ended() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let mut build = nix
        .build(&sleeper(10))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    installation.until("it builds", || {
        in_vm(&installation, "ps | grep '[s]leep 10'").code == Some(0)
    });
    let mut shell = background(&installation, "sleep 1000");
    assert_eq!(ended(&mut build), Some(0));
    assert_eq!(ended(&mut shell), Some(255));
    let mut said = String::new();
    let mut stderr = shell.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "error: riscv64-1 has had its build and is gone\n");
}

#[test]
fn a_vm_that_is_taken_down_says_so_in_its_shells() {
    let installation = with_vm();
    let mut shell = background(&installation, "echo; sleep 1000");
    let mut byte = [0];
    shell
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    installation.ok(&["down", "riscv64", "--now"]);
    assert_eq!(ended(&mut shell), Some(255));
    let mut said = String::new();
    shell.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "error: riscv64-1 was stopped\n");
}

fn background(installation: &Installation, command: &str) -> Child {
    installation
        .command(&["ssh", "riscv64-1", "--", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A terminal, and xpool in it.
struct Terminal {
    master: File,
    child: Child,
    /// What was shown and not looked at yet.
    shown: String,
}

impl Terminal {
    fn open(installation: &Installation, args: &[&str]) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let master = File::from(master);
        resize(&master, 33, 77);
        // A session of its own, whose terminal is the first that it opens.
        let template = installation.command(args);
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(template.get_program());
        command.args(template.get_args());
        for (name, value) in template.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let slave = || File::options().read(true).write(true).open(&name).unwrap();
        let child = command
            .env("TERM", "vt100")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let shown = String::new();
        Self {
            master,
            child,
            shown,
        }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until this text is shown, and forgets what came before and with it.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        let end = crate::common::now() + crate::common::PATIENCE;
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = end.saturating_duration_since(crate::common::now());
            let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
            poll(&mut ready, Some(&left.try_into().unwrap())).unwrap();
            assert!(
                !ready[0].revents().is_empty(),
                "no `{text}` in `{}`",
                self.shown
            );
            // Ends when nobody has the terminal open any more.
            let length = self.master.read(&mut chunk).unwrap_or(0);
            assert!(length > 0, "no `{text}` in `{}`", self.shown);
            self.shown
                .push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    }
}

fn resize(master: &File, rows: u16, columns: u16) {
    let mut size: Winsize = tcgetwinsize(master).unwrap();
    (size.ws_row, size.ws_col) = (rows, columns);
    tcsetwinsize(master.as_fd(), size).unwrap();
}

#[test]
fn a_terminal_is_as_large_there_as_here_and_ctrl_c_reaches_what_runs() {
    let installation = with_vm();
    let mut terminal = Terminal::open(&installation, &["ssh", "riscv64-1"]);
    let before = tcgetattr(&terminal.master).unwrap();
    terminal.shows("# ");
    terminal.types("echo $TERM at $(stty size)\r");
    terminal.shows("vt100 at 33 77");
    resize(&terminal.master, 44, 101);
    terminal.types("until [ \"$(stty size)\" = '44 101' ]; do sleep 0.1; done; echo re''sized\r");
    terminal.shows("resized");
    // While bash is still about to start it, Ctrl-C would be for bash.
    terminal.types("sh -c 'echo runs''now; exec sleep 1000'\r");
    terminal.shows("runsnow");
    terminal.types("\x03");
    terminal.types("echo code $?\r");
    terminal.shows("code 130");
    // Whoever holds the terminal open does not keep the shell.
    terminal.types("sleep 1000 & exit 9\r");
    assert_eq!(ended(&mut terminal.child), Some(9));
    let after = tcgetattr(&terminal.master).unwrap();
    assert_eq!(before.local_modes, after.local_modes);

    let command = ["ssh", "riscv64-1", "--", "echo ready; exec sleep 1000"];
    let mut terminal = Terminal::open(&installation, &command);
    terminal.shows("ready");
    terminal.types("\x03");
    assert_eq!(ended(&mut terminal.child), Some(130));
    // A terminal that is closed takes with it what runs there.
    let command = ["ssh", "riscv64-1", "--", "echo ready; sleep 1236"];
    let mut terminal = Terminal::open(&installation, &command);
    terminal.shows("ready");
    let Terminal {
        master, mut child, ..
    } = terminal;
    drop(master);
    ended(&mut child);
    let left = in_vm(&installation, "ps | grep '[s]leep 1236' || echo none");
    assert_eq!(left.stdout, "none\n", "{left:?}");
}
