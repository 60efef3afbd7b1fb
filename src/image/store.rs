//! The images on this machine: one folder each, named by the digest of its manifest, and a link per system to the one
//! in use.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::manifest::{CONTRACT, Manifest};
use super::{Image, digest};
use crate::nix::System;

/// Where images lie.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is none for the system.
    #[error("there is no image for {0}")]
    Missing(System),
    /// It is not what its manifest says.
    #[error("the image for {system} is damaged: `{}` {what}", path.display())]
    Damaged {
        /// The system that it is for.
        system: System,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It was made for another version of xpool.
    #[error(
        "the image for {system} keeps version {found} of the guest contract, this xpool needs {CONTRACT}"
    )]
    OtherContract {
        /// The system that it is for.
        system: System,
        /// The version it keeps.
        found: u64,
    },
    /// The file system does not let us.
    #[error("image folder `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ImageError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let build = |system: &System| format!("`xpool image build {}` makes one", system.cpu());
        match self {
            Self::Missing(system) => Some(build(system)),
            Self::Damaged { system, .. } | Self::OtherContract { system, .. } => Some(format!(
                "`xpool image build {}` makes a new one",
                system.cpu()
            )),
            Self::Io { .. } => None,
        }
    }
}

impl ImageStore {
    /// The images below a folder, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image in use for a system: manifest read, files there and of the right size. See [`ImageStore::verify`].
    pub fn current(&self, system: System) -> Result<Image, ImageError> {
        let link = self.root.join(system.name());
        let dir = match std::fs::canonicalize(&link) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Missing(system));
            }
            Err(source) => return Err(ImageError::Io { path: link, source }),
        };
        let image = Image {
            manifest: read_manifest(&dir, system)?,
            dir,
        };
        for file in image.manifest.files() {
            let path = image.dir.join(&file.name);
            let size = std::fs::metadata(&path)
                .map_err(|error| damaged(system, &path, &error.to_string()))?
                .len();
            if size != file.size {
                let what = format!("has {size} bytes instead of {}", file.size);
                return Err(damaged(system, &path, &what));
            }
        }
        Ok(image)
    }

    /// Reads every byte of an image and compares the digests.
    pub fn verify(&self, image: &Image) -> Result<(), ImageError> {
        let system = image.manifest.system;
        for file in image.manifest.files() {
            let path = image.dir.join(&file.name);
            let (sha256, _) = digest::of_file(&path).map_err(|source| ImageError::Io {
                path: path.clone(),
                source,
            })?;
            if sha256 != file.sha256 {
                return Err(damaged(
                    system,
                    &path,
                    "has another SHA-256 than its manifest says",
                ));
            }
        }
        Ok(())
    }

    /// Images that no system uses any more, with the bytes that each takes. Folders in which an image is being made are not
    /// among them.
    pub fn unused(&self) -> Result<Vec<(PathBuf, u64)>, ImageError> {
        let used: Vec<PathBuf> = System::ALL
            .iter()
            .filter_map(|system| std::fs::canonicalize(self.root.join(system.name())).ok())
            .collect();
        let error = |source| ImageError::Io {
            path: self.root.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.root) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(error)?,
        };
        let mut unused = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error)?;
            let is_image = entry.file_type().map_err(error)?.is_dir()
                && !entry.file_name().to_string_lossy().starts_with('.');
            if !is_image {
                continue;
            }
            let path = std::fs::canonicalize(entry.path()).map_err(error)?;
            if !used.contains(&path) {
                let bytes = bytes_in(&path);
                unused.push((path, bytes));
            }
        }
        Ok(unused)
    }

    /// Takes a folder with the files of a manifest for the image of its system, in one step: until the last moment the
    /// old image is in use.
    pub(super) fn adopt(&self, files: &Path, manifest: &Manifest) -> Result<Image, ImageError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::Io { path, source }
        };
        let text = serde_json::to_string_pretty(manifest)
            .map_err(|source| error(files)(io::Error::other(source)))?;
        let manifest_file = files.join(MANIFEST);
        std::fs::write(&manifest_file, &text).map_err(error(&manifest_file))?;
        let name = digest::of_bytes(text.as_bytes());
        let dir = self.root.join(&name);
        // The same image again, or one that was damaged: what was just made is whole.
        let aside = self.root.join(format!(".build-{}-old", manifest.system));
        if dir.exists() {
            std::fs::rename(&dir, &aside).map_err(error(&dir))?;
        }
        std::fs::rename(files, &dir).map_err(error(&dir))?;
        let link = self.root.join(manifest.system.name());
        let new_link = self.root.join(format!(".{}.new", manifest.system));
        // Left over when a machine stopped in the middle of this.
        let _ = std::fs::remove_file(&new_link);
        symlink(&name, &new_link).map_err(error(&new_link))?;
        std::fs::rename(&new_link, &link).map_err(error(&link))?;
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(error(&aside))?;
        }
        Ok(Image {
            dir,
            manifest: manifest.clone(),
        })
    }
}

const MANIFEST: &str = "manifest.json";

