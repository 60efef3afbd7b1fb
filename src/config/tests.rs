//! What is configured, what is not, and what is refused.

mod keys;
mod vms;

use std::num::NonZeroU32;

use super::vm::VcpuCount;
use super::*;
use crate::pool::policy::BuildLimits;
use crate::pool::policy::{Forecasting, Reuse};
use crate::pool::shape::Vcpus;

const HOST: Host = Host {
    cpus: 2,
    memory_mib: 24 * 1024,
    search_path: OsString::new(),
};

fn parse(text: &str) -> Result<Config, ConfigError> {
    let profiles =
        System::ALL.map(|system| (system, toml::from_str(built_in_profile(system)).unwrap()));
    Config::parse(Path::new("xpool.toml"), text, profiles.into(), &HOST)
}

#[track_caller]
fn refused(text: &str) -> String {
    let error = parse(text).unwrap_err();
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

#[test]
fn nothing_configured_suits_the_machine() {
    let config = parse("").unwrap();
    assert_eq!(config.listen, DEFAULT_LISTEN);
    let riscv64 = &config.systems[&System::Riscv64Linux];
    assert_eq!(
        (riscv64.policy.max_vms.get(), riscv64.build_machines(2)),
        (2, 64)
    );
    let small = Host {
        cpus: 8,
        memory_mib: 2048,
        ..HOST
    };
    assert_eq!(small.max_vms().get(), 1);
    assert_eq!(small.build_machines(), 16);
    // A compiler on each processor needs memory.
    let four = NonZeroU32::new(4).unwrap();
    let vcpus = small.vcpus(VcpuCount::Auto, 2048);
    assert_eq!(vcpus, Vcpus::following(four, 8));
}

#[test]
fn a_systems_own_value_wins_over_the_one_for_all() {
    let config = parse(
        "[pool]\nmax-vms = 3\nidle-timeout = \"90s\"\n[systems.riscv64-linux]\nmax-vms = 5\nvcpus = 1\nnetwork = \"none\"\n",
    )
    .unwrap();
    let (riscv64, aarch64) = (
        &config.systems[&System::Riscv64Linux],
        &config.systems[&System::Aarch64Linux],
    );
    assert_eq!(
        (riscv64.policy.max_vms.get(), aarch64.policy.max_vms.get()),
        (5, 3)
    );
    // The other one has as many as the machine has where one VM is at work.
    let all = |count| NonZeroU32::new(count).unwrap();
    assert_eq!(riscv64.policy.vcpus, Vcpus::fixed(all(1)));
    assert_eq!(aarch64.policy.vcpus, Vcpus::following(all(2), 2));
    assert_eq!(riscv64.policy.idle_timeout, Duration::from_secs(90));
    assert_eq!(
        (riscv64.network, aarch64.network),
        (Network::None, Network::Nat)
    );
    assert_eq!(riscv64.build_machines(5), 64);
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_nearest_known_one() {
    assert_eq!(
        refused("[pool]\n\nmax-vm = 3\n"),
        "xpool.toml:3: unknown key `max-vm`; did you mean `max-vms`?"
    );
    assert_eq!(
        refused("[gatway]\n"),
        "xpool.toml:1: unknown key `gatway`; did you mean `gateway`?"
    );
    assert_eq!(
        refused("[systems.riscv64]\n"),
        "xpool.toml:1: unknown key `riscv64`; did you mean `riscv64-linux`?"
    );
    assert_eq!(
        refused("[gateway]\nxyz = 1\n"),
        "xpool.toml:2: unknown key `xyz`; known keys are `listen`"
    );
}

#[test]
fn values_out_of_range_are_named_with_their_line_and_their_range() {
    assert_eq!(
        refused("[pool]\nmax-vms = 0\n"),
        "xpool.toml:2: `max-vms` is 0 but must be from 1 to 1000"
    );
    assert_eq!(
        refused("[gateway]\nlisten = \"127.0.0.1:99999\"\n"),
        "xpool.toml:2: `listen` is `127.0.0.1:99999` but its port must be from 1 to 65535, such as `127.0.0.1:31022`"
    );
    assert_eq!(
        refused("[metrics]\nlisten = \"31023\"\n"),
        "xpool.toml:2: `listen` is `31023` but must be an address with a port, such as `127.0.0.1:31023`"
    );
    assert_eq!(
        refused("[pool]\nidle-timeout = \"soon\"\n"),
        "xpool.toml:2: `soon` is not a duration such as `90s`, `10m` or `1h 30m`"
    );
}

#[test]
fn another_store_is_named_by_an_absolute_path() {
    assert_eq!(
        refused("[store]\nroot = \"here\"\n"),
        "xpool.toml:2: `root` is `here` but must be an absolute path, the one that Nix is given as `--store`"
    );
    let root = |text| parse(text).unwrap().store_root;
    assert_eq!(root("[store]\nroot = \"/a/b\"\n"), Some("/a/b".into()));
    assert_eq!(root("[store]\nroot = \"/\"\n"), None);
}

#[test]
fn durations_and_minimums_have_ranges() {
    assert_eq!(
        refused("[pool]\nboot-timeout = \"0s\"\n"),
        "xpool.toml:2: `0s` must be from one second to 30 days"
    );
    assert_eq!(
        refused("[pool]\nidle-timeout = \"1000y\"\n"),
        "xpool.toml:2: `1000y` must be from one second to 30 days"
    );
    assert_eq!(
        refused("[pool]\nmax-vms = 2\nmin-vms = 3\n"),
        "xpool.toml:3: `min-vms` is 3 but must be from 0 to 2"
    );
}

#[test]
fn the_example_in_the_readme_is_a_configuration() {
    let readme = include_str!("../../README.md");
    let example = readme
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let config = parse(example).unwrap();
    assert_eq!(config.listen, DEFAULT_LISTEN);
    let riscv64 = &config.systems[&System::Riscv64Linux];
    assert_eq!(riscv64.policy.vcpus, Vcpus::fixed(NonZeroU32::MIN));
}

#[test]
fn the_compiled_in_profiles_parse_and_are_for_their_system() {
    for system in System::ALL {
        let profile = load_profile(Path::new("/nonexistent"), system).unwrap();
        assert_eq!(profile.system, system);
    }
}

#[test]
fn a_pool_without_values_uses_no_vm_twice_and_keeps_none_warm() {
    let config = parse("").unwrap();
    let riscv64 = &config.systems[&System::Riscv64Linux];
    let policy = &riscv64.policy;
    assert_eq!((policy.reuse, policy.warm), (Reuse::Never, 0));
    assert_eq!(policy.lease, Duration::from_secs(10));
    assert_eq!(
        (policy.memory_estimate_mib, policy.memory_floor_mib),
        (512, 1024)
    );
    assert!(riscv64.template && riscv64.pause);
}

#[test]
fn what_a_vm_may_be_used_for_and_what_it_takes_can_be_configured() {
    let config = parse(
        "[pool]\nreuse = \"client\"\nwarm = 2\nlease = \"30s\"\nmemory-estimate-mib = 300\nmemory-floor-mib = 0\n\
         [systems.riscv64-linux]\nreuse = \"always\"\ntemplate = false\npause = false\nslots-per-vm = 4\n",
    )
    .unwrap();
    let (riscv64, aarch64) = (
        &config.systems[&System::Riscv64Linux],
        &config.systems[&System::Aarch64Linux],
    );
    assert_eq!(
        (riscv64.policy.reuse, aarch64.policy.reuse),
        (Reuse::Always, Reuse::Client)
    );
    assert_eq!((riscv64.template, aarch64.template), (false, true));
    assert_eq!((riscv64.pause, aarch64.pause), (false, true));
    assert_eq!(
        (aarch64.policy.warm, aarch64.policy.lease),
        (2, Duration::from_secs(30))
    );
    assert_eq!(
        (
            aarch64.policy.memory_estimate_mib,
            aarch64.policy.memory_floor_mib
        ),
        (300, 0)
    );
}

#[test]
fn builds_have_no_limits_unless_some_are_configured() {
    let limits = |text: &str| {
        let config = parse(text).unwrap();
        System::ALL.map(|system| config.systems[&system].policy.build_limits)
    };
    assert_eq!(limits(""), [BuildLimits::default(); 2]);
    let both = "[pool]\nmax-silent-time = \"10m\"\n[systems.riscv64-linux]\ntimeout = \"2h\"\n";
    let aarch64 = BuildLimits {
        timeout: None,
        max_silent_time: Some(Duration::from_secs(600)),
    };
    let riscv64 = BuildLimits {
        timeout: Some(Duration::from_secs(7200)),
        ..aarch64
    };
    assert_eq!(limits(both), [riscv64, aarch64]);
    assert!(parse("[pool]\ntimeout = \"0s\"\n").is_err());
}

#[test]
fn only_a_configured_maximum_limits_up() {
    let limit = |text| {
        let config = parse(text).unwrap();
        config.systems[&System::Riscv64Linux].policy.up_limit.get()
    };
    assert_eq!(limit(""), 64);
    assert_eq!(limit("[pool]\nmax-vms = 3\n"), 3);
    assert_eq!(limit("[pool]\nmax-vms = 100\n"), 100);
}

#[test]
fn build_machines_follow_the_memory_and_are_twice_what_can_run_at_the_least() {
    let machines = |text: &str| {
        let small = Host {
            memory_mib: 1024,
            ..HOST
        };
        let config = Config::of_text(text, &small).unwrap();
        let riscv64 = &config.systems[&System::Riscv64Linux];
        let told = [1, 2, 12, 100].map(|max_vms| riscv64.build_machines(max_vms));
        (told, riscv64.slots())
    };
    assert_eq!(machines(""), ([16, 16, 24, 64], 64));
    let wide = "[pool]\nslots-per-vm = 3\nreuse = \"always\"\n";
    assert_eq!(machines(wide), ([16, 16, 64, 64], 64));
    // Who has set a number means it.
    assert_eq!(machines("[pool]\nbuild-machines = 2\n"), ([2; 4], 2));
    assert_eq!(
        refused("[pool]\nbuild-machines = 65\n"),
        "xpool.toml:2: `build-machines` is 65 but must be from 1 to 64"
    );
}

#[test]
fn several_slots_of_a_vm_that_is_used_once_are_refused() {
    let expected = "xpool.toml:2: `slots-per-vm` is 2 but with `reuse = \"never\"` a VM has one build in its life; \
                    more than 1 needs `reuse = \"client\"` or `reuse = \"always\"`";
    assert_eq!(refused("[pool]\nslots-per-vm = 2\n"), expected);
    assert_eq!(
        refused(
            "[pool]\nslots-per-vm = 2\nreuse = \"always\"\n[systems.aarch64-linux]\nreuse = \"never\"\n"
        ),
        expected
    );
    assert!(parse("[pool]\nslots-per-vm = 2\nreuse = \"client\"\n").is_ok());
}

#[test]
fn unknown_values_are_named_with_the_nearest_known_one() {
    assert_eq!(
        refused("[pool]\nreuse = \"nevr\"\n"),
        "xpool.toml:2: unknown value `nevr`; did you mean `never`?"
    );
    assert_eq!(
        refused("[pool]\nreuse = \"yes\"\n"),
        "xpool.toml:2: unknown value `yes`; known values are `never`, `client`, `always`"
    );
    assert_eq!(
        refused("[pool]\nnetwork = \"natt\"\n"),
        "xpool.toml:2: unknown value `natt`; did you mean `nat`?"
    );
    assert_eq!(
        refused("[pool]\nmax-vms = 2\nwarm = 3\n"),
        "xpool.toml:3: `warm` is 3 but must be from 0 to 2"
    );
}

#[test]
fn a_trace_has_an_absolute_path() {
    let trace = |text: &str| parse(text).map(|config| config.trace);
    assert_eq!(trace("").unwrap(), None);
    let file = trace("[trace]\nfile = \"/var/lib/xpool/trace.csv\"").unwrap();
    assert_eq!(file, Some("/var/lib/xpool/trace.csv".into()));
    let error = trace("\n[trace]\nfile = \"trace.csv\"")
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(":3: `file` is `trace.csv` but must be an absolute path"),
        "{error}"
    );
}

#[test]
fn a_budget_is_for_all_systems_and_has_no_limit_of_its_own() {
    let budget = parse("").unwrap().budget;
    assert_eq!((budget.vcpus, budget.memory_mib), (None, None));
    assert_eq!(
        (budget.memory_pressure, budget.cpu_pressure),
        (Some(20), None)
    );
    let text = "[budget]\nvcpus = 4\nmemory-mib = 8192\ncpu-pressure = 95\n";
    let budget = parse(text).unwrap().budget;
    assert_eq!((budget.vcpus, budget.memory_mib), (Some(4), Some(8192)));
    assert_eq!(budget.cpu_pressure, Some(95));
    assert_eq!(
        refused("[budget]\nmemory-pressure = 0\n"),
        "xpool.toml:2: `memory-pressure` is 0 but must be from 1 to 100"
    );
}

#[test]
fn a_forecast_is_observed_unless_something_else_is_said() {
    let policy = |text: &str| {
        parse(text).unwrap().systems[&System::Riscv64Linux]
            .policy
            .clone()
    };
    let of = |text| (policy(text).forecast, policy(text).warm_max);
    assert_eq!(of(""), (Forecasting::Observe, 2));
    assert_eq!(
        of("[pool]\nforecast = \"on\"\nmax-vms = 1\n"),
        (Forecasting::On, 1)
    );
    let own = "[pool]\nforecast = \"off\"\nmax-vms = 4\n[systems.riscv64-linux]\nwarm = 3\nforecast = \"on\"\n";
    assert_eq!(of(own), (Forecasting::On, 3));
    assert_eq!(
        of("[pool]\nmax-vms = 4\nwarm-max = 4\n"),
        (Forecasting::Observe, 4)
    );
    assert_eq!(
        refused("[pool]\nmax-vms = 4\nwarm = 3\nwarm-max = 2\n"),
        "xpool.toml:3: `warm` is 3 but `warm-max` is 2; `warm-max` is the most that is kept warm, by a forecast too"
    );
    assert_eq!(
        refused("[pool]\nmax-vms = 4\nwarm-max = 5\n"),
        "xpool.toml:3: `warm-max` is 5 but must be from 0 to 4"
    );
    assert_eq!(
        refused("[pool]\nforecast = \"onn\"\n"),
        "xpool.toml:2: unknown value `onn`; did you mean `on`?"
    );
}
