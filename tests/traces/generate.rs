//! `cargo run --example traces`: makes the traces of this folder, the same ones each time. They are invented, after what people
//! and machines do: `tests/it/simulate.rs` says what a pool makes of them, and checks that they are what this makes.

use std::io;
use std::path::Path;

const HEAD: &str = "time,system,client,seconds\n";
const RISCV64: &str = "riscv64-linux";
const AARCH64: &str = "aarch64-linux";
const HOUR: u64 = 3600;

/// Numbers that look random and are the same everywhere: `SplitMix64`, as its author has published it.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of these numbers, all as likely.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.roll() % (most - least + 1)
    }

    /// The same, small ones more likely: most builds are short, and a few are not.
    fn short_within(&mut self, least: u64, most: u64) -> u64 {
        let third = self.within(0, 1000) * self.within(0, 1000) * self.within(0, 1000);
        least + (most - least) * third / 1_000_000_000
    }

    fn happens(&mut self, percent: u64) -> bool {
        self.within(1, 100) <= percent
    }

    fn system(&mut self, percent_riscv64: u64) -> &'static str {
        if self.happens(percent_riscv64) {
            RISCV64
        } else {
            AARCH64
        }
    }
}

/// A build: when it is wanted and its work in tenths of a second, the rest of its line between them.
type Line = (u64, String, u64);

fn csv(mut lines: Vec<Line>) -> String {
    lines.sort();
    let tenths = |n: u64| format!("{}.{}", n / 10, n % 10);
    let text = |(at, who, work): Line| format!("{},{who},{}\n", tenths(at), tenths(work));
    std::iter::once(HEAD.to_owned())
        .chain(lines.into_iter().map(text))
        .collect()
}

/// One person for eight hours: two to four times an hour something is built, mostly one thing, at times a handful.
pub(crate) fn laptop_day() -> String {
    let mut dice = Dice(1);
    let mut lines = Vec::new();
    for hour in 0..8 {
        for _ in 0..dice.within(2, 4) {
            let begin = 10 * (hour * HOUR + dice.within(0, HOUR - 1));
            let system = dice.system(80);
            let builds = if dice.happens(25) {
                dice.within(3, 6)
            } else {
                1
            };
            for _ in 0..builds {
                let at = begin + dice.within(0, 30);
                let work = dice.short_within(30, 9000);
                lines.push((at, format!("{system},laptop"), work));
            }
        }
    }
    csv(lines)
}

/// A CI of four runners for eight hours: every 25 to 55 minutes one of them wants 10 to 60 builds of 5 to 300 seconds for both
/// systems, all within half a minute, and nothing in between.
pub(crate) fn bursty_ci() -> String {
    let mut dice = Dice(2);
    let mut lines = Vec::new();
    let mut begin = 0;
    while begin < 10 * 8 * HOUR {
        let runner = dice.within(1, 4);
        for _ in 0..dice.within(10, 60) {
            let at = begin + dice.within(0, 300);
            let system = dice.system(50);
            let work = dice.short_within(50, 3000);
            lines.push((at, format!("{system},ci-{runner}"), work));
        }
        begin += 10 * 60 * dice.within(25, 55);
    }
    csv(lines)
}

/// Two thousand builds of one client within six hours, as their inputs get ready; and a person who wants one now and then.
pub(crate) fn nightly_mass_build() -> String {
    let mut dice = Dice(3);
    let mut lines = Vec::new();
    while lines.len() < 2000 {
        let begin = dice.within(0, 10 * (6 * HOUR - 60));
        let wave = dice.within(5, 60).min(2000 - lines.len() as u64);
        for _ in 0..wave {
            let at = begin + dice.within(0, 600);
            let work = dice.short_within(20, 3600);
            lines.push((at, format!("{RISCV64},nightly"), work));
        }
    }
    for n in 0..12 {
        let at = 10 * (n * HOUR / 2 + dice.within(0, HOUR / 2 - 1));
        let work = dice.short_within(50, 1200);
        lines.push((at, format!("{RISCV64},person"), work));
    }
    csv(lines)
}

/// Each file's name and what is in it.
pub(crate) fn all() -> [(&'static str, String); 3] {
    [
        ("laptop-day.csv", laptop_day()),
        ("bursty-ci.csv", bursty_ci()),
        ("nightly-mass-build.csv", nightly_mass_build()),
    ]
}

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    for (name, text) in all() {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
