//! `xpool events`.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use super::{Context, builds};
use crate::control::client::Client;
use crate::manager::events::{Happening, PoolEvent};
use crate::manager::status::BuildView;
use crate::output::plain::{head, plain};
use crate::output::table::{age, tenths};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Print each as JSON on a line of its own
    #[arg(long)]
    json: bool,
}

/// The widest that what a build says gets.
const WIDEST: usize = 100;

pub(super) async fn run(context: &Context, args: &EventsArgs) -> Result<()> {
    let (client, _) = Client::connect(&context.paths.control_socket()).await?;
    let mut events = client.events().await?;
    while let Some(event) = events.next().await? {
        if args.json {
            context.printer.json_line(&event)?;
        } else {
            context.printer.data(&text(&event));
        }
    }
    Ok(())
}

fn text(event: &PoolEvent) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(event.at);
    let what = match &event.happening {
        Happening::SessionOpened {
            session,
            slot,
            client,
            ..
        } => format!("session {session} opened: {slot}, {}", plain(client)),
        Happening::SessionClosed { session } => format!("session {session} closed"),
        Happening::BuildBegan(build) => {
            format!(
                "{} began in session {} on {}",
                named(build),
                build.session,
                build.vm
            )
        }
        Happening::Progress { id, progress } => {
            let phase = progress.phase.as_deref().unwrap_or("running");
            let line = progress.last_lines.last().map_or("", String::as_str);
            let lines = progress.n_lines;
            let said = head(&format!("{phase}, {lines} lines: {line}"), WIDEST);
            format!("build {id} {said}")
        }
        Happening::BuildEnded(build) => {
            let took = age(build.ended.unwrap_or(event.at).saturating_sub(build.began));
            let ending = build
                .outcome
                .as_ref()
                .map(builds::ending)
                .unwrap_or_default();
            format!(
                "{} ended after {took}: {}",
                named(build),
                head(&ending, WIDEST)
            )
        }
        Happening::VmStarted { vm } => format!("{vm} is being started"),
        Happening::VmReady { vm, boot_ms } => {
            format!("{vm} is ready (started in {})", tenths(*boot_ms))
        }
        Happening::VmEnded { vm, because } => format!("{vm} ended: {}", head(because, WIDEST)),
        Happening::Decided {
            system,
            what,
            decision,
        } => format!("{system}: {what} ({})", decision.figures),
        Happening::ForecastEnded { system, review } => format!("{system}: forecast: {review}"),
        Happening::PoolDegraded { system, because } => {
            format!("{system}: no VM can be started: {}", head(because, WIDEST))
        }
        Happening::PoolHealed { system } => format!("{system}: VMs can be started again"),
        Happening::Missed { events } => {
            format!("{events} events were missed: they came faster than they were read")
        }
    };
    format!("{} {what}", humantime::format_rfc3339_seconds(at))
}

/// `build 3 (hello-2.12.drv)`.
fn named(build: &BuildView) -> String {
    format!("build {} ({})", build.id, builds::name(build))
}

#[cfg(test)]
mod tests {
    use super::builds::tests::build;
    use super::*;
    use crate::manager::status::BuildOutcome;

    #[test]
    fn events_are_a_line_each() {
        let text = |happening| text(&PoolEvent { at: 70, happening });
        let began = build(3, "hello-2.12", None);
        let progress = began.progress.clone();
        let ended = build(3, "hello-2.12", Some(BuildOutcome::Built));
        let lines = [
            text(Happening::BuildBegan(began)),
            text(Happening::Progress { id: 3, progress }),
            text(Happening::BuildEnded(ended)),
            text(Happening::Missed { events: 7 }),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r"
        1970-01-01T00:01:10Z build 3 (hello-2.12.drv) began in session 13 on riscv64-1
        1970-01-01T00:01:10Z build 3 buildPhase, 120 lines: cc -o hello
        1970-01-01T00:01:10Z build 3 (hello-2.12.drv) ended after 1m05s: built
        1970-01-01T00:01:10Z 7 events were missed: they came faster than they were read
        ");
    }

    #[test]
    fn an_event_is_json_with_its_name_and_its_time() {
        let happening = Happening::Progress {
            id: 3,
            progress: build(3, "a", None).progress,
        };
        let event = PoolEvent { at: 70, happening };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "at": 70, "event": "progress", "id": 3, "phase": "buildPhase", "last-lines": ["cc -o hello"],
                "n-lines": 120, "bytes-in": 4096, "bytes-out": 12,
            })
        );
        assert_eq!(serde_json::from_value::<PoolEvent>(json).unwrap(), event);
    }
}
