//! `identity` and `thaw`: what makes a copy of a guest another one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;

use super::port::Port;
use super::root::{Guest, in_each_shell, skipped_for_a_user};
use crate::common;

const NAMING: &str = "the host name of a namespace can be written to /proc only by root";
/// 128 digits, as the manager sends.
const RANDOMNESS: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\
                          00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";

#[track_caller]
fn machine_id(guest: &Guest) -> String {
    let id = guest.read("/etc/machine-id");
    let id = id.strip_suffix('\n').unwrap();
    let digits = "0123456789abcdef";
    assert!(
        id.len() == 32 && id.chars().all(|digit| digits.contains(digit)),
        "not a machine's id: {id}"
    );
    id.to_owned()
}

#[test]
fn a_guest_is_given_its_names_and_an_id() {
    let test = "a_guest_is_given_its_names_and_an_id";
    if skipped_for_a_user(test, NAMING) {
        return;
    }
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        let said = guest.run(&["identity", "vm-1"]);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));

        assert_eq!(guest.host_name(), "vm-1");
        assert_eq!(guest.read("/etc/hostname"), "vm-1\n");
        let hosts = "127.0.0.1 localhost vm-1\n::1 localhost\n";
        assert_eq!(guest.read("/etc/hosts"), hosts);
        let first = machine_id(&guest);

        assert_eq!(guest.run(&["identity", "vm-2"]).code, Some(0));
        assert_eq!(guest.host_name(), "vm-2");
        assert_ne!(machine_id(&guest), first);
    });
}

#[test]
fn a_name_that_belongs_to_the_configuration_stays() {
    let test = "a_name_that_belongs_to_the_configuration_stays";
    if skipped_for_a_user(test, NAMING) {
        return;
    }
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        guest.write("/etc/configured", "by the distribution\n");
        for name in ["hostname", "hosts"] {
            symlink("configured", guest.path(&format!("/etc/{name}"))).unwrap();
        }
        assert_eq!(guest.run(&["identity", "vm-1"]).code, Some(0));

        assert_eq!(guest.read("/etc/configured"), "by the distribution\n");
        for name in ["hostname", "hosts"] {
            let file = guest.path(&format!("/etc/{name}"));
            assert!(file.is_symlink(), "{name} is a link no more");
        }
        assert_eq!(guest.host_name(), "vm-1");
        machine_id(&guest);
    });
}

#[test]
fn an_id_that_is_a_link_is_refused() {
    let test = "an_id_that_is_a_link_is_refused";
    if skipped_for_a_user(test, NAMING) {
        return;
    }
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        guest.write("/etc/shared-id", "of all copies\n");
        symlink("shared-id", guest.path("/etc/machine-id")).unwrap();
        let said = guest.run(&["identity", "vm-1"]);
        assert_eq!(said.code, Some(1));
        let told = "xpool-guest: /etc/machine-id is a link, and this guest needs one of its own\n";
        assert_eq!(said.stderr, told);
        assert_eq!(guest.read("/etc/shared-id"), "of all copies\n");
    });
}

#[test]
fn an_id_that_cannot_be_written_is_told() {
    let test = "an_id_that_cannot_be_written_is_told";
    if skipped_for_a_user(test, NAMING) {
        return;
    }
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        fs::create_dir(guest.path("/etc/machine-id")).unwrap();
        let said = guest.run(&["identity", "vm-1"]);
        assert_eq!(said.code, Some(1));
        let told = "xpool-guest: /etc/machine-id cannot be written\n";
        assert!(said.stderr.ends_with(told), "{}", said.stderr);
    });
}

#[test]
fn a_copy_without_enough_randomness_is_not_thawed() {
    in_each_shell("a_copy_without_enough_randomness_is_not_thawed", |shell| {
        let guest = Guest::new(shell);
        let daemon = guest.daemon();
        let _port = Port::new(&guest, "xpool.0");
        let before = guest.host_name();
        let short = format!("{}\n", &RANDOMNESS[..63]);
        for (stdin, why) in [
            ("", "no randomness came"),
            ("\n", "too little randomness came"),
            (short.as_str(), "too little randomness came"),
        ] {
            let said = guest.run_with(stdin, &["thaw", "vm-9"]);
            assert_eq!(said.code, Some(1), "{stdin:?}");
            assert_eq!(said.stderr, format!("xpool-guest: {why}\n"));
        }
        assert_eq!(guest.host_name(), before);
        assert!(!guest.path("/etc/machine-id").exists());
        assert!(daemon.is_alone(), "a session went into it");
    });
}

#[test]
fn a_copy_whose_random_generator_does_not_begin_anew_is_not_thawed() {
    in_each_shell(
        "a_copy_whose_random_generator_does_not_begin_anew_is_not_thawed",
        |shell| {
            let guest = Guest::new(shell);
            let daemon = guest.daemon();
            let port = Port::new(&guest, "xpool.0");
            // Without the capability that it needs, even for root of all namespaces.
            let args = ["--bounding-set=-sys_admin", "xpool-guest", "ahead", "0"];
            let ahead = guest.start_program("setpriv", &args, "");
            let _stream = daemon.accept();
            let said = ahead.said();
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            let said = guest.run_with(RANDOMNESS, &["thaw", "vm-9"]);
            assert_eq!(said.code, Some(1));
            let told = "xpool-guest: the random generator does not reseed: ";
            assert!(said.stderr.contains(told), "{}", said.stderr);
            assert!(!port.is_open(), "a session went into it");
        },
    );
}

#[test]
fn a_copy_that_is_thawed_has_names_of_its_own_and_goes_on_as_a_session() {
    let test = "a_copy_that_is_thawed_has_names_of_its_own_and_goes_on_as_a_session";
    let why = "only root of the whole machine may have the random generator begin anew";
    if skipped_for_a_user(test, why) {
        return;
    }
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        let (port, daemon) = (Port::new(&guest, "xpool.3"), guest.daemon());
        let ahead = guest.start_program("xpool-guest", &["ahead", "3"], "");
        let mut stream = daemon.accept();
        assert_eq!(ahead.said().code, Some(0));
        // What is sent waits, as nothing goes into a guest that is not thawed.
        assert!(!port.is_open());
        let names = "resolv nameserver 10.0.2.3\nhosts 192.0.2.7 git.corp\nnetrc machine git.corp\nnetrc   password a\\\\b\\n\n";
        let input = format!("{RANDOMNESS}{names}");
        let running = guest.start_program("xpool-guest", &["thaw", "vm-9"], &input);
        common::until("the port is open", String::new, || port.is_open());
        assert_eq!(guest.host_name(), "vm-9");
        assert_eq!(guest.read("/etc/hostname"), "vm-9\n");
        let hosts = "127.0.0.1 localhost vm-9\n::1 localhost\n192.0.2.7 git.corp\n";
        assert_eq!(guest.read("/etc/hosts"), hosts);
        assert_eq!(guest.read("/etc/resolv.conf"), "nameserver 10.0.2.3\n");
        assert_eq!(
            guest.read("/run/xpool/netrc"),
            "machine git.corp\npassword a\\\\b\\n\n"
        );
        machine_id(&guest);
        let console = guest.read("/dev/console");
        assert_eq!(console, "xpool: this copy of a saved guest is vm-9\n");
        // A first session is none that has used the guest.
        assert!(!guest.path("/run/xpool-used").exists());

        port.send(b"cxin");
        let mut got = [0; 4];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"cxin");
        stream.write_all(b"oixd").unwrap();
        assert_eq!(port.receive(4), b"oixd");
        drop(stream);
        port.until_closed();
        running.said();
        guest.until_nothing_runs();
    });
}
