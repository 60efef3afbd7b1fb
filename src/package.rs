//! What the package that this xpool is from has for it.
//!
//! It is told while xpool is compiled (flake.nix): a program that finds this by itself needs no wrapper around it, which would give it
//! another name for itself.

use std::ffi::{OsStr, OsString};

/// A package; one without anything is what other distributions have, where programs are in PATH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Folders with programs, as in PATH.
    pub path: Option<&'static str>,
    /// A folder with the keys that sign Debian's archive.
    pub keyrings: Option<&'static str>,
    /// xpool's flake, as Nix takes it.
    pub flake: Option<&'static str>,
}

/// That of this xpool.
pub const THIS: Package = Package {
    path: option_env!("XPOOL_PACKAGE_PATH"),
    keyrings: option_env!("XPOOL_PACKAGE_KEYRINGS"),
    flake: option_env!("XPOOL_PACKAGE_FLAKE"),
};

impl Package {
    /// Where programs are looked for: first in the package, then in this PATH.
    pub fn search_path(self, path: &OsStr) -> OsString {
        let Some(own) = self.path else {
            return path.to_owned();
        };
        let mut all = OsString::from(own);
        if !path.is_empty() {
            all.push(":");
            all.push(path);
        }
        all
    }

    /// What to do about a program that is missing, by the packages of Debian and of nixpkgs that have it.
    pub fn remedy(self, debian: &str, nixpkgs: &str) -> String {
        if self.path.is_some() {
            format!(
                "`nix-shell -p {nixpkgs}` has it, and xpool's own package should: please report it"
            )
        } else {
            format!("install it with `apt-get install {debian}`")
        }
    }

    /// What to do about one that is too old.
    pub fn newer(self, debian: &str, nixpkgs: &str) -> String {
        if self.path.is_some() {
            format!("`nix-shell -p {nixpkgs}` of a newer nixpkgs has one")
        } else {
            format!("on Debian 12: `apt-get install -t bookworm-backports {debian}`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_NIX: Package = Package {
        path: Some("/nix/store/q-qemu/bin"),
        keyrings: None,
        flake: None,
    };

    #[test]
    fn a_packages_programs_come_first() {
        let all = OF_NIX.search_path(OsStr::new("/usr/bin:/bin"));
        assert_eq!(all, "/nix/store/q-qemu/bin:/usr/bin:/bin");
        // An empty word in PATH stands for the folder that one is in.
        assert_eq!(OF_NIX.search_path(OsStr::new("")), "/nix/store/q-qemu/bin");
        let others = Package::default().search_path(OsStr::new("/usr/bin"));
        assert_eq!(others, "/usr/bin");
    }

    #[test]
    fn what_is_missing_is_named_as_the_distribution_has_it() {
        insta::assert_snapshot!(OF_NIX.remedy("qemu-system-arm", "qemu"), @"`nix-shell -p qemu` has it, and xpool's own package should: please report it");
        insta::assert_snapshot!(Package::default().remedy("qemu-system-arm", "qemu"), @"install it with `apt-get install qemu-system-arm`");
        insta::assert_snapshot!(OF_NIX.newer("qemu-system-arm", "qemu"), @"`nix-shell -p qemu` of a newer nixpkgs has one");
        insta::assert_snapshot!(Package::default().newer("qemu-system-arm", "qemu"), @"on Debian 12: `apt-get install -t bookworm-backports qemu-system-arm`");
    }
}
