//! `xpool machines --install`, `--uninstall` and `--write-to`: what is done, and what is said about it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::process::geteuid;

use super::Context;
use crate::client_files;
use crate::config::Config;
use crate::config::client::{ClientPlaces, FIXED_FILES, FIXED_PROGRAM};
use crate::fixed_files::{self, FixedFile};
use crate::gateway::keys::GatewayKeys;
use crate::guarded::{self, Changeable};
use crate::install::{self, Change, Wanted};
use crate::nix::System;
use crate::nix::abilities::Abilities;
use crate::nix::client::Form;
use crate::nix::machines::Endpoint;
use crate::output::Printer;
use crate::paths::Paths;
use crate::state;

const UNCHANGED: &str = "Nix and ssh are configured like that already";

/// All that is to be done.
#[derive(Default)]
struct Steps {
    files: Vec<FixedFile>,
    changes: Vec<Change>,
    removed: Vec<PathBuf>,
}

pub(super) fn install(context: &Context, config: &Config, form: Form, dry_run: bool) -> Result<()> {
    let is_guarded = !geteuid().is_root() || is_roots(&context.paths)?;
    let steps = if is_guarded {
        of_own_manager(&context.paths, config, form)?
    } else {
        of_others_manager(&context.paths, config, form)?
    };
    if steps.carry_out(context.printer, dry_run)? && !dry_run {
        context.printer.say(note(is_guarded));
        if steps.has_copy() {
            let own = own_program()?;
            context.printer.say(&format!(
                "Nix runs the copy {FIXED_PROGRAM}, as others than root can change `{}`.",
                own.display()
            ));
        }
    }
    Ok(())
}

pub(super) fn uninstall(context: &Context, dry_run: bool) -> Result<()> {
    let mut steps = Steps {
        changes: install::changes(&ClientPlaces::this()?, None)?,
        ..Steps::default()
    };
    if geteuid().is_root() {
        steps.removed = fixed_files::present(Path::new(FIXED_FILES));
        let program = PathBuf::from(FIXED_PROGRAM);
        steps.removed.extend(program.exists().then_some(program));
    }
    steps.carry_out(context.printer, dry_run)?;
    if !dry_run && geteuid().is_root() {
        // There may be configuration in it.
        let _ = std::fs::remove_dir(FIXED_FILES);
    }
    Ok(())
}

/// Writes what Nix and ssh read into a folder.
pub(super) fn write_to(context: &Context, config: &Config, form: Form, dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir).context("finding the folder to write to")?;
    let program = own_program()?;
    if form == Form::Local {
        guarded::check(&program)?;
    }
    let steps = Steps {
        files: fixed_files(&context.paths, config, form, &dir, &program)?,
        ..Steps::default()
    };
    steps.carry_out(context.printer, false).map(drop)
}

/// Whether nobody but root can change what a manager in this state folder writes.
fn is_roots(paths: &Paths) -> Result<bool> {
    let owner = state::owner(paths).unwrap_or(0);
    Ok(owner == 0 && changeable(paths.state())?.is_none())
}

/// Nix reads what the manager writes while it runs: both are the same user's.
fn of_own_manager(paths: &Paths, config: &Config, form: Form) -> Result<Steps> {
    // The keys and the piece of ssh configuration, which a manager would write anyway.
    let keys = own_keys(paths)?;
    client_files::write_ssh(config.listen, paths, &keys)?;
    check_local(form, &client_files::endpoint(config.listen, paths, &keys))?;
    let wanted = Wanted {
        machines: paths.machines(form),
        ssh_config: (form == Form::SshAlias).then(|| paths.ssh_config()),
    };
    Ok(Steps {
        changes: install::changes(&ClientPlaces::this()?, Some(&wanted))?,
        ..Steps::default()
    })
}

/// Nix reads what root writes, and executes what root owns.
fn of_others_manager(paths: &Paths, config: &Config, form: Form) -> Result<Steps> {
    let dir = Path::new(FIXED_FILES);
    let own = own_program()?;
    let is_own_fit = form != Form::Local || changeable(&own)?.is_none();
    let program = if is_own_fit {
        &own
    } else {
        Path::new(FIXED_PROGRAM)
    };
    let mut files = fixed_files(paths, config, form, dir, program)?;
    if !is_own_fit {
        files.insert(0, fixed_files::program(program)?);
    }
    let wanted = Wanted {
        machines: fixed_files::machines(dir),
        ssh_config: (form == Form::SshAlias).then(|| fixed_files::ssh_piece(dir)),
    };
    Ok(Steps {
        files,
        changes: install::changes(&ClientPlaces::this()?, Some(&wanted))?,
        removed: Vec::new(),
    })
}

