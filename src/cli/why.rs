//! `xpool why`: what a session waits for, and what its pool has decided from which figures.

use anyhow::{Result, bail};
use clap::Args;

use super::Context;
use crate::manager::status::{SessionView, Status, SystemStatus};

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// Its number, as `xpool status` shows it
    session: u64,
}

pub(super) async fn run(context: &Context, args: &WhyArgs) -> Result<()> {
    let (client, _) = context.connect().await?;
    let status = client.status().await?;
    let Some(text) = text(&status, args.session) else {
        let systems = status.systems.iter();
        let there = systems.flat_map(|system| &system.sessions);
        let there: Vec<String> = there.map(|session| session.id.to_string()).collect();
        let there = if there.is_empty() {
            "none is there".to_owned()
        } else {
            format!("there is {}", there.join(", "))
        };
        bail!("there is no session {}: {there}", args.session);
    };
    context.printer.data(&text);
    Ok(())
}

/// What is to be said of a session, if it is there.
fn text(status: &Status, id: u64) -> Option<String> {
    let mut systems = status.systems.iter();
    let found = |system: &'_ SystemStatus| system.sessions.iter().position(|of| of.id == id);
    let (system, place) = systems.find_map(|system| Some((system, found(system)?)))?;
    let session = &system.sessions[place];
    let mut lines = vec![first_line(session)];
    if session.vm.is_none() {
        lines.push(format!("{}: {}", system.system, system.figures));
        lines.extend(system.held.map(|held| format!("no VM is started: {held}")));
        lines.extend(last_failure(system));
    }
    Some(lines.join("\n"))
}

fn first_line(session: &SessionView) -> String {
    let who = format!("session {} of {}", session.id, session.client);
    match (&session.vm, session.ahead) {
        (Some(vm), _) => format!("{who} is on {vm}: {}", session.activity),
        (None, Some(ahead)) => format!("{who} waits, {ahead} ahead of it: {}", session.activity),
        (None, None) => format!("{who} waits: {}", session.activity),
    }
}

fn last_failure(system: &SystemStatus) -> Option<String> {
    let failure = system.start_failure.as_deref()?.lines().next()?;
    let failures = system.start_failures;
    Some(format!(
        "failed starts in a row: {failures}, the last one: {failure}"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{pool, session};
    use super::*;
    use crate::pool::decision::Figures;
    use crate::pool::hold::Hold;

    #[test]
    fn a_session_is_explained_by_the_figures_of_its_pool() {
        let waiting = SessionView {
            ahead: Some(3),
            ..session(7, None, "all 2 VMs are busy, 3 ahead")
        };
        let system = SystemStatus {
            sessions: vec![session(6, Some("riscv64-1"), "building a"), waiting],
            figures: Figures {
                demand: 6,
                waiting: 4,
                want: 6,
                have: 2,
                starting: 1,
                limit: 2,
                forecast: None,
            },
            held: Some(Hold::MaxVms { limit: 2 }),
            ..pool()
        };
        let status = Status {
            systems: vec![system],
            ..Status::default()
        };
        assert_eq!(
            text(&status, 6).unwrap(),
            "session 6 of 127.0.0.1:5 is on riscv64-1: building a"
        );
        insta::assert_snapshot!(text(&status, 7).unwrap(), @r"
        session 7 of 127.0.0.1:5 waits, 3 ahead of it: all 2 VMs are busy, 3 ahead
        riscv64-linux: sessions: 6, 4 waiting; VMs: want 6, have 2, 1 starting, limit 2
        no VM is started: 2 VMs may be there at a time
        ");
        assert_eq!(text(&status, 8), None);
    }
}
