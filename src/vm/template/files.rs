//! A template on disk: three files and a manifest that vouches for every byte of them.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::key::Key;
use crate::image::digest;
use crate::state::write_atomically;

/// Written last, so that what is not finished is no template.
const MANIFEST: &str = "template.json";

/// Digests pass over blocks of zeros, of which most of a guest's memory consists. Bytes.
const BLOCK: usize = 64 * 1024;

/// Where the parts of a template are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vm) struct TemplateFiles {
    dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct TemplateManifest {
    pub(super) key: Key,
    /// Of each file, in the order of [`TemplateFiles::all`].
    digests: Vec<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Digest {
    size: u64,
    sha256: String,
}

/// What changes when a file does.
pub(super) type Stamp = Vec<FileStamp>;

/// Size, times of the last change of content and of anything, and which file it is.
type FileStamp = (u64, [i64; 2], [i64; 2], u64);

impl TemplateFiles {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The guest's memory; as long as it, with holes where nothing was written.
    pub(in crate::vm) fn ram(&self) -> PathBuf {
        self.dir.join("ram")
    }

    /// The state of processors and devices.
    pub(in crate::vm) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The disk as it was when the guest stood still: an overlay over the image's.
    pub(in crate::vm) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn all(&self) -> [PathBuf; 3] {
        [self.ram(), self.state(), self.disk()]
    }

    /// Vouches for the files as they are now.
    pub(super) fn seal(&self, key: Key) -> anyhow::Result<()> {
        let digests = self.all().iter().map(|path| digest(path)).collect();
        let digests = fold(digests, "reading the new template")?;
        let text = serde_json::to_string_pretty(&TemplateManifest { key, digests })?;
        write_atomically(&self.dir.join(MANIFEST), &text)
    }

    /// What the manifest says; `None` when there is none, which is no template.
    pub(super) fn manifest(&self) -> anyhow::Result<Option<TemplateManifest>> {
        let path = self.dir.join(MANIFEST);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("reading `{}`", path.display()))?,
        };
        let manifest = serde_json::from_slice(&text);
        manifest
            .map(Some)
            .with_context(|| format!("`{}` is damaged", path.display()))
    }

    /// Compares every byte with what the manifest vouches for.
    pub(super) fn verify(&self, manifest: &TemplateManifest) -> anyhow::Result<()> {
        let files = self.all();
        ensure!(
            files.len() == manifest.digests.len(),
            "`{}` lists other files",
            self.dir.join(MANIFEST).display()
        );
        for (path, expected) in files.iter().zip(&manifest.digests) {
            let found = digest(path).with_context(|| format!("reading `{}`", path.display()))?;
            ensure!(
                found.size == expected.size,
                "`{}` has {} bytes instead of {}",
                path.display(),
                found.size,
                expected.size
            );
            ensure!(
                found == *expected,
                "`{}` does not have the content that was saved",
                path.display()
            );
        }
        Ok(())
    }

    /// Changes when one of the files, the manifest among them, does.
    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        let manifest = self.dir.join(MANIFEST);
        let of = |path: &PathBuf| {
            let meta = fs::metadata(path)?;
            let changed = [meta.mtime(), meta.mtime_nsec()];
            let touched = [meta.ctime(), meta.ctime_nsec()];
            Ok((meta.len(), changed, touched, meta.ino()))
        };
        self.all().iter().chain([&manifest]).map(of).collect()
    }

    /// Bytes that it takes on the disk.
    pub(super) fn disk_usage(&self) -> u64 {
        let blocks = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.blocks());
        self.all().iter().map(blocks).sum::<u64>() * 512
    }
}

fn fold<T>(results: Vec<io::Result<T>>, doing: &'static str) -> anyhow::Result<Vec<T>> {
    results
        .into_iter()
        .collect::<io::Result<_>>()
        .context(doing)
}

/// The digest of a file's content, whether its zeros are written or holes.
fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = digest::Hasher::default();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while let Some(data) = next_data(&file, at, size)? {
        // From the block's beginning, so that holes and zeros come out the same.
        at = data - data % BLOCK as u64;
        file.seek(SeekFrom::Start(at))?;
        let length = read_full(&mut file, &mut block)?;
        if length == 0 {
            break;
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            hasher.update(&at.to_le_bytes());
            hasher.update(&block[..length]);
        }
        at += length as u64;
    }
    let sha256 = hasher.finish();
    Ok(Digest { size, sha256 })
}

/// Where the next data is; `None` when only a hole is left, or nothing. A file system without holes has data everywhere.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_full(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read(&mut block[length..])? {
            0 => break,
            n => length += n,
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::nix::System;
    use crate::vm::command::tests::spec;

    fn sealed() -> (tempfile::TempDir, TemplateFiles, TemplateManifest) {
        let dir = tempfile::tempdir().unwrap();
        let files = TemplateFiles::new(dir.path().to_owned());
        for (path, content) in files.all().iter().zip(["memory", "state", "disk"]) {
            fs::write(path, content).unwrap();
        }
        files.seal(Key::of(&spec(System::Riscv64Linux))).unwrap();
        let manifest = files.manifest().unwrap().unwrap();
        (dir, files, manifest)
    }

    #[test]
    fn a_sealed_template_is_whole() {
        let (_dir, files, manifest) = sealed();
        files.verify(&manifest).unwrap();
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_found_and_the_file_named() {
        let (_dir, files, manifest) = sealed();
        for path in files.all() {
            let whole = fs::read(&path).unwrap();
            let before = files.stamp().unwrap();
            for cut in 0..whole.len() {
                fs::write(&path, &whole[..cut]).unwrap();
                let error = files.verify(&manifest).unwrap_err().to_string();
                assert!(error.contains(path.to_str().unwrap()), "{error}");
                let mut flipped = whole.clone();
                flipped[cut] ^= 1;
                fs::write(&path, &flipped).unwrap();
                files.verify(&manifest).unwrap_err();
            }
            fs::remove_file(&path).unwrap();
            files.verify(&manifest).unwrap_err();
            fs::write(&path, &whole).unwrap();
            files.verify(&manifest).unwrap();
            assert_ne!(files.stamp().unwrap(), before);
        }
    }

    #[test]
    fn a_manifest_that_is_cut_short_is_damage_and_a_missing_one_is_no_template() {
        let (_dir, files, _) = sealed();
        let path = files.dir().join(MANIFEST);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = files.manifest().unwrap_err().to_string();
            assert!(error.contains("template.json` is damaged"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(files.manifest().unwrap(), None);
    }

    #[test]
    fn holes_and_written_zeros_have_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, full) = (dir.path().join("sparse"), dir.path().join("full"));
        let size = 10 * BLOCK + 1;
        let mut content = vec![0; size];
        content[3 * BLOCK + 5] = 7;
        content[size - 1] = 8;
        File::create(&full).unwrap().write_all(&content).unwrap();
        let file = File::create(&sparse).unwrap();
        file.set_len(size as u64).unwrap();
        file.write_at(&[7], 3 * BLOCK as u64 + 5).unwrap();
        file.write_at(&[8], size as u64 - 1).unwrap();
        assert_eq!(digest(&sparse).unwrap(), digest(&full).unwrap());
        file.write_at(&[1], 0).unwrap();
        assert_ne!(digest(&sparse).unwrap(), digest(&full).unwrap());
    }
}
