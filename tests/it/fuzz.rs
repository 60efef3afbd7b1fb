//! What the fuzz targets (tests/fuzz) begin with, given to each of them once, whole and damaged; without libFuzzer, which makes more of
//! it in `scripts/fuzz`.

use std::path::Path;

#[path = "../fuzz/targets/command.rs"]
mod command;
#[path = "../fuzz/targets/config.rs"]
mod config;
#[path = "../fuzz/targets/handshake.rs"]
mod handshake;
#[path = "../fuzz/targets/machine.rs"]
mod machine;
#[path = "../fuzz/targets/nar.rs"]
mod nar;
#[path = "../fuzz/targets/observer.rs"]
mod observer;
#[path = "../fuzz/targets/queries.rs"]
mod queries;
#[path = "../fuzz/seeds.rs"]
#[allow(dead_code, reason = "its `main` writes them as files")]
mod seeds;

const TARGETS: [&str; 7] = [
    "command",
    "config",
    "handshake",
    "machine",
    "nar",
    "observer",
    "queries",
];

/// How many places of a seed are damaged, each in a copy of it.
const PLACES: usize = 40;

fn check(target: &str, data: &[u8]) {
    match target {
        "command" => command::check(data),
        "config" => config::check(data),
        "handshake" => handshake::check(data),
        "machine" => machine::check(data),
        "nar" => nar::check(data),
        "observer" => observer::check(data),
        "queries" => queries::check(data),
        _ => panic!("there is no target {target}"),
    }
}

/// A seed as it is, and at some places: its end, a bit that is another one, and eight bytes that are the largest number.
fn variants(seed: &[u8]) -> Vec<Vec<u8>> {
    let mut variants = vec![seed.to_vec()];
    for at in (0..seed.len()).step_by(seed.len().div_ceil(PLACES).max(1)) {
        let mut flipped = seed.to_vec();
        flipped[at] ^= 1 << (at % 8);
        let mut large = seed.to_vec();
        large.splice(at..(at + 8).min(seed.len()), [0xff; 8]);
        variants.extend([seed[..at].to_vec(), flipped, large]);
    }
    variants
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "says which seed it was where this fails"
)]
fn fuzz_targets_withstand_their_seeds_whole_and_damaged() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let seeds = seeds::all(&tests.join("captures"), &tests.join("fuzz/seeds")).unwrap();
    for target in TARGETS {
        assert!(seeds.iter().any(|seed| seed.target == target), "{target}");
    }
    for seed in seeds {
        println!("{} {}", seed.target, seed.name);
        for variant in variants(&seed.data) {
            check(&seed.target, &variant);
        }
    }
}
