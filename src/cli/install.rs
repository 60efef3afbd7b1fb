//! `xpool machines --install` and `--uninstall`: what is said about it.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use rustix::process::geteuid;

use super::Context;
use crate::client_files;
use crate::config::Config;
use crate::config::client::ClientPlaces;
use crate::gateway::keys::GatewayKeys;
use crate::install::{self, Change, Wanted};
use crate::nix::System;
use crate::nix::client::Form;
use crate::nix::machines::Endpoint;
use crate::state;

pub(super) fn install(context: &Context, config: &Config, form: Form, dry_run: bool) -> Result<()> {
    let paths = &context.paths;
    let wanted = Wanted {
        machines: paths.machines(form),
        ssh_config: (form == Form::SshAlias).then(|| paths.ssh_config()),
    };
    let owner = std::fs::metadata(paths.state())
        .ok()
        .map(|state| state.uid());
    let other = owner.filter(|owner| geteuid().is_root() && *owner != geteuid().as_raw());
    if other.is_none() {
        // The keys and the piece of ssh configuration, which a manager would write anyway.
        state::prepare(paths)?;
        let keys = GatewayKeys::load_or_create(&paths.keys()).context("the gateway's keys")?;
        client_files::write_ssh(config.listen, paths, &keys)?;
        check_local(form, &client_files::endpoint(config.listen, paths, &keys)?)?;
    }
    let places = ClientPlaces::this()?;
    let changes = install::changes(&places, Some(&wanted))?;
    carry_out(context, &changes, dry_run)?;
    if changes.is_empty() || dry_run {
        return Ok(());
    }
    if let Some(owner) = other {
        context.printer.warn(&format!(
            "user {owner} can write what Nix now reads, and so can do what this machine's Nix can"
        ));
    }
    context.printer.say(note(geteuid().is_root()));
    Ok(())
}

pub(super) fn uninstall(context: &Context, dry_run: bool) -> Result<()> {
    let changes = install::changes(&ClientPlaces::this()?, None)?;
    carry_out(context, &changes, dry_run)
}

/// The manager would leave the file out that Nix is to read.
fn check_local(form: Form, endpoint: &Endpoint) -> Result<()> {
    for system in System::ALL {
        endpoint.machines(form, system, 1)?;
    }
    Ok(())
}

fn carry_out(context: &Context, changes: &[Change], dry_run: bool) -> Result<()> {
    let printer = context.printer;
    if changes.is_empty() {
        printer.done("Unchanged", "Nix and ssh are configured like that already");
        return Ok(());
    }
    if dry_run {
        install::check(changes)?;
        printer.data(&changes.iter().map(described).collect::<Vec<_>>().join("\n"));
        return Ok(());
    }
    install::apply(changes)?;
    for change in changes {
        let verb = match (&change.before, &change.after) {
            (None, _) => "Made",
            (_, None) => "Removed",
            _ => "Changed",
        };
        printer.done(verb, &change.path.display().to_string());
    }
    Ok(())
}

fn described(change: &Change) -> String {
    let would = match (&change.before, &change.after) {
        (None, _) => "would make",
        (_, None) => "would remove",
        _ => "would change",
    };
    let lines = change.difference().join("\n  ");
    format!("{would} {}\n  {lines}", change.path.display())
}

fn note(is_root: bool) -> &'static str {
    if is_root {
        "A nix-daemon that runs knows it when it is started anew. The machines are there while a manager runs."
    } else {
        "The machines are there while a manager runs. Where a nix-daemon builds, it takes them from users that it trusts only;\n\
         for all users of this machine, let root install it, with your `--state-dir`."
    }
}
