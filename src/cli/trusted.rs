//! Whether the Nix of this user takes `builders` from the environment: a nix-daemon does so for users that it trusts only.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;
use tokio::process::Command;

use crate::config::Config;
use crate::vm::host;

/// It connects to a nix-daemon and asks one thing.
const LIMIT: Duration = Duration::from_secs(10);

/// A nix-daemon would not use the builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the nix-daemon of this machine does not trust you, and would not use the builders of this command"
)]
pub(super) struct NotTrusted;

/// What `nix store ping --json` prints.
#[derive(Debug, Default, Deserialize)]
struct StoreInfo {
    /// A number in some versions. Absent where there is no daemon to ask, and before 2.14.
    trusted: Option<serde_json::Value>,
}

impl StoreInfo {
    /// Whether it says that this user is not trusted.
    fn says_no(&self) -> bool {
        let no = [serde_json::Value::from(false), serde_json::Value::from(0)];
        self.trusted.as_ref().is_some_and(|said| no.contains(said))
    }
}

/// Fails if this machine's Nix says that it would not use builders of this user's. One that cannot say is taken at its best.
pub(super) async fn check(config: &Config) -> Result<()> {
    let Ok(nix) = host::find_program("nix", &config.search_path) else {
        return Ok(());
    };
    let mut command = Command::new(nix);
    command
        .args([
            "--extra-experimental-features",
            "nix-command",
            "store",
            "ping",
            "--json",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(LIMIT, command.output()).await else {
        return Ok(());
    };
    let info: StoreInfo = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if info.says_no() {
        return Err(NotTrusted.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_no_is_a_no() {
        let says_no = |text: &str| serde_json::from_str::<StoreInfo>(text).unwrap().says_no();
        assert!(says_no(
            r#"{"trusted":false,"url":"daemon","version":"2.26.3"}"#
        ));
        assert!(says_no(r#"{"trusted":0,"url":"daemon"}"#));
        for text in [
            r#"{"trusted":true}"#,
            r#"{"trusted":1}"#,
            r#"{"url":"local"}"#,
            "{}",
        ] {
            assert!(!says_no(text), "{text}");
        }
    }
}
