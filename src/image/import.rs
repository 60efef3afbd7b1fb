//! Taking an image that somebody else has made, Nix for one, with its manifest.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::manifest::{CONTRACT, Manifest};
use super::store::ImageStore;
use super::{Image, build};
use crate::nix::System;

/// The manifest's name in an image's folder.
const MANIFEST: &str = "manifest.json";

/// Makes a copy of the image in `from` the one in use for a system. Nothing changes where it is not one, or not whole.
pub fn import(store: &ImageStore, system: System, from: &Path) -> Result<Image> {
    let manifest = read(system, from)?;
    let root = store.root();
    let making = || format!("copying the image into `{}`", root.display());
    fs::create_dir_all(root).with_context(making)?;
    let _lock = build::wait_for_lock(root, system)?;
    let work = build::work_folder(root, system)?;
    let dir = work.path().join("out");
    fs::create_dir(&dir).with_context(making)?;
    for file in manifest.files() {
        let (old, new) = (from.join(&file.name), dir.join(&file.name));
        fs::copy(&old, &new).with_context(|| format!("copying `{}`", old.display()))?;
    }
    let copy = Image {
        dir: dir.clone(),
        manifest: manifest.clone(),
    };
    store.verify(&copy)?;
    Ok(store.adopt(&dir, &manifest)?)
}

fn read(system: System, from: &Path) -> Result<Manifest> {
    let file = from.join(MANIFEST);
    let text = fs::read(&file).with_context(|| format!("reading `{}`", file.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is no manifest of an image", file.display()))?;
    ensure!(
        manifest.system == system,
        "the image in `{}` is for {}, not for {system}",
        from.display(),
        manifest.system
    );
    ensure!(
        manifest.contract == CONTRACT,
        "the image in `{}` keeps version {} of the guest contract and this xpool speaks {CONTRACT}: build it from this \
         xpool's own flake",
        from.display(),
        manifest.contract
    );
    for file in manifest.files() {
        let is_plain = Path::new(&file.name).file_name() == Some(file.name.as_ref());
        ensure!(is_plain, "`{}` is no name of a file", file.name);
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest;
    use crate::image::manifest::{ImageFile, ImageKind};
    use crate::image::store::ImageError;

    const SYSTEM: System = System::Riscv64Linux;

    /// A folder with an image, as Nix would make it.
    fn made(dir: &Path) -> Manifest {
        let file = |name: &str| {
            fs::write(dir.join(name), name).unwrap();
            ImageFile {
                name: name.to_owned(),
                size: name.len() as u64,
                sha256: digest::of_bytes(name.as_bytes()),
            }
        };
        let manifest = Manifest {
            contract: CONTRACT,
            system: SYSTEM,
            kind: ImageKind::Nixos,
            recipe: "1".to_owned(),
            nix_version: "2.31".to_owned(),
            kernel_version: "6.12".to_owned(),
            cmdline: String::new(),
            kernel: file("Image"),
            initrd: file("initrd"),
            disk: file("disk.qcow2"),
        };
        write(dir, &manifest);
        manifest
    }

    fn write(dir: &Path, manifest: &Manifest) {
        let text = serde_json::to_string(manifest).unwrap();
        fs::write(dir.join(MANIFEST), text).unwrap();
    }

    #[test]
    fn an_image_that_nix_has_made_is_taken_as_it_is() {
        let (from, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let manifest = made(from.path());
        let store = ImageStore::new(root.path().to_owned());
        import(&store, SYSTEM, from.path()).unwrap();
        let image = store.current(SYSTEM).unwrap();
        assert_eq!(image.manifest, manifest);
        store.verify(&image).unwrap();
        assert!(from.path().join("Image").exists());
        let left = fs::read_dir(root.path()).unwrap().flatten();
        let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".build"));
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn what_is_not_a_whole_image_for_the_system_is_refused_and_changes_nothing() {
        let (from, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = from.path();
        let store = ImageStore::new(root.path().to_owned());
        let why = |system| format!("{:#}", import(&store, system, from).unwrap_err());
        assert!(why(SYSTEM).contains("manifest.json"), "{}", why(SYSTEM));
        let manifest = made(from);
        let other = why(System::Aarch64Linux);
        assert!(
            other.contains("is for riscv64-linux, not for aarch64-linux"),
            "{other}"
        );
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut changed = manifest.clone();
            change(&mut changed);
            write(from, &changed);
            why(SYSTEM)
        };
        let old = with(&|manifest| manifest.contract = 1);
        assert!(old.contains("version 1 of the guest contract"), "{old}");
        let outside = with(&|manifest| manifest.disk.name = "../disk".to_owned());
        assert!(outside.contains("`../disk` is no name"), "{outside}");
        let damaged = with(&|manifest| manifest.kernel.sha256 = "0".repeat(64));
        assert!(damaged.contains("Image"), "{damaged}");
        assert!(matches!(store.current(SYSTEM), Err(ImageError::Missing(_))));
    }
}
