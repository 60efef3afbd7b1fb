//! What the builders of a pool can do beside what all can: system features, further platforms, experimental features. Nix has to be
//! told in a machines line, or it sends no such build, and the guest's Nix in its configuration, or it refuses. Pure.

use std::collections::BTreeSet;

use super::System;

/// Features that all guests have: the words of `system-features` in images/portable/nix.conf.
pub const SYSTEM_FEATURES: [&str; 2] = ["benchmark", "big-parallel"];

/// System features that Nix wants of a build by itself, and the experimental features without which the guest's Nix has none of that
/// (`ParsedDerivation::getRequiredSystemFeatures`, `StoreConfig::getDefaultSystemFeatures` and `useUidRange` of Nix 2.26).
const NEEDED: [(&str, &[&str]); 3] = [
    ("ca-derivations", &["ca-derivations"]),
    ("recursive-nix", &["recursive-nix"]),
    ("uid-range", &["auto-allocate-uids", "cgroups"]),
];

/// Experimental features, and the system features that builds by them want.
const WANTED: [(&str, &str); 4] = [
    ("ca-derivations", "ca-derivations"),
    ("impure-derivations", "ca-derivations"),
    ("recursive-nix", "recursive-nix"),
    ("auto-allocate-uids", "uid-range"),
];

/// What the builders of a pool can do. All words are of letters, digits, and `+-._`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    features: BTreeSet<String>,
    mandatory: BTreeSet<String>,
    platforms: BTreeSet<String>,
    experimental: BTreeSet<String>,
}

impl Abilities {
    /// What is configured, with what it needs and what needs it.
    pub fn new(
        features: impl IntoIterator<Item = String>,
        mandatory: impl IntoIterator<Item = String>,
        platforms: impl IntoIterator<Item = String>,
        experimental: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut all = Self {
            features: features.into_iter().collect(),
            mandatory: mandatory.into_iter().collect(),
            platforms: platforms.into_iter().collect(),
            experimental: experimental.into_iter().collect(),
        };
        for (experimental, feature) in WANTED {
            if all.experimental.contains(experimental) && !all.mandatory.contains(feature) {
                all.features.insert(feature.to_owned());
            }
        }
        for (feature, experimental) in NEEDED {
            if all.features.contains(feature) || all.mandatory.contains(feature) {
                all.experimental
                    .extend(experimental.iter().map(|&word| word.to_owned()));
            }
        }
        all
    }

    /// The platforms of a line: that of the system first.
    pub fn platforms(&self, system: System) -> Vec<&str> {
        let further = self.platforms.iter().map(String::as_str);
        let further = further.filter(|platform| *platform != system.name());
        [system.name()].into_iter().chain(further).collect()
    }

    /// The features of a line, but for those that a build has to want.
    pub fn features(&self) -> Vec<&str> {
        let further = self.features.iter().map(String::as_str);
        let further = further.filter(|word| !SYSTEM_FEATURES.contains(word));
        let is_optional = |word: &&str| !self.mandatory.contains(*word);
        SYSTEM_FEATURES
            .into_iter()
            .chain(further)
            .filter(is_optional)
            .collect()
    }

    /// The features that a build has to want, or it is not sent.
    pub fn mandatory(&self) -> Vec<&str> {
        self.mandatory.iter().map(String::as_str).collect()
    }

    /// What the guest's nix.conf has beside what is in its image, which may have experiments and features of its own; empty where there
    /// is nothing.
    pub fn guest_conf(&self) -> String {
        let mut conf = String::new();
        let mut say = |key: &str, words: Vec<&str>| {
            conf += &[key, " = ", &words.join(" "), "\n"].concat();
        };
        if !self.experimental.is_empty() {
            let words = self.experimental.iter().map(String::as_str);
            say("extra-experimental-features", words.collect());
        }
        if self.experimental.contains("auto-allocate-uids") {
            say("auto-allocate-uids", vec!["true"]);
        }
        if !self.platforms.is_empty() {
            let words = self.platforms.iter().map(String::as_str);
            say("extra-extra-platforms", words.collect());
        }
        let features = self.features.union(&self.mandatory).map(String::as_str);
        let further: Vec<_> = features
            .filter(|word| !SYSTEM_FEATURES.contains(word))
            .collect();
        if !further.is_empty() {
            say("extra-system-features", further);
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(features: &[&str], mandatory: &[&str], experimental: &[&str]) -> Abilities {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        Abilities::new(words(features), words(mandatory), [], words(experimental))
    }

    #[test]
    fn without_any_a_guest_is_told_nothing() {
        let none = Abilities::default();
        assert_eq!(none.guest_conf(), "");
        assert_eq!(none.features(), SYSTEM_FEATURES);
        assert_eq!(none.platforms(System::Riscv64Linux), ["riscv64-linux"]);
    }

    #[test]
    fn what_a_feature_needs_and_what_an_experiment_wants_comes_with_it() {
        let uids = abilities(&["uid-range"], &[], &[]);
        assert_eq!(
            uids.guest_conf(),
            "extra-experimental-features = auto-allocate-uids cgroups\nauto-allocate-uids = true\n\
             extra-system-features = uid-range\n"
        );
        assert_eq!(
            abilities(&[], &[], &["auto-allocate-uids", "cgroups"]),
            uids
        );
        let impure = abilities(&[], &[], &["impure-derivations"]);
        assert_eq!(
            impure.guest_conf(),
            "extra-experimental-features = ca-derivations impure-derivations\n\
             extra-system-features = ca-derivations\n"
        );
    }

    #[test]
    fn a_mandatory_feature_is_no_other_one() {
        let alone = abilities(&["gccarch-rv64gc"], &["benchmark"], &[]);
        assert_eq!(alone.features(), ["big-parallel", "gccarch-rv64gc"]);
        assert_eq!(alone.mandatory(), ["benchmark"]);
        let conf = "extra-system-features = gccarch-rv64gc\n";
        assert_eq!(alone.guest_conf(), conf);
        let arm = Abilities::new([], [], ["armv7l-linux".to_owned()], []);
        assert_eq!(arm.guest_conf(), "extra-extra-platforms = armv7l-linux\n");
        let platforms = ["aarch64-linux", "armv7l-linux"];
        assert_eq!(arm.platforms(System::Aarch64Linux), platforms);
    }
}
