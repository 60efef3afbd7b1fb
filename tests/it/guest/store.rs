//! `store-register`: paths of the host's store are made known to the guest's Nix.

use std::fs;

use super::port::Port;
use super::root::{Guest, Running, Shell, in_each_shell};

/// Stands for nix-store: keeps what it is given. By `exec`, since it must be seen to wait for its input.
const KEEPS: &str = "echo \"NIX_REMOTE=${NIX_REMOTE-}\" >>/calls; exec cat >/registered";

/// Stands for sqlite3: the same with the statements that it is given.
const EDITS: &str = "exec cat >/edited";

/// The same, one that fails when it has read its input, and says these lines.
fn fails_with(lines: &[&str]) -> String {
    let says: Vec<String> = lines
        .iter()
        .map(|line| format!("print \"{line}\"; "))
        .collect();
    format!("exec awk 'END {{ {}exit 1 }}' >&2", says.concat())
}

/// A path in the format of `nix-store --load-db`.
fn registration(name: &str, references: &[&str]) -> String {
    let mut lines = vec![
        format!("/nix/store/{name}"),
        "0".repeat(64),
        "120".to_owned(),
        String::new(),
        references.len().to_string(),
    ];
    lines.extend(references.iter().map(|name| format!("/nix/store/{name}")));
    lines.join("\n") + "\n"
}

/// A guest that serves the port of its store.
struct Registrar {
    guest: Guest,
    port: Port,
    running: Running,
}

impl Registrar {
    #[track_caller]
    fn new(shell: Shell, nix_store: &str) -> Self {
        let guest = Guest::new(shell);
        guest.program("nix-store", nix_store);
        guest.program("sqlite3", EDITS);
        let port = Port::of_lines(&guest, "xpool.store");
        let running = guest.start(&["store-register"]);
        assert_eq!(port.line(), "ready");
        Self {
            guest,
            port,
            running,
        }
    }

    #[track_caller]
    fn register(&self, text: &str) -> String {
        self.register_with(text, "")
    }

    /// The same, with content addresses.
    #[track_caller]
    fn register_with(&self, text: &str, addresses: &str) -> String {
        let request = format!("{} {}\n{text}{addresses}", text.len(), addresses.len());
        self.port.send(request.as_bytes());
        self.port.line()
    }
}

#[test]
fn a_registration_arrives_whole_and_is_answered() {
    in_each_shell("a_registration_arrives_whole_and_is_answered", |shell| {
        let registrar = Registrar::new(shell, KEEPS);
        // It waits for its input already, and it asks no daemon.
        let calls = registrar.guest.calls();
        let is_called = |call: &str| calls.iter().any(|line| line == call);
        assert!(
            is_called("nix-store --load-db") && is_called("NIX_REMOTE="),
            "{calls:?}"
        );
        assert!(
            is_called("sqlite3 -batch -bail /nix/var/nix/db/db.sqlite"),
            "{calls:?}"
        );

        let many: Vec<String> = (0..300)
            .map(|n| registration(&format!("{n:032}-input"), &["a-b", "c"]))
            .collect();
        let text = many.concat();
        assert_eq!(registrar.register(&text), "done");
        assert_eq!(registrar.guest.read("/registered"), text);
        assert_eq!(registrar.guest.calls(), calls, "something is started again");
    });
}

#[test]
fn content_addresses_are_written_into_nixs_database() {
    in_each_shell(
        "content_addresses_are_written_into_nixs_database",
        |shell| {
            let registrar = Registrar::new(shell, KEEPS);
            let path = "/nix/store/0-a";
            let text = registration("0-a", &[]);
            for address in ["text:sha256:1a", "fixed:r:sha256:2b"] {
                let addresses = format!("{path} {address}\n");
                assert_eq!(registrar.register_with(&text, &addresses), "done");
                let edited = format!(
                    ".timeout 60000\nBEGIN;\nUPDATE ValidPaths SET ca = '{address}' WHERE path = '{path}';\nCOMMIT;\n"
                );
                assert_eq!(registrar.guest.read("/edited"), edited);
            }
            registrar
                .guest
                .program("sqlite3", &fails_with(&["the database is locked"]));
            let addresses = format!("{path} text:sha256:1a\n");
            // One is started already, and the next one fails.
            assert_eq!(
                registrar.register_with(&text, &addresses),
                "failed: the database is locked"
            );
            assert_eq!(registrar.register(&text), "done");
        },
    );
}

#[test]
fn a_nix_store_that_fails_is_answered_with_its_words_and_the_next_one_goes_well() {
    in_each_shell(
        "a_nix_store_that_fails_is_answered_with_its_words_and_the_next_one_goes_well",
        |shell| {
            let registrar = Registrar::new(
                shell,
                &fails_with(&["error: the database is locked", "try again"]),
            );
            let text = registration("a", &[]);
            let told = "failed: error: the database is locked try again";
            assert_eq!(registrar.register(&text), told);

            registrar.guest.program("nix-store", KEEPS);
            assert_eq!(registrar.register(&text), "done");
            assert_eq!(registrar.guest.read("/registered"), text);
        },
    );
}

