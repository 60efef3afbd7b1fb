//! The flake, by real Nixes with stubs for its inputs (tests/nix); and what makes an image of a built NixOS, run on a folder that
//! stands for one.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::nixes::{Nixes, copy_sources, is_there};
use crate::common::skip;
use serde_json::{Value, json};

#[test]
fn what_makes_a_nixos_image_makes_one_that_xpool_takes() {
    let test = "what_makes_a_nixos_image_makes_one_that_xpool_takes";
    let needed = ["fakeroot", "mke2fs", "nix-store", "qemu-img"];
    let Some(nixes) = Nixes::find(test) else {
        return;
    };
    if let Some(missing) = needed.iter().find(|program| !is_there(program)) {
        return skip(test, &format!("there is no {missing}"));
    }
    let image = nixes.evaluate("image.riscv64");
    let place = nixes.installation.path();
    stand_for_a_built_system(place);
    let dir = place.to_str().unwrap();
    let script = image["buildCommand"].as_str().unwrap();
    let script = script
        .replace("[KERNEL]", dir)
        .replace("[INITRD]", dir)
        .replace(&format!("/nix/store/{}-closure-info", "0".repeat(32)), dir);
    let images = place.join("cache/images");
    fs::create_dir_all(&images).unwrap();
    let made = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(place)
        .env("NIX_CONF_DIR", place)
        .env("out", place.join("image"))
        .env("manifestStart", image["manifestStart"].as_str().unwrap())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    std::os::unix::fs::symlink(place.join("image"), images.join("riscv64-linux")).unwrap();
    nixes.installation.ok(&["image", "verify", "riscv64"]);
    let list = nixes.installation.ok(&["image", "list", "--json"]);
    assert!(list.contains("\"nixos\""), "{list}");
    // What the image is made of stays behind: none of its paths is a reference.
    assert_eq!(image["unsafeDiscardReferences"], json!({ "out": true }));
    assert_eq!(image["__structuredAttrs"], true);
    assert_eq!(image["filePath"], "manifest.json");
    // The portable image's disk has the same features, for the same reasons.
    let assemble = fs::read_to_string("images/portable/assemble.sh").unwrap();
    let features = assemble
        .lines()
        .find_map(|line| line.strip_prefix("readonly EXT4_FEATURES="));
    assert!(script.contains(&format!(" -O {} ", features.unwrap())));
}

/// A kernel, an initial RAM disk, and a store path with what Nix knows of it.
fn stand_for_a_built_system(place: &Path) {
    let name = format!("{}-nixos-system", "1".repeat(32));
    fs::create_dir(place.join(&name)).unwrap();
    let registration = format!("/nix/store/{name}\nsha256:{}\n96\n\n0\n", "0".repeat(52));
    let path = place.join(&name);
    for (file, content) in [
        ("Image", "kernel"),
        ("initrd", "initrd"),
        ("store-paths", path.to_str().unwrap()),
        ("registration", &registration),
    ] {
        fs::write(place.join(file), content).unwrap();
    }
}

#[test]
fn the_flake_has_its_outputs_for_both_kinds_of_host() {
    let test = "the_flake_has_its_outputs_for_both_kinds_of_host";
    let Some(nixes) = Nixes::find(test) else {
        return;
    };
    let flake = nixes.evaluate("flake");
    let packages = [
        "default",
        "image-aarch64-linux",
        "image-aarch64-linux-native",
        "image-riscv64-linux",
        "image-riscv64-linux-native",
    ];
    let contract = "contract-riscv64-linux";
    for host in ["x86_64-linux", "aarch64-linux"] {
        for package in packages {
            assert!(flake["packages"][host][package].is_string(), "{package}");
        }
        let program = flake["apps"][host]["default"]["program"].as_str();
        assert!(program.unwrap().ends_with("/bin/xpool"));
        let checks = ["check", "module", "service", "image-riscv64-linux"];
        for check in checks {
            assert!(flake["checks"][host][check].is_string(), "{check}");
        }
        // Hours, where the image has to be built first: not for who checks the flake.
        assert!(flake["checks"][host][contract].is_null());
        assert!(flake["legacyPackages"][host][contract].is_string());
        assert!(flake["devShells"][host]["default"].is_string());
        assert!(flake["formatter"][host].is_string());
    }
    // The same image for nixpkgs' own way and for nixos-generators.
    let image = "xpool-image-riscv64-linux";
    assert_eq!(flake["images"]["guest-riscv64-linux"], image);
    assert_eq!(flake["generated"], image);
    assert_eq!(flake["disks"]["guest-aarch64-linux"], "/dev/vda");
    let modules = json!(["default", "guest", "image"]);
    assert_eq!(flake["outputs"]["nixosModules"], modules);
    assert_eq!(flake["outputs"]["overlays"], json!(["default"]));
    assert!(flake["tested"]["services"]["xpool"].is_object());
    // What build.sh looks for is in the package's PATH.
    let path = flake["package"]["env"]["XPOOL_PACKAGE_PATH"]
        .as_str()
        .unwrap();
    let build = fs::read_to_string("images/portable/build.sh").unwrap();
    let tools = build.split("<<'END'\n").nth(1).unwrap();
    for line in tools.lines().take_while(|line| *line != "END") {
        // As build.sh names them in a hint.
        let package = line.split_once(' ').unwrap().1.trim_end_matches("-utils");
        assert!(path.contains(&format!("-{package}/bin")), "{package}");
    }
}

#[test]
fn nix_shows_the_flake_with_other_inputs() {
    let test = "nix_shows_the_flake_with_other_inputs";
    let Some(nixes) = Nixes::find(test) else {
        return;
    };
    let Some(newer) = nixes.systems.get(1) else {
        return skip(test, "XPOOL_TEST_CLIENTS names no newer Nix");
    };
    let dir = nixes.installation.path().to_str().unwrap();
    // The flake alone: what else is in the folder are sockets and stores.
    let flake = format!("{dir}/flake");
    fs::create_dir(&flake).unwrap();
    copy_sources(Path::new(&flake));
    let (flake, stub) = (format!("path:{flake}"), format!("path:{dir}/tests/nix"));
    let args = [
        "flake",
        "show",
        "--json",
        "--all-systems",
        "--offline",
        "--no-write-lock-file",
        "--override-input",
        "nixpkgs",
        &stub,
        &flake,
    ];
    let output = nixes.run(newer, &format!("{dir}/store"), "nix", &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The lock file is read without a network, and is of the commit that the flake names.
    let args = [
        "flake",
        "metadata",
        "--json",
        "--offline",
        "--no-update-lock-file",
        &flake,
    ];
    let output = nixes.run(newer, &format!("{dir}/store"), "nix", &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let locked = &metadata["locks"]["nodes"]["nixpkgs"]["locked"];
    let commit = locked["rev"].as_str().unwrap();
    let source = fs::read_to_string("flake.nix").unwrap();
    assert!(source.contains(&format!("github:NixOS/nixpkgs/{commit}")));
    assert!(locked["narHash"].is_string());
    let image = &shown["packages"]["x86_64-linux"]["image-riscv64-linux"];
    assert_eq!(image["name"], "xpool-image-riscv64-linux");
    assert_eq!(shown["nixosModules"]["default"]["type"], "nixos-module");
}
