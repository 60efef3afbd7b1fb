//! Inputs that need not be copied: this machine's store inside the guests. `scripts/test` makes the images and runs it.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::inputs::{SHARED, added, built, copied, damage, inputs, listing, on_host, said};
use crate::common::nix::{Nix, Version, derivation, started, tooled};
use crate::common::tier::volume;
use crate::common::{Installation, namespace};

const SYSTEM: &str = "riscv64-linux";

/// Builds something all of whose inputs are in this machine's store; the results.
#[track_caller]
fn built_of_shared(nix: &Nix<'_>, expression: &str) -> Vec<String> {
    let before = inputs(nix.installation).len();
    let (log, results) = built(nix, expression);
    let sessions = inputs(nix.installation).split_off(before);
    let none = log.matches("copying 0 paths").count();
    assert!(none > 0 && none == sessions.len(), "{log}");
    for (asked, shared) in sessions {
        assert_eq!(shared, asked, "{}", nix.installation.logs());
    }
    assert_eq!(copied(&log), [""; 0], "{log}");
    results
}

/// A derivation that reads the first of a thousand files, of which each refers to the next one and to one further on.
fn reads_the_first_of_a_thousand(system: &str) -> String {
    let files = r#"first = let
            file = i: builtins.toFile "input-${toString i}" "number ${toString i}\n${refer (i + 1)} ${refer (2 * i + 1)}";
            files = builtins.genList file 1000;
            refer = i: if i < 1000 then builtins.elemAt files i else "";
        in builtins.elemAt files 0;"#;
    let script = r#"{ read -r text; read -r next other; } < $first
        read -r further < $next
        echo "$text, $further" > $out"#;
    derivation(system, "reads", files, script)
}

/// The seconds of the day at which the manager said something first.
#[track_caller]
fn logged_at(installation: &Installation, text: &str) -> f64 {
    let logs = installation.logs();
    let line = logs.lines().find(|line| line.contains(text)).unwrap();
    let (_, time) = line.split_once('T').unwrap();
    let (time, _) = time.split_once('Z').unwrap();
    let seconds = |sum: f64, part: &str| sum * 60.0 + part.parse::<f64>().unwrap();
    time.split(':').fold(0.0, seconds)
}

fn a_thousand_paths(system: &str, version: Version) {
    let (installation, _serving) = started(SHARED);
    let nix = Nix::of(version, &installation);
    let results = built_of_shared(&nix, &reads_the_first_of_a_thousand(system));
    assert_eq!(results, ["number 0, number 1\n"]);
    // And the builder's script.
    assert_eq!(inputs(&installation), [(1001, 1001)]);
    let (ready, given) = (
        logged_at(&installation, "VM ready"),
        logged_at(&installation, " inputs "),
    );
    // It may be midnight between the two.
    let took = (given - ready).rem_euclid(86_400.0);
    assert!(took < 30.0, "a thousand inputs took {took} s");
}

#[test]
fn riscv64_a_thousand_small_paths_are_not_copied() {
    a_thousand_paths(SYSTEM, Version::Own);
}

#[test]
fn aarch64_a_thousand_small_paths_are_not_copied_for_a_newer_nix() {
    if namespace::skipped("a thousand inputs for a newer Nix") {
        return;
    }
    a_thousand_paths("aarch64-linux", Version::Newer);
}

/// Five derivations, each of which reads the one before, a source that they have in common, and one of its own; the last one.
fn chain(installation: &Installation) -> String {
    fs::write(installation.path().join("source"), "a source").unwrap();
    let extra = format!(
        r#"source = {}/source; inherit before; own = builtins.toFile "number" "number ${{toString n}}\n";"#,
        installation.path().display()
    );
    let script = r#"read -r source < $source
        read -r own < $own
        [ -z "$before" ] || read -r text < $before
        echo "$text$source, $own;" > $out"#;
    let link = derivation(SYSTEM, "link", &extra, script);
    format!("builtins.foldl' (before: n: {link}) \"\" [ 1 2 3 4 5 ]")
}

