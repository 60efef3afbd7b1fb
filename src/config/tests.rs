//! What is configured, what is not, and what is refused.

use super::*;

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
        (riscv64.policy.max_vms.get(), riscv64.build_machines),
        (2, 4)
    );
    let small = Host {
        cpus: 8,
        memory_mib: 2048,
        ..HOST
    };
    assert_eq!(small.max_vms(&riscv64.profile).get(), 1);
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
    assert_eq!((riscv64.profile.vcpus, aarch64.profile.vcpus), (1, 2));
    assert_eq!(riscv64.policy.idle_timeout, Duration::from_secs(90));
    assert_eq!(
        (riscv64.network, aarch64.network),
        (Network::None, Network::Nat)
    );
    assert_eq!(riscv64.build_machines, 10);
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
        refused("[pool]\nidle-timeout = \"soon\"\n"),
        "xpool.toml:2: `soon` is not a duration such as `90s`, `10m` or `1h 30m`"
    );
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
    assert_eq!(config.systems[&System::Riscv64Linux].profile.vcpus, 1);
}

#[test]
fn the_compiled_in_profiles_parse_and_are_for_their_system() {
    for system in System::ALL {
        let profile = load_profile(Path::new("/nonexistent"), system).unwrap();
        assert_eq!(profile.system, system);
    }
}
