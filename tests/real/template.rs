//! Templates that are damaged, out of date, or never finished. `scripts/test` makes the images and runs it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::tier::volume;
use crate::common::{Installation, ended, qemu};
use rustix::process::Signal;

const CONFIG: &str = "[pool]\nmax-vms = 1\n";

/// The folders in the cache's folder of templates, hidden ones included.
fn folders(installation: &Installation) -> Vec<PathBuf> {
    let templates = fs::read_dir(installation.cache().join("templates")).unwrap();
    templates.map(|entry| entry.unwrap().path()).collect()
}

#[track_caller]
fn the_template(installation: &Installation) -> PathBuf {
    let folders = folders(installation);
    let [template] = &folders[..] else {
        panic!("{folders:?}")
    };
    template.clone()
}

fn warnings(installation: &Installation) -> Vec<String> {
    let logs = installation.logs();
    let warnings = logs.lines().filter(|line| line.contains(" WARN "));
    warnings.map(str::to_owned).collect()
}

/// Brings a VM up and takes it down again; what was warned of meanwhile.
#[track_caller]
fn up_and_down(installation: &Installation) -> Vec<String> {
    let before = warnings(installation).len();
    let said = installation.run(&["up", "riscv64"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    installation.ok(&["down", "riscv64", "--now"]);
    warnings(installation).split_off(before)
}

fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn cut(file: &Path) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

type Damage = fn(&Path);

#[test]
fn a_damaged_template_is_named_once_and_replaced() {
    let installation = Installation::with_own_templates(CONFIG);
    let _serving = installation.serve();
    assert_eq!(up_and_down(&installation), [""; 0], "a first template");
    // One that takes reading all of it to see, one that is seen at once; src/vm/template/files.rs has the others too, without VMs.
    let damages: [(&str, Damage); 6] = [
        ("ram", |dir| flip(&dir.join("ram"), 100 << 20)),
        ("manifest", |dir| {
            fs::remove_file(dir.join("template.json")).unwrap();
        }),
        ("ram", |dir| cut(&dir.join("ram"))),
        ("state", |dir| flip(&dir.join("state"), 1000)),
        ("disk", |dir| flip(&dir.join("disk"), 1000)),
        ("template.json", |dir| cut(&dir.join("template.json"))),
    ];
    for (file, damage) in &damages[..volume(2, 6)] {
        damage(&the_template(&installation));
        let warned = up_and_down(&installation);
        let [warning] = &warned[..] else {
            panic!("{file}: {warned:?}")
        };
        assert!(
            warning.contains("is damaged, another one is made") && warning.contains(*file),
            "{file}: {warning}"
        );
        assert_eq!(up_and_down(&installation), [""; 0], "{file}: a good one");
    }
}

#[test]
fn another_qemu_or_profile_makes_another_template_and_says_why() {
    let installation = Installation::with_own_templates(CONFIG);
    qemu::put_before(&installation, "");
    let serving = installation.serve();
    assert_eq!(up_and_down(&installation), [""; 0], "a first template");

    qemu::put_before(&installation, "# another one");
    let warned = up_and_down(&installation);
    assert!(
        warned.len() == 1 && warned[0].ends_with("QEMU has changed"),
        "{warned:?}"
    );
    assert_eq!(up_and_down(&installation), [""; 0]);

    installation.ok(&["down"]);
    drop(serving);
    let config = installation.path().join("xpool.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}memory-mib = 1536\n")).unwrap();
    let _serving = installation.serve();
    let warned = up_and_down(&installation);
    assert!(
        warned.len() == 1 && warned[0].ends_with("the VMs are laid out in another way"),
        "{warned:?}"
    );
    assert_eq!(up_and_down(&installation), [""; 0]);
    assert_eq!(folders(&installation).len(), 3);
    installation.ok(&["image", "gc"]);
    assert_eq!(folders(&installation).len(), 1);
    assert_eq!(
        up_and_down(&installation),
        [""; 0],
        "the one in use was kept"
    );
}

/// An installation whose QEMU refuses to run with arguments like these (a shell pattern), and says so.
fn with_qemu_that_refuses(pattern: &str) -> Installation {
    let installation = Installation::with_own_templates(CONFIG);
    let refuse = format!("case \"$*\" in {pattern}) echo it was refused >&2; exit 1 ;; esac");
    qemu::put_before(&installation, &refuse);
    installation
}

#[track_caller]
fn assert_warned_once(warned: &[String], of: &str) {
    let [warning] = warned else {
        panic!("{warned:?}")
    };
    let says = |text| warning.contains(text);
    assert!(says(of) && says("it was refused"), "{warning}");
}

#[test]
fn where_nothing_can_be_restored_vms_boot_from_their_image_as_before() {
    let installation = with_qemu_that_refuses("*-incoming*");
    let _serving = installation.serve();
    assert_warned_once(&up_and_down(&installation), "riscv64-linux has no template");
    assert_eq!(up_and_down(&installation), [""; 0], "said once");
    assert!(folders(&installation).is_empty());
}

#[test]
fn a_vm_whose_restoring_fails_boots_from_its_image_and_the_template_stays() {
    // The clone that proves the template is restored, and so is every one after the first.
    let installation = with_qemu_that_refuses("*riscv64-1\\ *-incoming*");
    let _serving = installation.serve();
    assert_warned_once(&up_and_down(&installation), "riscv64-1 could not be cloned");
    let template = the_template(&installation);
    assert_eq!(up_and_down(&installation), [""; 0]);
    assert_eq!(the_template(&installation), template);
}

#[test]
fn a_manager_killed_while_it_makes_a_template_leaves_nothing_once_the_next_one_serves() {
    let installation = Installation::with_own_templates(CONFIG);
    // With a half-written template, and with one that is whole and not in use yet.
    let stages = [
        "saving it",
        "trying it",
        "waiting for the guest agent",
        "reading it back",
    ];
    for stage in &stages[..volume(2, 4)] {
        let mut serving = installation.serve();
        let mut up = installation
            .command(&["up", "riscv64"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        installation.until(stage, || {
            let vms = installation.list("riscv64-linux", "vms");
            vms.iter()
                .any(|vm| vm["stage"].as_str().unwrap().contains(*stage))
        });
        serving.signal(Signal::KILL);
        serving.ended();
        assert_ne!(ended(&mut up), Some(0), "{stage}");
        let left = folders(&installation);
        let is_half_a_template =
            |dir: &PathBuf| !dir.file_name().unwrap().to_string_lossy().starts_with('.');
        assert!(!left.iter().any(is_half_a_template), "{stage}: {left:?}");
        assert_eq!(left.len(), 1, "{stage}");
        let serving = installation.serve();
        let warned = warnings(&installation);
        assert!(
            warned
                .iter()
                .any(|line| line.contains("a template that an earlier manager has not finished")),
            "{stage}: {warned:?}"
        );
        assert!(
            installation.qemus().is_empty() && installation.leftovers().is_empty(),
            "{stage}"
        );
        assert!(folders(&installation).is_empty(), "{stage}");
        drop(serving);
    }
    let _serving = installation.serve();
    let warned = up_and_down(&installation);
    assert_eq!(warned, [""; 0]);
    the_template(&installation);
}
