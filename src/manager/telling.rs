//! What a system's sessions are told while they have no VM, and that they will have none.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{info, warn};

use super::events::Happening;
use super::session::ManagedSession;
use super::status::VmView;
use super::system::ManagedSystem;
use super::ticket::SessionUpdate;
use super::waiting::{self, Ahead};
use crate::pool::budget::Shortage;
use crate::pool::claim::Purpose;
use crate::pool::decision::Verdict;
use crate::pool::policy::Share;
use crate::pool::status::{PoolStatus, QueuedStatus};
use crate::pool::{Rejection, SessionId, VmId};
use crate::vm::VmBackend;

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn reject(&mut self, id: SessionId, reason: &Rejection) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if self.handover.has_begun() && session.purpose() == Purpose::Build {
            info!(session = id.0, "session left to the next manager");
        } else {
            self.counters.sessions_rejected += 1;
            warn!(session = id.0, %reason, "session rejected");
        }
        self.tell_closed(id);
        session.tell(SessionUpdate::Rejected(self.rejection(reason)));
    }

    fn rejection(&self, reason: &Rejection) -> String {
        let cpu = self.system.cpu();
        let name = |vm: &VmId| self.vm_name(*vm);
        match reason {
            Rejection::Down => format!(
                "the {} pool is down or going down: start it with `xpool up {cpu}`",
                self.system
            ),
            Rejection::NoSuchVm { vm, there } if there.is_empty() => format!(
                "there is no VM {}, nor any other one of {}: start one with `xpool up {cpu}`",
                name(vm),
                self.system
            ),
            Rejection::NoSuchVm { vm, there } => format!(
                "there is no VM {}: there is {}",
                name(vm),
                there.iter().map(name).collect::<Vec<_>>().join(", ")
            ),
            Rejection::OtherKind { vm } => format!(
                "{} {} this machine's store, and VMs of your key {}: name another one",
                name(vm),
                if self.shows_store(*vm) {
                    "shows"
                } else {
                    "does not show"
                },
                if self.shows_store(*vm) {
                    "do not"
                } else {
                    "do"
                },
            ),
            Rejection::OtherClients { vm } => format!(
                "{} serves or has served another key: a VM can be reached by its name with one key only",
                name(vm)
            ),
            Rejection::QueueFull { .. }
            | Rejection::WaitTimeout { .. }
            | Rejection::Degraded { .. }
            | Rejection::StartFailed { .. } => reason.to_string(),
        }
    }

    fn shows_store(&self, vm: VmId) -> bool {
        self.vms
            .get(&vm)
            .is_some_and(|vm| vm.shape.share == Share::Host)
    }

    /// Says once when memory begins to hold VMs back, and when it no longer does.
    fn log_shortage(&mut self, shortage: Option<Shortage>) {
        let was_short = std::mem::replace(&mut self.is_short, shortage.is_some());
        match shortage {
            Some(shortage) if !was_short => warn!(
                system = %self.system,
                available_mib = shortage.available_mib,
                needed_mib = shortage.needed_mib,
                "not enough memory for another VM"
            ),
            None if was_short => info!(system = %self.system, "memory holds no VM back any more"),
            _ => {}
        }
    }

    /// Says what the pool has decided, and why.
    pub(super) fn tell_decisions(&self) {
        for decision in self.pool.decisions() {
            let name = |vm: &VmId| self.vm_name(*vm);
            let names = |vms: &[VmId]| vms.iter().map(name).collect::<Vec<_>>().join(", ");
            let what = match &decision.verdict {
                Verdict::Start { vms } => format!("starting {}", names(vms)),
                Verdict::Wait { held } => format!("starting nothing: {held}"),
                Verdict::Stop { vms } => format!("stopping {}, which nobody needs", names(vms)),
                Verdict::MakeRoom { vms } => {
                    format!("stopping {} for those who wait", names(vms))
                }
            };
            let system = self.system;
            info!(%system, figures = %decision.figures, "{what}");
            let decision = decision.clone();
            self.events.tell(|| Happening::Decided {
                system,
                what,
                decision,
            });
        }
    }

    /// Says when a pool can start nothing any more, and when it can again.
    fn tell_health(&mut self, pool: &PoolStatus) {
        if std::mem::replace(&mut self.is_degraded, pool.degraded) == pool.degraded {
            return;
        }
        let system = self.system;
        if pool.degraded {
            let because = pool.start_failure.clone().unwrap_or_default();
            warn!(%system, because, "no VM can be started");
            self.events
                .tell(|| Happening::PoolDegraded { system, because });
        } else {
            info!(%system, "VMs can be started again");
            self.events.tell(|| Happening::PoolHealed { system });
        }
    }

    /// Tells the sessions that wait what they wait for, where that has changed.
    pub(super) fn tell_waiting(&mut self, now: Instant) {
        let pool = self.pool.status(now);
        let vms = self.vm_views(&pool, now);
        self.log_shortage(pool.shortage);
        self.tell_health(&pool);
        for (id, text) in self.waiting_texts(&pool, &vms) {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            if session.activity != text {
                session.activity.clone_from(&text);
                session.tell(SessionUpdate::Waiting(text));
            }
        }
    }

    fn waiting_texts(&self, pool: &PoolStatus, vms: &[VmView]) -> Vec<(SessionId, String)> {
        let mut ahead: BTreeMap<Share, usize> = BTreeMap::new();
        let mut text = |queued: &QueuedStatus| {
            let session = self.sessions.get(&queued.session);
            if let Some(named) = session.and_then(ManagedSession::named_vm) {
                let name = self.vm_name(named);
                return waiting::for_named(vms.iter().find(|vm| vm.name == name), &name);
            }
            if let Some(home) = queued.home {
                return waiting::for_home(&self.vm_name(home));
            }
            let before = Ahead {
                all: ahead.values().sum(),
                alike: ahead.get(&queued.share).copied().unwrap_or_default(),
            };
            *ahead.entry(queued.share).or_default() += 1;
            waiting::text(pool, vms, queued.share, before, self.slots_per_vm)
        };
        let queued = pool.queued.iter();
        queued
            .map(|queued| (queued.session, text(queued)))
            .collect()
    }
}
