//! What becomes of a VM's sessions when it has ended.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{info, warn};

use super::events::Happening;
use super::session::ManagedSession;
use super::system::ManagedSystem;
use super::ticket::SessionUpdate;
use crate::pool::{Event, Exit, SessionId, VmId};
use crate::vm::VmBackend;

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn vm_ended(&mut self, now: Instant, id: VmId, exit: Exit) {
        let Some(vm) = self.vms.remove(&id) else {
            return;
        };
        let cause = match (&vm.ended_because, &exit) {
            (Some(because), _) => because.clone(),
            (None, Exit::Stopped) => "it was stopped".to_owned(),
            (None, Exit::Failed { reason, .. }) => reason.clone(),
        };
        match exit {
            Exit::Stopped => info!(vm = vm.name, "VM stopped"),
            Exit::Failed { .. } => {
                self.counters.vm_failures += 1;
                warn!(vm = vm.name, cause, "VM ended by itself");
            }
        }
        self.events.tell(|| Happening::VmEnded {
            vm: vm.name.clone(),
            because: cause.clone(),
        });
        let (served, others): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.sessions)
            .into_iter()
            .partition(|(_, session)| session.vm == Some(id));
        self.sessions = others;
        self.handle(now, Event::VmExited(id, exit));
        for (session_id, session) in served {
            if session.can_be_returned() {
                self.return_session(now, session_id, session);
            } else {
                let (vm, log) = (vm.name.clone(), vm.console_log.clone());
                let why = format!("{vm} ended: {cause}");
                self.builds.session_ended(session_id, &why);
                if !session.is_over {
                    if let Some(desk) = &self.worked {
                        desk.note(now, self.system, &session);
                    }
                    self.tell_closed(session_id);
                }
                session.tell(SessionUpdate::VmGone {
                    vm,
                    cause: cause.clone(),
                    log,
                });
            }
        }
    }

    /// Lets a session that has not used its VM wait for another one.
    fn return_session(&mut self, now: Instant, id: SessionId, mut session: ManagedSession) {
        session.vm = None;
        session.returns += 1;
        let claim = session.claim();
        self.sessions.insert(id, session);
        self.handle(now, Event::SessionReturned(id, claim));
    }
}
