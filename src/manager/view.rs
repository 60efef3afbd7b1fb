//! One system's pool as it is shown.

use std::collections::BTreeMap;
use std::time::Instant;

use super::counters::Counters;
use super::forecast::SystemForecast;
use super::session::ManagedSession;
use super::status::{InputsWay, SessionView, SystemStatus, VmView};
use super::system::ManagedSystem;
use crate::pool::SessionId;
use crate::pool::policy::Share;
use crate::pool::status::{PoolStatus, VmStatus};
use crate::vm::VmBackend;

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn status(&self, now: Instant) -> SystemStatus {
        let pool = self.pool.status(now);
        let in_line = pool.queued.iter().filter(|queued| queued.home.is_none());
        let ahead: BTreeMap<SessionId, usize> = in_line
            .enumerate()
            .map(|(ahead, queued)| (queued.session, ahead))
            .collect();
        SystemStatus {
            system: self.system,
            mode: pool.mode,
            max_vms: pool.max_vms,
            up_limit: pool.up_limit,
            kept: pool.kept,
            reuse: pool.reuse,
            share: pool.share,
            warm: pool.warm,
            forecast: self.forecast.as_ref().map(SystemForecast::status),
            inputs: self.inputs_way(),
            vms: self.vm_views(&pool, now),
            sessions: self
                .sessions
                .iter()
                .map(|(id, session)| SessionView {
                    ahead: ahead.get(id).copied(),
                    ..self.session_view(*id, session, now)
                })
                .collect(),
            figures: pool.figures,
            decision: pool.decision.clone(),
            start_failures: pool.start_failures,
            degraded: pool.degraded,
            start_failure: pool.start_failure,
            retry_in_s: pool.retry_in_s,
            shortage: pool.shortage,
            held: pool.held,
            counters: Counters {
                builds: self.builds.counters().clone(),
                ..self.counters.clone()
            },
        }
    }

    fn inputs_way(&self) -> InputsWay {
        let because = match (self.share, self.store()) {
            (Share::Host, Some(store)) => store.trouble(),
            (Share::Host | Share::None, _) => Some("`store.share` is \"none\"".to_owned()),
        };
        because.map_or(InputsWay::Shared, |because| InputsWay::Copied { because })
    }

    pub(super) fn vm_views(&self, pool: &PoolStatus, now: Instant) -> Vec<VmView> {
        let view = |status: &VmStatus| {
            let vm = self.vms.get(&status.id)?;
            let boot = vm
                .ready
                .map(|ready| ready.saturating_duration_since(vm.started));
            Some(VmView {
                name: vm.name.clone(),
                share: vm.shape.share,
                vcpus: vm.shape.vcpus,
                state: status.state,
                stage: vm.stage.clone(),
                age_s: now.saturating_duration_since(vm.started).as_secs(),
                boot_ms: boot.map(|boot| u64::try_from(boot.as_millis()).unwrap_or(u64::MAX)),
                idle_s: status.idle_s,
                sessions: status.sessions.len(),
                paused: vm.is_paused,
                pid: vm.pid,
                memory_mib: None,
                console_log: vm.console_log.clone(),
            })
        };
        pool.vms.iter().filter_map(view).collect()
    }

    fn session_view(&self, id: SessionId, session: &ManagedSession, now: Instant) -> SessionView {
        SessionView {
            id: id.0,
            slot: session.request.slot.clone(),
            client: session.request.client.clone(),
            vm: session.vm.map(|vm| self.vm_name(vm)),
            ahead: None,
            activity: session.activity.clone(),
            inputs: session.inputs,
            age_s: now.saturating_duration_since(session.opened).as_secs(),
        }
    }
}