/// The bytes of the files in a folder, as far as they can be read.
fn bytes_in(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

fn damaged(system: System, path: &Path, what: &str) -> ImageError {
    ImageError::Damaged {
        system,
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

fn read_manifest(dir: &Path, system: System) -> Result<Manifest, ImageError> {
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| damaged(system, &path, &error.to_string()))?;
    // The version comes first: a manifest of another one may have other fields.
    let found = serde_json::from_str::<serde_json::Value>(&text)
        .map_err(|error| damaged(system, &path, &format!("is not JSON: {error}")))?
        .get("contract")
        .and_then(serde_json::Value::as_u64);
    match found {
        Some(found) if found == u64::from(CONTRACT) => {}
        Some(found) => return Err(ImageError::OtherContract { system, found }),
        None => return Err(damaged(system, &path, "names no contract version")),
    }
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| damaged(system, &path, &error.to_string()))?;
    if manifest.system != system {
        return Err(damaged(
            system,
            &path,
            &format!("is of an image for {}", manifest.system),
        ));
    }
    if let Some(file) = manifest
        .files()
        .into_iter()
        .find(|file| file.name.contains('/'))
    {
        return Err(damaged(
            system,
            &path,
            &format!("names a file outside its folder: {}", file.name),
        ));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::{ImageFile, ImageKind};

    const SYSTEM: System = System::Riscv64Linux;

    fn store_with_image() -> (tempfile::TempDir, ImageStore, Image) {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::new(root.path().to_owned());
        let files = root.path().join(".build");
        std::fs::create_dir(&files).unwrap();
        let file = |name: &str| {
            std::fs::write(files.join(name), name).unwrap();
            let (sha256, size) = digest::of_file(&files.join(name)).unwrap();
            ImageFile {
                name: name.to_owned(),
                size,
                sha256,
            }
        };
        let manifest = Manifest {
            contract: CONTRACT,
            system: SYSTEM,
            kind: ImageKind::Portable,
            recipe: String::new(),
            nix_version: "2.26.3".to_owned(),
            kernel_version: "6.12.1".to_owned(),
            cmdline: "root=/dev/vda".to_owned(),
            kernel: file("kernel"),
            initrd: file("initrd"),
            disk: file("disk.qcow2"),
        };
        let image = store.adopt(&files, &manifest).unwrap();
        (root, store, image)
    }

    #[test]
    fn an_adopted_image_is_the_one_in_use_and_whole() {
        let (_root, store, image) = store_with_image();
        let current = store.current(SYSTEM).unwrap();
        assert_eq!(current.manifest, image.manifest);
        store.verify(&current).unwrap();
        assert!(matches!(
            store.current(System::Aarch64Linux),
            Err(ImageError::Missing(_))
        ));
    }

    #[test]
    fn one_changed_byte_is_found_and_named() {
        let (_root, store, image) = store_with_image();
        std::fs::write(image.kernel(), "kernem").unwrap();
        let current = store.current(SYSTEM).unwrap();
        let error = store.verify(&current).unwrap_err();
        assert!(
            matches!(&error, ImageError::Damaged { path, .. } if *path == current.kernel()),
            "{error}"
        );
        assert_eq!(
            error.hint().unwrap(),
            "`xpool image build riscv64` makes a new one"
        );
    }

    #[test]
    fn a_file_of_another_size_is_found_without_reading_it() {
        let (_root, store, image) = store_with_image();
        std::fs::write(image.disk(), "").unwrap();
        let error = store.current(SYSTEM).unwrap_err().to_string();
        assert!(
            error.ends_with("disk.qcow2` has 0 bytes instead of 10"),
            "{error}"
        );
    }

    #[test]
    fn an_image_of_another_contract_is_refused_whatever_else_it_says() {
        let (_root, store, image) = store_with_image();
        std::fs::write(
            image.dir.join(MANIFEST),
            r#"{"contract": 99, "news": true}"#,
        )
        .unwrap();
        let error = store.current(SYSTEM).unwrap_err();
        assert!(
            matches!(error, ImageError::OtherContract { found: 99, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_image_that_was_replaced_is_unused() {
        let (root, store, old) = store_with_image();
        assert_eq!(store.unused().unwrap(), []);
        let files = root.path().join(".again");
        std::fs::create_dir(&files).unwrap();
        for file in old.manifest.files() {
            std::fs::write(files.join(&file.name), &file.name).unwrap();
        }
        let manifest = Manifest {
            cmdline: "other".to_owned(),
            ..old.manifest
        };
        store.adopt(&files, &manifest).unwrap();
        let unused = store.unused().unwrap();
        let dirs: Vec<_> = unused.into_iter().map(|(dir, _)| dir).collect();
        assert_eq!(dirs, [std::fs::canonicalize(old.dir).unwrap()]);
    }

    #[test]
    fn adopting_the_same_image_again_mends_it() {
        let (root, store, image) = store_with_image();
        std::fs::write(image.kernel(), "kernem").unwrap();
        let files = root.path().join(".again");
        std::fs::create_dir(&files).unwrap();
        for file in image.manifest.files() {
            std::fs::write(files.join(&file.name), &file.name).unwrap();
        }
        let again = store.adopt(&files, &image.manifest).unwrap();
        assert_eq!(again.dir, image.dir);
        store.verify(&again).unwrap();
    }
}