#[test]
fn a_nix_store_that_has_much_to_say_is_answered_with_the_end_of_it() {
    in_each_shell(
        "a_nix_store_that_has_much_to_say_is_answered_with_the_end_of_it",
        |shell| {
            let much = "x".repeat(5000) + ".";
            let registrar = Registrar::new(shell, &fails_with(&[&much]));
            let told = format!("failed: {}.", "x".repeat(1998));
            assert_eq!(registrar.register(""), told);
        },
    );
}

#[test]
fn a_request_that_is_not_understood_is_answered_and_the_next_one_served() {
    in_each_shell(
        "a_request_that_is_not_understood_is_answered_and_the_next_one_served",
        |shell| {
            let registrar = Registrar::new(shell, KEEPS);
            for request in ["unmount ", "12 x", "12 ", "1 2 3", "-1 0", " "] {
                registrar.port.send(format!("{request}\n").as_bytes());
                let told = format!("failed: the request {request} is not understood");
                assert_eq!(registrar.port.line(), told);
            }
            assert_eq!(registrar.register(""), "done");
        },
    );
}

#[test]
fn a_second_registration_leaves_out_what_the_guest_has_itself() {
    in_each_shell(
        "a_second_registration_leaves_out_what_the_guest_has_itself",
        |shell| {
            let registrar = Registrar::new(shell, KEEPS);
            let guest = &registrar.guest;
            for name in ["own", "own-too", ".links"] {
                fs::create_dir(guest.path(&format!("/nix/store/{name}"))).unwrap();
            }
            let own = registration("own", &["other", "own"]);
            let other = registration("other", &["own-too", "own", "third"]);
            let own_too = registration("own-too", &[]);
            let third = registration("third", &[]);
            let text = [own, other.clone(), own_too, third.clone()].concat();

            // The first one is of a guest that has nothing of the host's yet.
            assert_eq!(registrar.register(&text), "done");
            assert_eq!(guest.read("/registered"), text);
            assert_eq!(guest.read("/dropped"), "");

            assert_eq!(registrar.register(&text), "done");
            assert_eq!(guest.read("/registered"), other + &third);
            // What was looked for and not there may be there now.
            assert_eq!(guest.read("/dropped"), "2\n");
        },
    );
}

#[test]
fn a_guest_that_had_a_session_before_keeps_what_it_has_itself() {
    in_each_shell(
        "a_guest_that_had_a_session_before_keeps_what_it_has_itself",
        |shell| {
            let registrar = Registrar::new(shell, KEEPS);
            let guest = &registrar.guest;
            fs::create_dir(guest.path("/nix/store/own")).unwrap();
            assert_eq!(guest.run(&["session", "0"]).code, Some(1));

            let other = registration("other", &[]);
            let text = registration("own", &["other"]) + &other;
            assert_eq!(registrar.register(&text), "done");
            assert_eq!(guest.read("/registered"), other);
        },
    );
}

#[test]
fn a_store_that_cannot_be_mounted_is_told_with_the_registration() {
    in_each_shell(
        "a_store_that_cannot_be_mounted_is_told_with_the_registration",
        |shell| {
            let registrar = Registrar::new(shell, KEEPS);
            registrar.port.send(b"mount\n");
            let told = registrar.register(&registration("a", &[]));
            assert!(told.starts_with("failed: "), "{told}");
            let why = "xpool-guest: the host's store cannot be mounted";
            assert!(told.contains(why), "{told}");
        },
    );
}

#[test]
fn when_the_host_closes_the_port_the_registrar_ends_and_leaves_nothing() {
    in_each_shell(
        "when_the_host_closes_the_port_the_registrar_ends_and_leaves_nothing",
        |shell| {
            let Registrar {
                guest,
                port,
                running,
            } = Registrar::new(shell, KEEPS);
            port.close();
            running.said();
            guest.until_nothing_runs();
        },
    );
}

#[test]
fn a_registrar_without_its_port_says_so() {
    in_each_shell("a_registrar_without_its_port_says_so", |shell| {
        let guest = Guest::new(shell);
        // A folder: a name that is not there would be made.
        fs::create_dir(guest.path("/dev/virtio-ports/xpool.store")).unwrap();
        let said = guest.run(&["store-register"]);
        assert_ne!(said.code, Some(0));
        assert!(
            said.stderr.contains("xpool.store"),
            "{:?}: {}",
            said.code,
            said.stderr
        );
        assert!(guest.calls().is_empty(), "{:?}", guest.calls());
    });
}
