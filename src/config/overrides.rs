//! Values of a pool that somebody tries out: keys of xpool.toml's `[pool]`, which win over the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use super::raw::{RawConfig, RawPool};
use super::vm::VmProfile;
use super::{ConfigError, Host, SystemConfig, check};
use crate::nix::System;

/// Where these values stand, for what is wrong with them.
const PLACE: &str = "command line";

/// Keys with values, as lines of TOML by key. Of two for one key the later one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<String, String>);

/// It is not a key with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it must be a key of xpool.toml's `[pool]` with a value, such as `warm=1` or `idle-timeout=5m`"
)]
pub struct NoOverride;

impl FromStr for Overrides {
    type Err = NoOverride;

    /// Takes `KEY=VALUE`, where a text need not be quoted.
    fn from_str(given: &str) -> Result<Self, NoOverride> {
        let (key, value) = given.split_once('=').ok_or(NoOverride)?;
        let (key, value) = (key.trim(), value.trim());
        let is_key = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.');
        if key.is_empty() || value.is_empty() || !key.chars().all(is_key) {
            return Err(NoOverride);
        }
        let line = format!("{key} = {value}\n");
        let is_toml = !value.contains('\n') && toml::from_str::<toml::Table>(&line).is_ok();
        let quoted = || format!("{key} = {}\n", toml::Value::from(value));
        let line = if is_toml { line } else { quoted() };
        Ok(Self(BTreeMap::from([(key.to_owned(), line)])))
    }
}

impl Overrides {
    /// These and further ones.
    #[must_use]
    pub fn and(mut self, more: &Self) -> Self {
        self.0.extend(more.0.clone());
        self
    }

    /// Every system's values, checked, with these in front; `None` if there are none of these.
    pub(super) fn systems(
        &self,
        raw: &RawConfig,
        profiles: BTreeMap<System, VmProfile>,
        host: &Host,
        budget_mib: Option<u64>,
    ) -> Result<Option<BTreeMap<System, SystemConfig>>, ConfigError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let text: String = self.0.values().map(String::as_str).collect();
        let place = Path::new(PLACE);
        let first: RawPool = toml::from_str(&text)
            .map_err(|error| ConfigError::toml(place, &text, &error).without_line())?;
        let wrong = |_: &toml::Spanned<u32>, message| {
            ConfigError::value(place, "", 0..0, message).without_line()
        };
        let systems = profiles.into_iter().map(|(system, profile)| {
            let merged = first.clone().or(&raw.pool_of(system));
            Ok((
                system,
                check::pool(&merged, profile, host, budget_mib, wrong)?,
            ))
        });
        systems.collect::<Result<_, _>>().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(given: &str) -> String {
        let overrides = given.parse::<Overrides>().unwrap();
        overrides.0.into_values().collect()
    }

    #[test]
    fn the_later_value_of_a_key_counts() {
        let [first, second] = ["warm=1", "warm=2"].map(|given| given.parse().unwrap());
        assert_eq!(Overrides::and(first, &second), second);
    }

    #[test]
    fn texts_need_no_quotes() {
        assert_eq!(toml("max-vms=6"), "max-vms = 6\n");
        assert_eq!(toml("idle-timeout = 5m"), "idle-timeout = \"5m\"\n");
        assert_eq!(toml("reuse=\"client\""), "reuse = \"client\"\n");
        assert_eq!(toml("store.share=none"), "store.share = \"none\"\n");
    }

    #[test]
    fn what_is_no_key_with_a_value_is_refused() {
        for given in ["", "warm", "=1", "warm=", "a b=1", "[x]\nwarm=1"] {
            assert_eq!(given.parse::<Overrides>(), Err(NoOverride), "{given}");
        }
        // No further key by the back door.
        assert_eq!(
            toml("warm=1\nmin-vms=2"),
            "warm = \"\"\"\n1\nmin-vms=2\"\"\"\n"
        );
    }
}
