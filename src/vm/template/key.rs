//! What a template is good for: all that a saved guest depends on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::vm::Accel;
use crate::image::{Image, digest};
use crate::vm::VmSpec;
use crate::vm::command::{self, Memory};
use crate::vm::given::GivenFile;
use crate::vm::private_dir::Layout;

/// How templates are made and stored; raised when that changes.
const FORMAT: u32 = 4;

/// Everything that must be the same for a saved guest to be restored. `virt` of riscv64 has no versions, so nothing less
/// than QEMU's very program will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Key {
    format: u32,
    contract: u32,
    qemu: String,
    /// The host's processor and kernel, where they run the guest's instructions.
    host: String,
    /// SHA-256 of kernel, initial RAM disk and disk.
    image: Vec<String>,
    /// SHA-256 of files of this machine that it was given.
    given: Vec<String>,
    /// The size of its disk, which its file system has taken.
    disk_gib: u32,
    /// QEMU's arguments, as they were if every VM had the same name and folder.
    arguments: Vec<String>,
}

impl Key {
    /// The key of the template from which a VM can be cloned.
    pub(super) fn of(spec: &VmSpec) -> Self {
        Self {
            format: FORMAT,
            contract: spec.image.manifest.contract,
            qemu: spec.qemu_identity.clone(),
            host: host(spec.accel),
            image: digests(&spec.image),
            given: spec.given.iter().filter_map(GivenFile::sha256).collect(),
            disk_gib: spec.profile.disk_gib,
            arguments: arguments(spec),
        }
    }

    /// Whether it is that of a template made of this image.
    pub(super) fn is_of(&self, image: &Image) -> bool {
        self.image == digests(image)
    }

    /// 16 hex digits that stand for it.
    pub(super) fn short(&self) -> anyhow::Result<String> {
        let mut digest = digest::of_bytes(&serde_json::to_vec(self)?);
        digest.truncate(16);
        Ok(digest)
    }

    /// Why a template with this key is of no use where another one is asked for.
    pub(super) fn difference(&self, wanted: &Self) -> &'static str {
        if self.format != wanted.format || self.contract != wanted.contract {
            "it was made by another version of xpool"
        } else if self.image != wanted.image {
            "the image has changed"
        } else if self.qemu != wanted.qemu {
            "QEMU has changed"
        } else if self.host != wanted.host {
            "this machine's processor or kernel has changed"
        } else {
            "the VMs are laid out in another way"
        }
    }
}

fn digests(image: &Image) -> Vec<String> {
    let files = image.manifest.files();
    files.iter().map(|file| file.sha256.clone()).collect()
}

fn arguments(spec: &VmSpec) -> Vec<String> {
    let same = VmSpec {
        name: "vm".to_owned(),
        // A guest that is saved has not seen what is in it.
        store: spec.store.as_ref().map(|_| "store".into()),
        ..spec.clone()
    };
    let layout = Layout::new(Path::new("vm"));
    command::arguments(&same, Memory::Saved(Path::new("ram")), &layout)
        .into_iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// Under emulation the host makes no difference; under KVM the guest has seen its processor.
fn host(accel: Accel) -> String {
    let of_kvm = || {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let is_of_cpu = |line: &&str| line.starts_with("model name") || line.starts_with("flags");
        let cpu: Vec<_> = cpu.lines().filter(is_of_cpu).take(2).collect();
        format!("{}{}", read("/proc/version"), cpu.join("\n"))
    };
    match accel {
        Accel::Tcg => String::new(),
        Accel::Kvm => of_kvm(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::System;
    use crate::vm::command::tests::spec;

    fn key(change: impl FnOnce(&mut VmSpec)) -> Key {
        let mut spec = spec(System::Riscv64Linux);
        change(&mut spec);
        Key::of(&spec)
    }

    #[test]
    fn the_vms_name_and_folder_make_no_difference() {
        let other = key(|spec| {
            spec.name = "riscv64-9".to_owned();
            spec.private_parent = "/elsewhere".into();
            spec.store = Some("/elsewhere/nix/store".into());
            spec.console_log = "/elsewhere/log".into();
        });
        let here = key(|spec| spec.store = Some("/nix/store".into()));
        assert_eq!(here, other);
        assert_eq!(key(|_| ()).short().unwrap().len(), 16);
    }

    #[test]
    fn what_a_saved_guest_depends_on_makes_one_and_is_named() {
        type Change = fn(&mut VmSpec);
        let changes: [(Change, &str); 7] = [
            (
                |spec| spec.qemu_identity = "9".to_owned(),
                "QEMU has changed",
            ),
            (
                |spec| spec.image.manifest.disk.sha256 = "1".to_owned(),
                "the image has changed",
            ),
            (
                |spec| spec.image.manifest.contract += 1,
                "it was made by another version of xpool",
            ),
            (
                |spec| spec.memory_mib += 1,
                "the VMs are laid out in another way",
            ),
            (
                |spec| spec.profile.disk_gib += 1,
                "the VMs are laid out in another way",
            ),
            (
                |spec| spec.slots += 1,
                "the VMs are laid out in another way",
            ),
            (
                |spec| spec.store = Some("/nix/store".into()),
                "the VMs are laid out in another way",
            ),
        ];
        for (change, why) in changes {
            let other = key(change);
            assert_eq!(other.difference(&key(|_| ())), why);
            assert_ne!(other.short().unwrap(), key(|_| ()).short().unwrap());
        }
    }
}