const CHAINED: &str = "a source, number 1;a source, number 2;a source, number 3;a source, number 4;a source, number 5;\n";

/// How many inputs each of them has, its builder's script being one.
const CHAIN_INPUTS: [usize; 5] = [3, 4, 4, 4, 4];

fn a_chain_of_builds(version: Version) {
    let (installation, _serving) = started(SHARED);
    let nix = Nix::of(version, &installation);
    assert_eq!(built_of_shared(&nix, &chain(&installation)), [CHAINED]);
    let asked = CHAIN_INPUTS.map(|count| (count, count));
    assert_eq!(inputs(&installation), asked);
    let ready = installation.logs().matches("VM ready").count();
    assert_eq!(ready, 5, "a VM of its own for each");
}

#[test]
fn each_of_five_builds_finds_the_one_before_in_this_machines_store() {
    if namespace::skipped("five builds for a newer Nix") {
        return;
    }
    // The test below has this machine's own Nix.
    for version in volume(&[Version::Newer][..], &[Version::Newer, Version::Own]) {
        a_chain_of_builds(*version);
    }
}

#[test]
fn five_builds_on_a_vm_that_serves_on_find_all_in_this_machines_store_or_in_its_own() {
    // One: while the guest closes a session's slot, the next session would have another VM started.
    let config = SHARED.replace("max-vms = 2", "max-vms = 1");
    let (installation, _serving) = started(&format!("{config}reuse = \"always\"\n"));
    let nix = Nix::new(&installation);
    assert_eq!(built_of_shared(&nix, &chain(&installation)), [CHAINED]);
    let ready = installation.logs().matches("VM ready").count();
    assert_eq!(ready, 1, "the same VM for all");
}

#[test]
fn inputs_are_copied_by_a_client_of_another_store_than_the_one_that_vms_see() {
    let (installation, _serving) = started(&SHARED.replace("/client", "/elsewhere"));
    let nix = Nix::new(&installation);
    let mut elsewhere = Nix::new(&installation);
    elsewhere.store = installation.path().join("elsewhere");
    added(&elsewhere, "unrelated", "a store that has something");
    let (log, results) = built(&nix, &chain(&installation));
    assert_eq!(results, [CHAINED]);
    assert_eq!(inputs(&installation), CHAIN_INPUTS.map(|count| (count, 0)));
    let all: usize = CHAIN_INPUTS.iter().sum();
    assert_eq!(copied(&log).len(), all, "{log}");
}

