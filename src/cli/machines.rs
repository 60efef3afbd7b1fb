//! `xpool machines`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::{Context, install, nix_version, parse_system};
use crate::client_files;
use crate::config::Config;
use crate::gateway::keys::GatewayKeys;
use crate::manager::status::Status;
use crate::nix::System;
use crate::nix::client::{Form, NixVersion, Transport};
use crate::nix::machines::{BuildMachine, Endpoint, nix_conf, ssh_config};
use crate::nix::nixos;
use crate::state;

#[derive(Debug, Args)]
pub(super) struct MachinesArgs {
    /// Only this system: riscv64 or aarch64 [default: every system]
    #[arg(value_parser = parse_system)]
    system: Option<System>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Machines)]
    format: Format,
    /// What carries a build from Nix to xpool
    #[arg(long, value_enum, default_value_t = Transport::default().into())]
    transport: TransportArg,
    /// The client's version of Nix: 2.31 and later need no ssh configuration [default: what `nix --version` says, and if
    /// there is no nix, lines for every version]
    #[arg(long, value_name = "X.Y")]
    nix_version: Option<NixVersion>,
    /// Print nothing: have Nix use the machines while a manager runs, by a line in its configuration and, where Nix needs
    /// it, one in ssh's. This machine's as root, your own otherwise. Of a manager that is another user's, root's Nix reads
    /// nothing but what this writes into /etc/xpool, and so knows of the machines also while no manager runs
    #[arg(long, group = "change", conflicts_with_all = ["system", "format"])]
    install: bool,
    /// Take away what --install has added
    #[arg(long, group = "change", conflicts_with_all = ["system", "format", "transport", "nix_version"])]
    uninstall: bool,
    /// Only say what --install or --uninstall would change
    #[arg(long, requires = "change")]
    dry_run: bool,
    /// Print nothing: write what Nix and ssh read into this folder, which nobody but you and root may be able to write: the
    /// machines as configured, and for ssh its configuration, the gateway's host key and a copy of the key. For services
    #[arg(long, value_name = "DIR", conflicts_with_all = ["change", "system", "format"])]
    write_to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for `--builders` or /etc/nix/machines
    Machines,
    /// A piece of nix.conf
    NixConf,
    /// A piece of ssh configuration, which Nix's ssh needs to find the gateway
    SshConfig,
    /// A NixOS module
    Nixos,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransportArg {
    /// Nix's ssh logs in at the gateway
    Ssh,
    /// Nix starts xpool on this machine
    Local,
}

impl From<Transport> for TransportArg {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Ssh => Self::Ssh,
            Transport::Local => Self::Local,
        }
    }
}

impl From<TransportArg> for Transport {
    fn from(given: TransportArg) -> Self {
        match given {
            TransportArg::Ssh => Self::Ssh,
            TransportArg::Local => Self::Local,
        }
    }
}

pub(super) async fn run(context: &Context, args: &MachinesArgs) -> Result<()> {
    if args.uninstall {
        return install::uninstall(context, args.dry_run);
    }
    let mut config = context.config()?;
    if let Some(dir) = &args.write_to {
        // As it is configured: a manager may be starting just now.
        return install::write_to(context, &config, form(args, &config).await, dir);
    }
    let (mut status, mut is_served) = (Status::default(), false);
    if let Ok((client, info)) = context.connect().await {
        is_served = true;
        // Where it really is, and what may run by now, whatever the configuration says.
        config.listen = info.gateway;
        status = client.status().await.unwrap_or_default();
    }
    let form = form(args, &config).await;
    if args.install {
        return install::install(context, &config, form, args.dry_run);
    }
    // The keys lie in it; and Nix must be able to read its name.
    state::prepare(&context.paths)?;
    let keys = GatewayKeys::load_or_create(&context.paths.keys()).context("the gateway's keys")?;
    let endpoint = client_files::endpoint(config.listen, &context.paths, &keys);
    // Those of a manager that runs are right.
    if !(is_served && context.paths.slots().exists()) {
        client_files::write_links(&config, &context.paths)?;
    }
    let systems: Vec<System> = args
        .system
        .map_or_else(|| System::ALL.to_vec(), |system| vec![system]);
    let file = context.paths.machines(form);
    let ssh = || {
        let known_hosts = context.paths.known_hosts();
        ssh_config(&systems, config.listen, &endpoint.key, &known_hosts)
    };
    let machines = || machines(&config, &status, &endpoint, form, &systems);
    let text = match args.format {
        Format::Machines => lines(&machines()?),
        Format::NixConf => {
            // The manager writes no file of machines that cannot be.
            machines()?;
            nix_conf(&file)
        }
        Format::SshConfig => ssh(),
        Format::Nixos if form == Form::SshAlias => nixos::module(&machines()?, &ssh(), &file),
        Format::Nixos => nixos::module(&machines()?, "", &file),
    };
    context.printer.data(text.trim_end());
    Ok(())
}

async fn form(args: &MachinesArgs, config: &Config) -> Form {
    let transport = args.transport.into();
    let client = match (transport, args.nix_version) {
        (Transport::Ssh, None) => nix_version::installed(&config.search_path).await,
        (_, given) => given,
    };
    Form::of(transport, client)
}

/// The lines of the local transport for these systems, of the manager that runs.
pub(super) async fn local_lines(context: &Context, systems: &[System]) -> Result<String> {
    let config = context.config()?;
    let (client, info) = context.connect().await?;
    let status = client.status().await?;
    let keys = GatewayKeys::load_or_create(&context.paths.keys()).context("the gateway's keys")?;
    let endpoint = client_files::endpoint(info.gateway, &context.paths, &keys);
    let form = Form::of(Transport::Local, None);
    Ok(lines(&machines(
        &config, &status, &endpoint, form, systems,
    )?))
}

fn machines(
    config: &Config,
    status: &Status,
    endpoint: &Endpoint,
    form: Form,
    systems: &[System],
) -> Result<Vec<BuildMachine>> {
    let mut machines = Vec::new();
    for system in systems {
        let Some(pool) = config.systems.get(system) else {
            continue;
        };
        let running = status.systems.iter().find(|pool| pool.system == *system);
        let max_vms = running.map_or(pool.policy.max_vms.get(), |pool| pool.max_vms);
        let count = pool.build_machines(max_vms);
        machines.extend(endpoint.machines(form, *system, &pool.abilities, count)?);
    }
    Ok(machines)
}

fn lines(machines: &[BuildMachine]) -> String {
    let lines: Vec<String> = machines.iter().map(BuildMachine::line).collect();
    lines.join("\n")
}
