//! A manager whose sockets somebody else has opened, as systemd does it (`systemd-socket-activate`).

use std::fs::{self, File};
use std::process::{Child, Command};

use crate::common::{Installation, Serving, nixes::is_there, skip};
use insta::assert_snapshot;

const ACTIVATE: &str = "systemd-socket-activate";

/// Has somebody listen in the manager's place, who starts it when somebody comes.
fn activate(installation: &Installation, places: &[String]) -> Child {
    let serve = installation.command(&["serve"]);
    let mut command = Command::new(ACTIVATE);
    command.args(places.iter().flat_map(|place| ["-l", place]));
    // It hands on no other variable.
    let variables = serve
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    command.args(variables.flat_map(|(name, value)| ["-E".to_owned(), format!("{name}={value}")]));
    command.args(["-E", "PATH"]);
    command.arg(serve.get_program()).args(serve.get_args());
    let log = File::create(installation.path().join("serve.log")).unwrap();
    let child = command.stderr(log).spawn().unwrap();
    installation.until("somebody listens", || {
        installation.logs().contains("Listening")
    });
    child
}

/// The manager's places, as it is configured.
fn places(installation: &Installation) -> Vec<String> {
    let state = installation.state();
    fs::create_dir(&state).unwrap();
    let config = fs::read_to_string(installation.path().join("xpool.toml")).unwrap();
    let gateway = config.split('"').nth(1).unwrap().to_owned();
    let sockets = ["control.sock", "connect.sock", "shell.sock"];
    let sockets = sockets.map(|name| state.join(name).display().to_string());
    sockets.into_iter().chain([gateway]).collect()
}

#[test]
fn who_comes_has_the_manager_started_and_nix_is_told_of_it_after_its_end() {
    if !is_there(ACTIVATE) {
        return skip(
            "who_comes_has_the_manager_started_and_nix_is_told_of_it_after_its_end",
            "there is no systemd-socket-activate",
        );
    }
    let installation = Installation::new("");
    let places = places(&installation);
    let child = activate(&installation, &places);
    let mut serving = Serving { child };
    let status = installation.ok(&["status"]);
    let gateway = &places[3];
    assert!(
        status.contains(&format!("gateway on {gateway}")),
        "the address is the given socket's: {status}"
    );
    let conf = fs::read_to_string(installation.state().join("ssh_config")).unwrap();
    let port = gateway.rsplit_once(':').unwrap().1;
    assert!(conf.contains(&format!("Port {port}")), "{conf}");
    let machines = installation.state().join("machines");
    let told = fs::read_to_string(&machines).unwrap();
    assert!(told.lines().count() >= 8, "{told}");

    let down = installation.run(&["down"]);
    assert_eq!(serving.ended(), Some(0), "{}", installation.logs());
    let last = down.stderr.lines().last().unwrap();
    assert_eq!(
        last,
        "It is started again when somebody comes; `systemctl stop xpool.socket` (with `--user`, if it is yours) keeps it down."
    );
    // For who opened them, the sockets and what leads to them are still there.
    assert_eq!(fs::read_to_string(&machines).unwrap(), told);
    assert!(places[..3].iter().all(|place| fs::exists(place).unwrap()));
}

#[test]
fn sockets_that_are_nobodys_are_refused() {
    let test = "sockets_that_are_nobodys_are_refused";
    if !is_there(ACTIVATE) {
        return skip(test, "there is no systemd-socket-activate");
    }
    let installation = Installation::new("");
    let mut places = places(&installation);
    places[1] = places[1].replace("connect", "other");
    let child = activate(&installation, &places);
    let mut serving = Serving { child };
    installation.run(&["status"]);
    assert_eq!(serving.ended(), Some(1));
    let said = installation.logs();
    let said = said.replace(installation.path().to_str().unwrap(), "[DIR]");
    let error = said.split_once("error: ").unwrap().1;
    assert_snapshot!(error, @r"
    the service manager has opened a socket at `[DIR]/state/other.sock`, and a manager listens at `[DIR]/state/control.sock`, `[DIR]/state/connect.sock`, `[DIR]/state/shell.sock`

    hint: see `ListenStream` in the unit of the socket, and `--state-dir` in that of the service
    ");
}

#[test]
fn a_manager_does_not_take_the_place_of_who_listens_there() {
    let installation = Installation::new("");
    fs::create_dir(installation.state()).unwrap();
    let socket = installation.state().join("connect.sock");
    let _systemd = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let said = installation.run(&["serve"]);
    assert_eq!(said.code, Some(1));
    assert_snapshot!(said.stderr, @r"
    error: somebody listens at `[DIR]/state/connect.sock`, and it is no manager

    hint: systemd perhaps: `systemctl start xpool` has it start the manager, `systemctl stop xpool.socket` lets you start one
    ");
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
}
