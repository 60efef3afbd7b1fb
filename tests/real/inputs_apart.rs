//! VMs that see nothing of this machine's store, because the configuration says so. `scripts/test` makes the images and
//! runs it.

use std::fs;

use crate::common::inputs::{Elsewhere, SHARED, copied, inputs};
use crate::common::nix::{Nix, started, tooled};
use crate::common::{Installation, ended};

const SYSTEM: &str = "riscv64-linux";

/// The arguments of the one QEMU that runs.
#[track_caller]
fn qemu_arguments(installation: &Installation) -> String {
    let [qemu] = installation.qemus()[..] else {
        panic!("not one QEMU: {}", installation.logs())
    };
    let arguments = fs::read(format!("/proc/{qemu}/cmdline")).unwrap();
    String::from_utf8_lossy(&arguments).replace('\0', " ")
}

/// Has something built with two inputs; the arguments of the QEMU that it was built by, and the client's log.
#[track_caller]
fn arguments_and_log(nix: &Nix<'_>, number: u32) -> (String, String) {
    let installation = nix.installation;
    let extra = format!(r#"input = builtins.toFile "input" "input {number}\n";"#);
    let script = "echo the build runs; sleep 3; cp $input $out";
    let expression = tooled(SYSTEM, "reads", &extra, script);
    let mut running = nix.start(&expression);
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    let arguments = qemu_arguments(installation);
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(nix.results(&expression), [format!("input {number}\n")]);
    installation.until("its VM is gone", || installation.qemus().is_empty());
    (arguments, running.log())
}

fn shows_a_store(arguments: &str) -> bool {
    ["fsdev", "virtio-9p", "xpool.store", "xpool-store"]
        .into_iter()
        .any(|word| arguments.contains(word))
}

#[test]
fn a_pool_that_shares_nothing_has_vms_that_cannot_see_the_store() {
    let (installation, _serving) = started(&format!("{SHARED}store.share = \"none\"\n"));
    let nix = Nix::new(&installation);
    let (arguments, log) = arguments_and_log(&nix, 1);
    assert!(!shows_a_store(&arguments), "{arguments}");
    assert_eq!(copied(&log).len(), 3, "{log}");
    assert_eq!(inputs(&installation), []);
}

#[test]
fn a_key_from_elsewhere_gets_vms_that_cannot_see_the_store() {
    let elsewhere = Elsewhere::new();
    let key = elsewhere.public_key.trim();
    let config = format!("{SHARED}[keys.elsewhere]\npublic-key = \"{key}\"\n");
    let (installation, _serving) = started(&config);
    let (arguments, log) = arguments_and_log(&elsewhere.client(&installation), 1);
    assert!(installation.logs().contains("client=\"elsewhere "));
    assert!(!shows_a_store(&arguments), "{arguments}");
    assert_eq!(copied(&log).len(), 3, "{log}");
    assert_eq!(inputs(&installation), []);

    // A client of this machine does, of the same pool.
    let (arguments, log) = arguments_and_log(&Nix::new(&installation), 2);
    assert!(shows_a_store(&arguments), "{arguments}");
    assert_eq!(copied(&log), [""; 0], "{log}");
    assert_eq!(inputs(&installation), [(3, 3)]);
}
