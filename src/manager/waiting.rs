//! What a session that waits is told. Pure.

use crate::pool::hold::Hold;
use crate::pool::policy::Share;
use crate::pool::status::{PoolStatus, VmStage};

use super::status::VmView;

/// How many sessions are served before one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Of those that want a VM of either kind.
    pub(super) all: usize,
    /// Of those that want one of its own kind.
    pub(super) alike: usize,
}

/// The text for a session that waits for a VM of this kind; `slots` is how many sessions a VM serves.
pub(super) fn text(
    pool: &PoolStatus,
    vms: &[VmView],
    share: Share,
    before: Ahead,
    slots: usize,
) -> String {
    let booting: Vec<&VmView> = vms
        .iter()
        .filter(|vm| vm.state == VmStage::Booting && vm.share == share)
        .collect();
    let ahead = match before.all {
        0 => String::new(),
        n => format!(", {n} ahead"),
    };
    let own = booting.get(before.alike / slots);
    let is_told = |hold: &Hold| !matches!(hold, Hold::MaxVms { .. } | Hold::BackOff);
    if let (None, Some(hold)) = (own, pool.held.filter(is_told)) {
        return format!("{hold}{ahead}");
    }
    if let Some(vm) = own.or(booting.last()) {
        return format!("starting {}: {}{ahead}", vm.name, vm.stage);
    }
    if let (Some(failure), Some(seconds)) = (&pool.start_failure, pool.retry_in_s) {
        // Its further lines are for who gets it as an error in the end.
        let failure = failure.lines().next().unwrap_or_default();
        let within = rough(seconds);
        return format!("the last start failed: {failure}; trying again within {within}{ahead}");
    }
    let live = vms.len();
    if live >= pool.max_vms as usize {
        let state = if vms.iter().any(|vm| vm.state == VmStage::Pinned) {
            "busy or pinned"
        } else {
            "busy"
        };
        let vms = if live == 1 {
            "the only VM is".to_owned()
        } else {
            format!("all {live} VMs are")
        };
        return format!("{vms} {state}{ahead}");
    }
    format!("waiting for a VM{ahead}")
}

/// The text for a session that fetches what a VM has built, and waits for that VM.
pub(super) fn for_home(vm: &str) -> String {
    format!("waiting for {vm}, which has what is to be fetched")
}

/// The text for a session that has named its VM.
pub(super) fn for_named(vm: Option<&VmView>, name: &str) -> String {
    match vm {
        Some(vm) if vm.state == VmStage::Booting => format!("starting {name}: {}", vm.stage),
        _ => format!("waiting for {name}, which is busy"),
    }
}

/// A time that does not change with every second, so that the text is not sent anew each time.
fn rough(seconds: u64) -> String {
    match seconds {
        0..=60 => "a minute".to_owned(),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::example::vm;
    use super::*;
    use crate::pool::Mode;
    use crate::pool::budget::Shortage;
    use crate::pool::decision::Figures;
    use crate::pool::policy::Reuse;

    const HOST: Share = Share::Host;

    fn ahead(all: usize) -> Ahead {
        Ahead { all, alike: all }
    }

    fn pool(max_vms: u32) -> PoolStatus {
        PoolStatus {
            mode: Mode::Open,
            max_vms,
            up_limit: max_vms,
            kept: 0,
            reuse: Reuse::Never,
            share: HOST,
            warm: 0,
            demand: 0,
            vms: Vec::new(),
            queued: Vec::new(),
            figures: Figures::default(),
            decision: None,
            start_failures: 0,
            degraded: false,
            start_failure: None,
            retry_in_s: None,
            shortage: None,
            held: None,
        }
    }

    #[test]
    fn a_session_is_told_of_the_vm_it_will_get() {
        let vms = [
            vm("riscv64-1", VmStage::Booting),
            vm("riscv64-2", VmStage::Booting),
        ];
        let text = |position| text(&pool(4), &vms, HOST, ahead(position), 1);
        assert_eq!(text(0), "starting riscv64-1: waiting for the guest agent");
        assert_eq!(
            text(1),
            "starting riscv64-2: waiting for the guest agent, 1 ahead"
        );
        assert_eq!(
            text(2),
            "starting riscv64-2: waiting for the guest agent, 2 ahead"
        );
    }

    #[test]
    fn a_session_is_told_of_vms_of_its_kind_and_of_everybody_ahead() {
        let blind = VmView {
            share: Share::None,
            ..vm("riscv64-2", VmStage::Booting)
        };
        let vms = [vm("riscv64-1", VmStage::Booting), blind];
        assert_eq!(
            text(&pool(4), &vms, Share::None, Ahead { all: 1, alike: 0 }, 1),
            "starting riscv64-2: waiting for the guest agent, 1 ahead"
        );
    }

    #[test]
    fn a_session_is_told_that_all_are_busy() {
        let ready = |name| vm(name, VmStage::Ready);
        assert_eq!(
            text(&pool(1), &[ready("riscv64-1")], HOST, ahead(0), 1),
            "the only VM is busy"
        );
        let two = [ready("riscv64-1"), ready("riscv64-2")];
        assert_eq!(
            text(&pool(2), &two, HOST, ahead(3), 1),
            "all 2 VMs are busy, 3 ahead"
        );
    }

    #[test]
    fn a_session_is_told_why_the_last_start_failed() {
        let mut pool = pool(2);
        pool.start_failure = Some("no agent\nconsole: oops".to_owned());
        pool.retry_in_s = Some(15);
        let expected = "the last start failed: no agent; trying again within a minute";
        assert_eq!(text(&pool, &[], HOST, ahead(0), 1), expected);
    }

    #[test]
    fn a_session_is_told_that_memory_is_short() {
        let mut pool = pool(4);
        pool.held = Some(Hold::Memory(Shortage {
            available_mib: 812,
            needed_mib: 1536,
        }));
        let vms = [vm("riscv64-1", VmStage::Booting)];
        let text = |position| text(&pool, &vms, HOST, ahead(position), 1);
        assert_eq!(text(0), "starting riscv64-1: waiting for the guest agent");
        assert_eq!(
            text(1),
            "not enough memory for another VM: 812 MiB available, 1536 MiB needed, 1 ahead"
        );
    }
}