/// A folder with all that may be in a store.
fn odd_folder(folder: &Path) {
    fs::create_dir_all(folder.join("a folder/.with a dot")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    for name in [
        "with spaces ",
        "two\nlines",
        "gr\u{fc}\u{df}e \u{2603}",
        ".hidden",
        "a folder/.with a dot/deep",
        "-r",
        "back\\slash",
        "quote'\"*",
    ] {
        fs::write(folder.join(name), format!("this is {name}")).unwrap();
    }
    for name in ["empty file", "a folder/.empty"] {
        fs::write(folder.join(name), "").unwrap();
    }
    for name in ["twin", "a folder/twin"] {
        fs::write(folder.join(name), "a file that is there twice").unwrap();
    }
    let program = folder.join("program");
    fs::write(&program, "#!/bin/sh\necho a program ran\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (target, name) in [
        ("a folder/twin", "relative"),
        ("../two\nlines", "a folder/up"),
        ("not there", "dangling"),
        ("/bin/sh", "absolute"),
        (".", "a folder/itself"),
    ] {
        symlink(target, folder.join(name)).unwrap();
    }
}

/// Shows what is below `$input`, the same in every shell.
const SHOW: &str = r#"LC_ALL=C
    export LC_ALL
    show() {
        for file in "$1"/* "$1"/.[!.]*; do
            [ -e "$file" ] || [ -L "$file" ] || continue
            stat -c "%F, mode %a, changed %Y: %n" "$file"
            if [ -L "$file" ]; then readlink "$file"
            elif [ -d "$file" ]; then show "$file"
            else sha256sum < "$file"
            fi
        done
    }
    cd $input; show .; ./program"#;

fn odd_names(nix: &Nix<'_>) {
    let dir = nix.installation.path();
    let conf = dir.join("nix.conf");
    let optimising = fs::read_to_string(&conf).unwrap() + "auto-optimise-store = true\n";
    fs::write(conf, optimising).unwrap();
    odd_folder(&dir.join("odd"));
    let odd = dir.join("odd").into_os_string().into_string().unwrap();
    let path = said(nix, "nix-store", &["--add", &odd]);
    let host = on_host(nix, &path);
    assert!(host.join("twin").metadata().unwrap().nlink() > 1);

    let input = format!("input = {odd};");
    let script = format!("{{ echo $input; {SHOW}; }} > $out");
    let mut results = built_of_shared(nix, &tooled(SYSTEM, "shows", &input, &script));
    let output = Command::new("sh")
        .args(["-c", SHOW])
        .env("input", &host)
        .output()
        .unwrap();
    let seen = String::from_utf8(output.stdout).unwrap();
    assert!(seen.contains("\n./two\nlines\n") || seen.contains(": ./two\nlines\n"));
    assert!(seen.ends_with("a program ran\n"), "{seen}");
    assert_eq!(results.remove(0), format!("{path}\n{seen}"));
}

fn a_large_file(nix: &Nix<'_>) {
    let large = nix.installation.path().join("large");
    let mut file = fs::File::create(&large).unwrap();
    file.seek(SeekFrom::Start((1 << 30) - 7)).unwrap();
    file.write_all(b"the end").unwrap();
    let input = format!("input = {};", large.display());
    let script = r#"echo "$(stat -c %s $input) $(tail -c 7 $input)" > $out"#;
    let results = built_of_shared(nix, &tooled(SYSTEM, "large", &input, script));
    assert_eq!(results, ["1073741824 the end\n"]);
}

fn a_damaged_file(nix: &Nix<'_>) {
    let path = added(nix, "damaged", "as it was added");
    damage(&on_host(nix, &path), "as it is now: bad");
    let input = format!("input = builtins.storePath {path};");
    let script = "read -r text < $input || true; echo $text > $out";
    let results = built_of_shared(nix, &derivation(SYSTEM, "damaged", &input, script));
    assert_eq!(results, ["as it is now: bad\n"]);
}

/// Tries all ways to change a folder and the file in it, in one of the builder's own and in its input, and tells how many
/// work on the first and which on the second.
const CHANGES: &str = r#"
    does() { "$@" 2> /dev/null && echo "did $*" >> did; true; }
    change() {
        does sh -c "echo changed > $1/file"
        does sh -c "echo changed >> $1/file"
        does truncate -s 0 $1/file
        does chmod 666 $1/file
        does touch $1/file
        does sh -c "echo new > $1/new"
        does mkdir $1/new-folder
        does ln $1/file $1/linked
        does mv $1/file $1/moved
        does rm -f $1/file
        does chmod 777 $1
        does mv $1 $1-moved
    }
    mkdir own; echo text > own/file
    change own; mv did own-did
    change $input
    wc -l < own-did > $out
    [ ! -e did ] || cat did >> $out"#;

fn a_builder_that_writes(nix: &Nix<'_>) {
    let folder = nix.installation.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "a file").unwrap();
    let path = said(nix, "nix-store", &["--add", folder.to_str().unwrap()]);
    let before = listing(&on_host(nix, &path));
    let input = format!("input = {};", folder.display());
    let results = built_of_shared(nix, &tooled(SYSTEM, "writes", &input, CHANGES));
    assert_eq!(results, ["12\n"]);
    assert_eq!(listing(&on_host(nix, &path)), before);
}

#[test]
fn a_build_sees_exactly_what_this_machines_store_has_and_cannot_change_it() {
    let (installation, _serving) = started(SHARED);
    let nix = Nix::new(&installation);
    odd_names(&nix);
    a_large_file(&nix);
    a_damaged_file(&nix);
    a_builder_that_writes(&nix);
}
