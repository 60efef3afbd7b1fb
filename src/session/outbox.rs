//! What the manager has not been told yet.

use std::collections::VecDeque;

use crate::manager::ticket::{Reports, SessionReport};

/// How many reports may wait for the manager, which takes them at once: more than a session has to tell in the time that
/// the manager takes for one event. What comes beyond that is lost.
const MAX_PENDING: usize = 256;

/// Reports that wait for room.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Whether there is progress that is not among them.
    pub(super) has_progress: bool,
    reports: VecDeque<SessionReport>,
}

impl Outbox {
    /// Lets a report wait until it is sent. It takes the place of one that says less of the same.
    pub(super) fn tell(&mut self, report: SessionReport) {
        use SessionReport::{Activity, Progress};
        let n_waiting = self.reports.len();
        match (self.reports.back_mut(), &report) {
            (Some(last @ Activity(_)), Activity(_)) | (Some(last @ Progress(_)), Progress(_)) => {
                *last = report;
            }
            _ if n_waiting < MAX_PENDING => self.reports.push_back(report),
            _ => {}
        }
    }

    /// Tells the manager what it has room for. True if some is left.
    pub(super) fn send(&mut self, reports: &Reports) -> bool {
        while let Some(report) = self.reports.pop_front() {
            if let Err(report) = reports.send(report) {
                self.reports.push_front(report);
                return true;
            }
        }
        false
    }
}
