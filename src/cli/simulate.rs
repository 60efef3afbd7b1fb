//! `xpool simulate`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use super::Context;
use crate::config::{Config, Host, Overrides, SystemConfig};
use crate::nix::System;
use crate::output::table::{age, render};
use crate::simulate::report::{Comparison, Figures, Report};
use crate::simulate::trace::Trace;
use crate::simulate::{Plan, Times, simulate};

/// The longest that a start may be said to take.
const LONGEST_START: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
#[command(after_help = "\
A trace is CSV: the line `time,system,client,seconds`, then one line for each build, in any order: when it was wanted \
(seconds from any moment), of which system, by whom, and how long it was at work. `xpool serve --record-trace` writes one.

`configured` is what xpool.toml says with what is said here; `always max` is `max-vms` VMs that are there all the time, and \
`always one` is one VM. They never start or stop. Waits are those of builds that got a VM: half of them waited no longer \
than P50, 95 of 100 no longer than P95. VM-SECONDS are counted from the first build to the end of the last one. Memory is \
not simulated.

With `--set forecast=on`, VMs are kept warm by what came in the same hour of the last weeks: a trace has to be longer than a \
week for that, and its times are taken for those of a clock, in seconds since midnight or since the epoch.")]
pub(super) struct SimulateArgs {
    /// The trace
    trace: PathBuf,
    /// VMs of each system at the most, instead of what is configured
    #[arg(long, value_name = "N")]
    max_vms: Option<u32>,
    /// Another key of xpool.toml's [pool], for every system: `--set warm=1 --set reuse=client`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Overrides>,
    /// How long the start of a VM takes [default: 800ms for riscv64, 1s for aarch64]
    #[arg(long, value_name = "TIME", value_parser = parse_start_time)]
    start_time: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &SimulateArgs) -> Result<()> {
    let config = Config::load_with(&context.paths, &Host::this(), &overrides(args)?)?;
    let name = || format!("`{}`", args.trace.display());
    let file = File::open(&args.trace).with_context(name)?;
    let trace = Trace::read(BufReader::new(file)).with_context(name)?;
    let plans = trace
        .systems()
        .filter_map(|system| Some((system, plan(system, config.systems.get(&system)?, args))))
        .collect::<BTreeMap<_, _>>();
    // Simulated time is counted from any moment.
    let origin = tokio::time::Instant::now().into_std();
    let report = simulate(&trace, &plans, origin)?;
    if args.json {
        return context.printer.json(&report);
    }
    context.printer.data(&text(&report));
    Ok(())
}

fn overrides(args: &SimulateArgs) -> Result<Overrides> {
    let mut overrides = Overrides::default();
    if let Some(max_vms) = args.max_vms {
        overrides = overrides.and(&format!("max-vms={max_vms}").parse()?);
    }
    Ok(args.set.iter().fold(overrides, Overrides::and))
}

fn plan(system: System, config: &SystemConfig, args: &SimulateArgs) -> Plan {
    let measured = Times::measured(system);
    Plan {
        policy: config.policy.clone(),
        slots: config.build_machines(config.policy.max_vms.get()),
        times: Times {
            start: args.start_time.unwrap_or(measured.start),
            ..measured
        },
    }
}

fn parse_start_time(given: &str) -> Result<Duration, String> {
    match humantime::parse_duration(given) {
        Ok(time) if time <= LONGEST_START => Ok(time),
        Ok(_) => Err("it must be from 0s to 1h".to_owned()),
        Err(_) => Err("it must be a time such as `800ms`, `6s` or `1m 30s`".to_owned()),
    }
}

fn text(report: &Report) -> String {
    let trace = &report.trace;
    let whole = |seconds: f64| age(Duration::from_secs_f64(seconds.max(0.0)).as_secs());
    let about = format!(
        "{} of {} in {}, {} of work",
        counted(trace.builds, "build"),
        counted(trace.clients, "client"),
        whole(trace.span_s),
        whole(trace.work_s),
    );
    let systems = report.systems.iter();
    let mut rows: Vec<_> = systems
        .flat_map(|(system, comparison)| rows(system.name(), comparison))
        .collect();
    if report.systems.len() > 1 {
        rows.extend(self::rows("all", &report.all));
    }
    let head = [
        "SYSTEM",
        "POLICY",
        "WAIT P50",
        "P95",
        "MAX",
        "VM-SECONDS",
        "STARTS",
        "PEAK",
        "BUILDS WITHOUT VM",
    ];
    format!("{about}\n\n{}", render(head, &rows))
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn rows(name: &str, comparison: &Comparison) -> [[String; 9]; 3] {
    [
        row(name, "configured", &comparison.configured),
        row(name, "always max", &comparison.always_max),
        row(name, "always one", &comparison.always_one),
    ]
}

fn row(name: &str, policy: &str, figures: &Figures) -> [String; 9] {
    let without = figures.rejected + figures.lost;
    let without = (without > 0).then(|| without.to_string());
    [
        name.to_owned(),
        policy.to_owned(),
        format!("{:.1}s", figures.wait_p50_s),
        format!("{:.1}s", figures.wait_p95_s),
        format!("{:.1}s", figures.wait_max_s),
        format!("{:.0}", figures.vm_seconds),
        figures.starts.to_string(),
        figures.peak_vms.to_string(),
        without.unwrap_or_default(),
    ]
}
