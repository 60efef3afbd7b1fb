//! `xpool status --watch`: the status again whenever something happens.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep_until};

use super::{Context, status};
use crate::control::Info;
use crate::control::client::Client;

/// How often it is shown at the most: more often nobody can read it, and measuring the VMs' memory costs some milliseconds.
const BETWEEN: Duration = Duration::from_secs(1);

/// Shows the status until the manager ends. On a terminal the times go on as well; elsewhere there is one block per change.
pub(super) async fn run(context: &Context, client: &Client, info: &Info) -> Result<()> {
    let printer = context.printer;
    let mut events = client.events().await?;
    let mut shown = String::new();
    loop {
        let text = status::text(info, &client.status().await?, status::now());
        if text != shown {
            printer.redraw(&text);
            shown = text;
        }
        let next = Instant::now() + BETWEEN;
        let mut has_changed = printer.can_redraw();
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(_) => has_changed = true,
                    None => return Ok(()),
                },
                () = sleep_until(next), if has_changed => break,
            }
        }
    }
}
