//! Which Nix the user has.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::nix::client::NixVersion;
use crate::vm::host;

/// `nix --version` starts a program and prints a line.
const LIMIT: Duration = Duration::from_secs(10);

/// What `nix --version` says; none where there is no Nix to ask, or one that says something else.
pub(super) async fn installed(search_path: &OsStr) -> Option<NixVersion> {
    let nix = host::find_program("nix", search_path).ok()?;
    let mut command = Command::new(nix);
    command
        .arg("--version")
        // HOME may be another user's than this process's, whose configuration could have Nix load a plugin.
        .env("NIX_USER_CONF_FILES", "/dev/null")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    NixVersion::printed(&String::from_utf8_lossy(&output.ok()?.ok()?.stdout))
}
