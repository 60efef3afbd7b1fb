//! QEMU's events, as far as anything here depends on them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::sync::watch;

use crate::vm::command::{port_id, shell_port_id};
use crate::vm::shell::OUTPUT;

/// How a guest's end came about, as QEMU tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vm) enum Fate {
    /// The guest reported a panic through pvpanic.
    Panicked,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest restarted, which `-no-reboot` makes an end.
    Restarted,
    /// Somebody sent QEMU a signal that it obeys.
    Signalled,
    /// There is no room for the VM's disk in this folder, and QEMU has paused the guest.
    DiskFull(PathBuf),
    /// Nothing can be asked of QEMU any more; the text says why.
    MonitorLost(String),
}

impl Fate {
    /// Whether QEMU does not end by itself although its guest is lost.
    pub(in crate::vm) fn asks_for_a_kill(&self) -> bool {
        matches!(self, Self::DiskFull(_) | Self::MonitorLost(_))
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::PoweredOff => f.write_str("the guest powered itself off"),
            Self::Restarted => {
                f.write_str("the guest restarted itself, as a panicking kernel does")
            }
            Self::Signalled => f.write_str("QEMU was told to end by a signal"),
            Self::DiskFull(folder) => write!(
                f,
                "this machine's disk is full: no room for the VM's disk in `{}`",
                folder.display()
            ),
            Self::MonitorLost(why) => write!(f, "QEMU's monitor connection was lost: {why}"),
        }
    }
}

/// Where events go: each to whoever waits for it.
#[derive(Debug)]
pub(in crate::vm) struct EventSinks {
    vm: String,
    /// Where the folders of VMs are.
    folder: PathBuf,
    fate: watch::Sender<Option<Fate>>,
    /// One per slot: counts what was heard of its port.
    ports: Vec<watch::Sender<u64>>,
    /// The same for the port of a shell's output.
    shell: watch::Sender<u64>,
}

/// The receiving ends of [`EventSinks`].
#[derive(Debug)]
pub(in crate::vm) struct EventSources {
    /// What the guest's end was, `None` until one is near. Closed when the monitor's connection has ended.
    pub(in crate::vm) fate: watch::Receiver<Option<Fate>>,
    /// One per slot: changes when the guest has opened or closed the port.
    pub(in crate::vm) ports: Vec<watch::Receiver<u64>>,
    /// The same for the port of a shell's output.
    pub(in crate::vm) shell: watch::Receiver<u64>,
}

/// Sinks and sources for the events of the VM `vm`, whose disk is somewhere in `folder`.
pub(in crate::vm) fn channels(vm: &str, folder: &Path, slots: u32) -> (EventSinks, EventSources) {
    let (fate, fate_told) = watch::channel(None);
    let (ports, ports_heard) = (0..slots).map(|_| watch::channel(0)).unzip();
    let (shell, shell_heard) = watch::channel(0);
    let sinks = EventSinks {
        vm: vm.to_owned(),
        folder: folder.to_owned(),
        fate,
        ports,
        shell,
    };
    let sources = EventSources {
        fate: fate_told,
        ports: ports_heard,
        shell: shell_heard,
    };
    (sinks, sources)
}

impl EventSinks {
    /// Takes one event as QEMU sent it.
    pub(super) fn take(&self, event: &Value) {
        let name = event["event"].as_str().unwrap_or_default();
        let data = &event["data"];
        tracing::debug!(vm = %self.vm, event = name, %data, "QEMU event");
        match name {
            "VSERPORT_CHANGE" => self.port_changed(data["id"].as_str().unwrap_or_default()),
            "GUEST_PANICKED" => self.tell(Fate::Panicked),
            "SHUTDOWN" => match data["reason"].as_str() {
                Some("guest-shutdown") => self.tell(Fate::PoweredOff),
                Some("guest-reset") => self.tell(Fate::Restarted),
                Some("guest-panic") => self.tell(Fate::Panicked),
                Some("host-signal") => self.tell(Fate::Signalled),
                _ => {}
            },
            "BLOCK_IO_ERROR" => self.disk_failed(data),
            _ => {}
        }
    }

    /// There will be no events any more.
    pub(super) fn lost(&self, why: String) {
        self.tell(Fate::MonitorLost(why));
    }

    /// A guest that is not paused has been told of the error, and lives with it.
    fn disk_failed(&self, data: &Value) {
        let action = data["action"].as_str().unwrap_or_default();
        let reason = data["reason"].as_str().unwrap_or_default();
        tracing::error!(vm = %self.vm, action, reason, "the VM's disk could not be used");
        if action == "stop" || data["nospace"] == true {
            self.tell(Fate::DiskFull(self.folder.clone()));
        }
    }

    /// The first word counts: a panic makes a shutdown of its own.
    fn tell(&self, fate: Fate) {
        self.fate.send_if_modified(|told| {
            let is_first = told.is_none();
            told.get_or_insert(fate);
            is_first
        });
    }

    fn port_changed(&self, id: &str) {
        let slots = (0..).map(port_id).zip(&self.ports);
        let ports = slots.chain([(shell_port_id(OUTPUT), &self.shell)]);
        for (_, port) in ports.filter(|(port, _)| port == id) {
            port.send_modify(|heard| *heard += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_panic_is_not_taken_for_the_shutdown_it_makes() {
        let (sinks, sources) = channels("riscv64-1", Path::new("/vms"), 1);
        sinks.take(&json!({"event": "GUEST_PANICKED", "data": {"action": "shutdown"}}));
        sinks.take(
            &json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}),
        );
        assert_eq!(*sources.fate.borrow(), Some(Fate::Panicked));
    }

    #[test]
    fn a_disk_without_room_is_an_end_and_one_with_an_error_is_not() {
        let (sinks, sources) = channels("riscv64-1", Path::new("/vms"), 1);
        let error = |action: &str, nospace: bool| {
            let data =
                json!({"operation": "write", "action": action, "nospace": nospace, "reason": "Oh"});
            sinks.take(&json!({"event": "BLOCK_IO_ERROR", "data": data}));
            sources.fate.borrow().as_ref().map(ToString::to_string)
        };
        assert_eq!(error("report", false), None);
        let full = "this machine's disk is full: no room for the VM's disk in `/vms`";
        assert_eq!(error("stop", true).as_deref(), Some(full));
    }

    #[test]
    fn a_port_hears_of_itself_only() {
        let (sinks, sources) = channels("riscv64-1", Path::new("/vms"), 2);
        sinks.take(&json!({"event": "VSERPORT_CHANGE", "data": {"id": "port1", "open": false}}));
        sinks.take(&json!({"event": "VSERPORT_CHANGE", "data": {"id": "port7", "open": false}}));
        sinks.take(&json!({"event": "VSERPORT_CHANGE", "data": {"id": "shell1", "open": true}}));
        sinks.take(&json!({"event": "VSERPORT_CHANGE"}));
        let heard: Vec<u64> = sources.ports.iter().map(|port| *port.borrow()).collect();
        assert_eq!(heard, [0, 1]);
        assert_eq!(*sources.shell.borrow(), 1);
    }
}
