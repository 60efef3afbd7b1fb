//! A status for tests of those who show it.

use super::{Counters, InputsWay, SystemStatus, VmView};
use crate::nix::System;
use crate::pool::Mode;
use crate::pool::decision::Figures;
use crate::pool::policy::{Reuse, Share};
use crate::pool::status::VmStage;

/// A pool that has nothing.
pub(crate) fn pool(system: System) -> SystemStatus {
    SystemStatus {
        system,
        mode: Mode::Open,
        max_vms: 1,
        up_limit: 64,
        kept: 0,
        reuse: Reuse::Never,
        share: Share::Host,
        warm: 0,
        forecast: None,
        inputs: InputsWay::Shared,
        vms: Vec::new(),
        sessions: Vec::new(),
        figures: Figures::default(),
        decision: None,
        start_failures: 0,
        degraded: false,
        start_failure: None,
        retry_in_s: None,
        shortage: None,
        held: None,
        counters: Counters::default(),
    }
}

/// A VM that has just begun.
pub(crate) fn vm(name: &str, state: VmStage) -> VmView {
    VmView {
        name: name.to_owned(),
        share: Share::Host,
        vcpus: 1,
        state,
        stage: "waiting for the guest agent".to_owned(),
        age_s: 0,
        boot_ms: None,
        idle_s: None,
        sessions: 0,
        paused: false,
        pid: None,
        memory_mib: None,
        console_log: "log".into(),
    }
}