fn fixed_files(
    paths: &Paths,
    config: &Config,
    form: Form,
    dir: &Path,
    program: &Path,
) -> Result<Vec<FixedFile>> {
    state::check_name(dir, "folder", "--write-to")?;
    guarded::check(dir)?;
    if form == Form::Local {
        return fixed_files::of_local(config, paths.state(), program, dir);
    }
    let us = geteuid().as_raw();
    let owner = state::owner(paths).unwrap_or(us);
    // Root makes nothing where a link of somebody else's leads.
    let is_own = owner == us && !guarded::is_led_by_others(paths.state());
    let keys = if is_own {
        own_keys(paths)?
    } else {
        GatewayKeys::load_of(owner, &paths.keys())?
    };
    fixed_files::of_ssh(config, &keys, form, dir)
}

fn own_keys(paths: &Paths) -> Result<GatewayKeys> {
    state::prepare(paths)?;
    GatewayKeys::load_or_create(&paths.keys()).context("the gateway's keys")
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding xpool's own program")
}

/// Who beside us and root can change what is at a path, if anybody can.
fn changeable(path: &Path) -> Result<Option<Changeable>> {
    match guarded::check(path) {
        Ok(()) => Ok(None),
        Err(error) => error.downcast().map(Some),
    }
}

/// The manager would leave the file out that Nix is to read.
fn check_local(form: Form, endpoint: &Endpoint) -> Result<()> {
    for system in System::ALL {
        endpoint.machines(form, system, &Abilities::default(), 1)?;
    }
    Ok(())
}

impl Steps {
    /// Does it, or only says it; whether there was anything to do. What is named is there before anything names it, and as long.
    fn carry_out(&self, printer: Printer, dry_run: bool) -> Result<bool> {
        install::check(&self.changes)?;
        let files = self.files.iter().filter(|file| !file.is_there());
        if dry_run {
            let said = self.described(files);
            if said.is_empty() {
                printer.done("Unchanged", UNCHANGED);
            } else {
                printer.data(&said.join("\n"));
            }
            return Ok(!said.is_empty());
        }
        let mut is_any = false;
        let mut done = |verb: &str, what: String| {
            is_any = true;
            printer.done(verb, &what);
        };
        for file in files {
            file.write()?;
            done("Wrote", file.path.display().to_string());
        }
        install::apply(&self.changes)?;
        for change in &self.changes {
            let verb = match (&change.before, &change.after) {
                (None, _) => "Made",
                (_, None) => "Removed",
                _ => "Changed",
            };
            done(verb, change.path.display().to_string());
        }
        for path in &self.removed {
            fixed_files::remove(path)?;
            done("Removed", path.display().to_string());
        }
        if !is_any {
            printer.done("Unchanged", UNCHANGED);
        }
        Ok(is_any)
    }

    fn has_copy(&self) -> bool {
        self.files
            .iter()
            .any(|file| file.path == Path::new(FIXED_PROGRAM))
    }

    fn described<'a>(&self, files: impl Iterator<Item = &'a FixedFile>) -> Vec<String> {
        let files = files.map(|file| format!("would write {}", file.path.display()));
        let removed = self.removed.iter();
        let removed = removed.map(|path| format!("would remove {}", path.display()));
        let changes = self.changes.iter().map(described);
        files.chain(changes).chain(removed).collect()
    }
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

fn note(is_guarded: bool) -> &'static str {
    match (geteuid().is_root(), is_guarded) {
        (true, true) => {
            "A nix-daemon that runs knows it when it is started anew. The machines are there while a manager runs."
        }
        (true, false) => {
            "A nix-daemon that runs knows it when it is started anew. Without a manager, Nix warns and goes on without the machines.\n\
             Do this again after a change of xpool, of its configuration or of its keys."
        }
        (false, _) => {
            "The machines are there while a manager runs. Where a nix-daemon builds, it takes them from users that it trusts only;\n\
             for all users of this machine, let root install it, with your `--state-dir`."
        }
    }
}
