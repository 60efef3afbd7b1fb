//! QEMU's events, as far as anything here depends on them.

use std::fmt;

use serde_json::Value;
use tokio::sync::watch;

use crate::vm::command::port_id;

/// How a guest's end came about, as QEMU tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum Fate {
    /// The guest reported a panic through pvpanic.
    Panicked,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest restarted, which `-no-reboot` makes an end.
    Restarted,
    /// Somebody sent QEMU a signal that it obeys.
    Signalled,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "the guest's kernel panicked",
            Self::PoweredOff => "the guest powered itself off",
            Self::Restarted => "the guest restarted itself, as a panicking kernel does",
            Self::Signalled => "QEMU was told to end by a signal",
        })
    }
}

/// Where events go: each to whoever waits for it.
#[derive(Debug)]
pub(in crate::vm) struct EventSinks {
    vm: String,
    fate: watch::Sender<Option<Fate>>,
    /// One per slot: counts what was heard of its port.
    ports: Vec<watch::Sender<u64>>,
}

/// The receiving ends of [`EventSinks`].
#[derive(Debug)]
pub(in crate::vm) struct EventSources {
    /// What the guest's end was, `None` until one is near. Closed when the monitor's connection has ended.
    pub(in crate::vm) fate: watch::Receiver<Option<Fate>>,
    /// One per slot: changes when the guest has opened or closed the port.
    pub(in crate::vm) ports: Vec<watch::Receiver<u64>>,
}

/// Sinks and sources for the events of the VM `vm`.
pub(in crate::vm) fn channels(vm: &str, slots: u32) -> (EventSinks, EventSources) {
    let (fate, fate_told) = watch::channel(None);
    let (ports, ports_heard) = (0..slots).map(|_| watch::channel(0)).unzip();
    let sinks = EventSinks {
        vm: vm.to_owned(),
        fate,
        ports,
    };
    let sources = EventSources {
        fate: fate_told,
        ports: ports_heard,
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
            "BLOCK_IO_ERROR" => {
                let action = data["action"].as_str().unwrap_or_default();
                let reason = data["reason"].as_str().unwrap_or_default();
                tracing::error!(vm = %self.vm, action, reason, "the VM's disk could not be written");
            }
            _ => {}
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
        let slots = (0..).zip(&self.ports);
        for (_, port) in slots.filter(|(slot, _)| port_id(*slot) == id) {
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
        let (sinks, sources) = channels("riscv64-1", 1);
        sinks.take(&json!({"event": "GUEST_PANICKED", "data": {"action": "shutdown"}}));
        sinks.take(
            &json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}),
        );
        assert_eq!(*sources.fate.borrow(), Some(Fate::Panicked));
    }

    #[test]
    fn a_port_hears_of_itself_only() {
        let (sinks, sources) = channels("riscv64-1", 2);
        sinks.take(&json!({"event": "VSERPORT_CHANGE", "data": {"id": "port1", "open": false}}));
        sinks.take(&json!({"event": "VSERPORT_CHANGE", "data": {"id": "port7", "open": false}}));
        sinks.take(&json!({"event": "VSERPORT_CHANGE"}));
        let heard: Vec<u64> = sources.ports.iter().map(|port| *port.borrow()).collect();
        assert_eq!(heard, [0, 1]);
    }
}
