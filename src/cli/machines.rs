//! `xpool machines`.

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::{Context, parse_system};
use crate::control::client::Client;
use crate::gateway::keys::GatewayKeys;
use crate::nix::System;
use crate::nix::machines::{BuildMachines, nix_conf, ssh_config};
use crate::state;

#[derive(Debug, Args)]
pub(super) struct MachinesArgs {
    /// Only this system: riscv64 or aarch64 [default: every system]
    #[arg(value_parser = parse_system)]
    system: Option<System>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Machines)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for `--builders` or /etc/nix/machines
    Machines,
    /// A piece of nix.conf
    NixConf,
    /// A piece of ssh configuration, which Nix's ssh needs to find the gateway
    SshConfig,
}

pub(super) async fn run(context: &Context, args: &MachinesArgs) -> Result<()> {
    let mut config = context.config()?;
    if let Ok((_, info)) = Client::connect(&context.paths.control_socket()).await {
        // Where it really is, whatever the configuration says by now.
        config.listen = info.gateway;
    }
    // The keys lie in it; and Nix must be able to read its name.
    state::prepare(&context.paths)?;
    let keys = GatewayKeys::load_or_create(&context.paths.keys()).context("the gateway's keys")?;
    let systems: Vec<System> = args
        .system
        .map_or_else(|| System::ALL.to_vec(), |system| vec![system]);
    let text = match args.format {
        Format::Machines => {
            let host_key_base64 = keys.machine_field();
            let lines = systems.iter().map(|system| {
                let count = config
                    .systems
                    .get(system)
                    .map_or(0, |system| system.build_machines);
                let key = &keys.client_file();
                BuildMachines {
                    system: *system,
                    count,
                    key,
                    host_key_base64: &host_key_base64,
                }
                .lines()
            });
            lines.collect::<Vec<_>>().join("\n")
        }
        Format::NixConf => nix_conf(&context.paths.machines()).trim_end().to_owned(),
        Format::SshConfig => {
            let (key, known_hosts) = (keys.client_file(), context.paths.known_hosts());
            ssh_config(&systems, config.listen, &key, &known_hosts)
                .trim_end()
                .to_owned()
        }
    };
    context.printer.data(&text);
    Ok(())
}
