//! The guest contract (images/README.md), held against images by what runs in their guests: the same for every kind of image.
//!
//! `XPOOL_CONTRACT_IMAGE` names the folder of one image, such as one that was just made or comes from a flake; without it, it is
//! those that `scripts/test` has made, one of each system. Tools that an image need not have are not used here.

mod builder;
mod copies;
mod guest;
mod sessions;
mod store;

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xpool::image::Image;
use xpool::nix::System;
use xpool::vm::VmSpec;

use crate::common::vm::{image, image_in, spec_of, templates};

/// The images that are looked at.
fn images() -> Vec<Image> {
    match std::env::var_os("XPOOL_CONTRACT_IMAGE") {
        Some(dir) => vec![image_in(PathBuf::from(dir))],
        None => System::ALL.map(image).to_vec(),
    }
}

/// Does something with each image, in a folder for it.
#[expect(clippy::print_stdout, reason = "says which image it was")]
async fn for_each_image(look: impl AsyncFn(&Image, &Path)) {
    for image in images() {
        println!("image {}", image.dir.display());
        let dir = TempDir::new().unwrap();
        look(&image, dir.path()).await;
    }
}

/// A VM that boots from its image.
fn booted(image: &Image, dir: &Path) -> VmSpec {
    spec_of(image.clone(), dir)
}

/// A VM that is a copy of a template.
fn copy(image: &Image, name: &str, dir: &Path) -> VmSpec {
    VmSpec {
        name: name.to_owned(),
        templates: Some(templates()),
        console_log: dir.join(format!("{name}.log")),
        ..booted(image, dir)
    }
}

/// A command for a guest that builds something by the daemon and prints what came of it.
fn build(script: &str) -> String {
    format!(
        "export HOME=/root NIX_REMOTE=daemon
        cat >/root/built.nix <<'END'
derivation {{
    name = \"built\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ];
}}
END
        cat $(nix-build --no-out-link /root/built.nix)"
    )
}
