//! The manager's end of a session whose bytes pass: tells it what is seen, hears of the VM, and keeps the limits of builds.

use std::time::Duration;

use tokio::time::Instant;

use super::splice::End;
use super::watch::Watch;
use crate::manager::ticket::{BuildLimits, SessionTicket, SessionUpdate};

/// How often the manager is told how far a build has come, at the most.
const BETWEEN_PROGRESS: Duration = Duration::from_millis(500);

/// How long the last reports of a session may take to be taken. The manager takes them at once, unless it hangs.
const LAST_REPORTS: Duration = Duration::from_secs(1);

/// Goes on until the manager says that the VM cannot be used any more, or until a limit is reached. Cancel safe.
pub(super) async fn attend(ticket: &mut SessionTicket, watch: &Watch, limits: BuildLimits) -> End {
    let reports = ticket.reports();
    let mut progress_due: Option<Instant> = None;
    let mut may_tell = Instant::now();
    loop {
        let is_full = watch.send(&reports);
        let limit = watch.next_limit(limits);
        tokio::select! {
            update = ticket.next() => match update {
                Some(SessionUpdate::Note(text)) => watch.note_for_client(&text),
                update => if let Some(end) = bad_news(update) {
                    return end;
                }
            },
            () = watch.news() => {
                progress_due.get_or_insert(may_tell);
            }
            () = reports.room(), if is_full => {}
            () = at(progress_due) => {
                watch.tell_progress();
                progress_due = None;
                may_tell = Instant::now() + BETWEEN_PROGRESS;
            }
            () = at(limit.as_ref().map(|reached| reached.at)) => {
                // The build may have said something in this very moment.
                if let Some(reached) = watch.next_limit(limits).filter(|next| Some(next) == limit.as_ref()) {
                    return End::Limit(reached);
                }
            }
        }
    }
}

/// Tells the manager what it has not been told when the session ends.
pub(super) async fn tell_rest(ticket: &SessionTicket, watch: &Watch) {
    let reports = ticket.reports();
    let told = async {
        while watch.send(&reports) {
            reports.room().await;
        }
    };
    let _ = tokio::time::timeout(LAST_REPORTS, told).await;
}

fn bad_news(update: Option<SessionUpdate>) -> Option<End> {
    match update {
        Some(SessionUpdate::VmGone { cause, log, .. }) => Some(End::VmGone(format!(
            "{cause}; its console is in {}",
            log.display()
        ))),
        Some(SessionUpdate::Rejected(text)) => Some(End::VmGone(text)),
        Some(SessionUpdate::Waiting(_) | SessionUpdate::Granted(_) | SessionUpdate::Note(_)) => {
            None
        }
        None => Some(End::ManagerGone),
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
