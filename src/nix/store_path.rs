//! A path in a Nix store.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where every store that xpool deals with says that its paths are. Another folder is another store's, whose paths have other
/// hashes and are of no use to a guest.
pub const STORE_DIR: &str = "/nix/store";

/// Characters of a path's hash part.
const HASH_PART: usize = 32;

/// The longest name of a path after its hash and dash, in characters (`StorePath::MaxPathLen` of Nix).
const LONGEST_NAME: usize = 211;

/// A path directly below [`STORE_DIR`]: `/nix/store/1b2m…-hello-2.12`. It has no characters that mean something to a shell or
/// in a list of lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

/// A text is not a path of the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no path in {STORE_DIR}", .0.escape_debug())]
pub struct NoStorePath(String);

impl TryFrom<String> for StorePath {
    type Error = NoStorePath;

    fn try_from(text: String) -> Result<Self, NoStorePath> {
        Self::parse(text.as_bytes()).ok_or(NoStorePath(text))
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

impl StorePath {
    /// The path that these bytes are; `None` if Nix would not take them for one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let base = text.strip_prefix(STORE_DIR)?.strip_prefix('/')?;
        let (hash, name) = base.split_at_checked(HASH_PART)?;
        let name = name.strip_prefix('-')?;
        // Base 32 in Nix's own digits, which leave out e, o, t and u.
        let is_digit = |digit: u8| {
            matches!(digit, b'0'..=b'9' | b'a'..=b'z')
                && !matches!(digit, b'e' | b'o' | b't' | b'u')
        };
        let is_of_name = |char: u8| {
            char.is_ascii_alphanumeric() || matches!(char, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
        };
        let is_path = hash.bytes().all(is_digit)
            && (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(is_of_name);
        is_path.then(|| Self(text.to_owned()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after [`STORE_DIR`] and the slash: its name in the store's folder.
    pub fn base_name(&self) -> &str {
        &self.0[STORE_DIR.len() + 1..]
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_makes_is_a_path() {
        for name in ["hello-2.12", "a", "X_y+z=1?.drv", ".hidden"] {
            let text = format!("/nix/store/b0a26ff37b0c5c35c34c0d4d0cb00b18-{name}");
            let path = StorePath::parse(text.as_bytes()).unwrap();
            assert_eq!(path.as_str(), text);
            assert_eq!(path.base_name(), &text["/nix/store/".len()..]);
        }
    }

    #[test]
    fn what_is_in_another_store_or_deeper_or_odd_is_not() {
        let hash = "b0a26ff37b0c5c35c34c0d4d0cb00b18";
        let long = "x".repeat(LONGEST_NAME + 1);
        for text in [
            format!("/gnu/store/{hash}-a"),
            format!("/nix/store/{hash}-a/b"),
            format!("/nix/store/{hash}-a\n/nix/store"),
            format!("/nix/store/{hash}-{long}"),
            format!("/nix/store/{hash}-"),
            format!("/nix/store/{hash}a"),
            format!("/nix/store/{}-a", hash.replace('b', "e")),
            format!("/nix/store/{}é-a", &hash[1..]),
            "/nix/store/short-a".to_owned(),
            String::new(),
        ] {
            assert_eq!(StorePath::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(StorePath::parse(b"\xff"), None);
    }
}
