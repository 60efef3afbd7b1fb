//! Starting a system's VMs, and saying when memory holds one back.

use std::time::Instant;

use tokio::sync::mpsc;
use tracing::info;

use super::News;
use super::events::Happening;
use super::supervisor::supervise;
use super::system::{ManagedSystem, ManagedVm};
use crate::pool::VmId;
use crate::pool::shape::Shape;
use crate::vm::VmBackend;

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn boot(&mut self, now: Instant, id: VmId, shape: Shape) {
        self.counters.vm_starts += 1;
        let name = self.vm_name(id);
        info!(
            vm = name,
            share = shape.share.as_str(),
            vcpus = shape.vcpus,
            demand = self.pool.demand(),
            live = self.vms.len() + 1,
            "starting a VM"
        );
        self.events
            .tell(|| Happening::VmStarted { vm: name.clone() });
        let (commands, receiver) = mpsc::unbounded_channel();
        let (news, system) = (self.news.clone(), self.system);
        let tell = move |told| {
            // The manager outlives its VMs; without it there is nobody to tell.
            let _ = news.send(News::Vm(system, id, told));
        };
        let (spec, spec_name) = (self.factory.spec.clone(), name.clone());
        let make_spec = Box::new(move || spec(system, &spec_name, shape));
        tokio::spawn(supervise(
            self.factory.backend.clone(),
            make_spec,
            receiver,
            tell,
        ));
        let console_log = (self.factory.console_log)(&name);
        let stage = "checking the image".to_owned();
        self.vms.insert(
            id,
            ManagedVm {
                name,
                shape,
                stage,
                console_log,
                started: now,
                ready: None,
                is_paused: false,
                pid: None,
                ended_because: None,
                commands,
            },
        );
    }
}
