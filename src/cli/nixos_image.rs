//! `xpool image build --kind nixos`: Nix builds the image by xpool's flake, on machines of the portable kind.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::builders::Builders;
use super::trusted;
use super::{Context, Problem};
use crate::image::import;
use crate::image::store::ImageStore;
use crate::nix::System;

/// Where the image's recipe is, and where it is built.
pub(super) struct Recipe {
    /// xpool's flake.
    pub(super) flake: String,
    /// Whether this machine's own builders do it, by cross-compilers.
    pub(super) cross: bool,
}

impl Recipe {
    /// The package of the flake that is an image.
    fn package(&self, system: System) -> String {
        let native = if self.cross { "" } else { "-native" };
        format!("{}#image-{system}{native}", self.flake)
    }
}

/// Builds the image and makes it the one in use.
pub(super) async fn make(
    context: &Context,
    system: System,
    recipe: &Recipe,
    cancel: &CancellationToken,
) -> Result<()> {
    if !recipe.cross
        && let Err(error) = trusted::check(&context.config()?).await
    {
        // The daemon may have such builders of its own, or the image already.
        let problem = Problem::of(&error);
        context.printer.warning(&problem.text, &problem.hints);
    }
    let mut nix = Command::new("nix");
    nix.args(["--extra-experimental-features", "nix-command flakes"])
        .args(["build", "--no-link", "--json", "--print-build-logs"])
        // Where the flake is a folder in the store, it would be written there: refused on NixOS, and worse where it is not.
        .arg("--no-write-lock-file")
        .arg(recipe.package(system))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let built = if recipe.cross {
        build(nix, cancel).await
    } else {
        let builders = Builders::start(context, vec![system], cancel).await?;
        nix.envs(builders.environment().await?);
        let built = build(nix, cancel).await;
        builders.end().await?;
        built
    };
    let built = built?;
    let store = ImageStore::new(context.paths.images());
    let image =
        tokio::task::spawn_blocking(move || import::import(&store, system, &built)).await??;
    let what = format!("image {system}: `{}`", image.dir.display());
    context.printer.done("Built", &what);
    Ok(())
}

/// What `nix build --json` says of one package.
#[derive(Debug, Deserialize)]
struct Built {
    outputs: Outputs,
}

#[derive(Debug, Deserialize)]
struct Outputs {
    out: PathBuf,
}

/// Where Nix has put the image.
async fn build(mut nix: Command, cancel: &CancellationToken) -> Result<PathBuf> {
    let running = nix.spawn().context("starting `nix`")?;
    let output = tokio::select! {
        output = running.wait_with_output() => output.context("waiting for `nix build`")?,
        () = cancel.cancelled() => bail!("interrupted; what Nix has built so far is in its store"),
    };
    if !output.status.success() {
        bail!("`nix build` failed: {}", output.status);
    }
    let built: Vec<Built> =
        serde_json::from_slice(&output.stdout).context("reading what `nix build --json` says")?;
    let image = built.into_iter().next();
    Ok(image.context("`nix build` names no output")?.outputs.out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_says_who_compiles() {
        let package = |cross| {
            let flake = "github:owner/xpool".to_owned();
            Recipe { flake, cross }.package(System::Riscv64Linux)
        };
        assert_eq!(package(true), "github:owner/xpool#image-riscv64-linux");
        let native = "github:owner/xpool#image-riscv64-linux-native";
        assert_eq!(package(false), native);
    }
}
