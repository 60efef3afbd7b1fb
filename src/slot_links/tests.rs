//! Links that are made, replaced and read.

use tempfile::TempDir;

use super::*;
use crate::config::Host;

fn config(text: &str) -> Config {
    let host = Host {
        cpus: 2,
        memory_mib: 4096,
        search_path: OsString::new(),
    };
    Config::of_text(text, &host).unwrap()
}

fn links(dir: &TempDir, config: &Config, program: &str) -> SlotLinks {
    let at = dir.path().join("slots");
    SlotLinks::new(config, at, Path::new(program), Path::new("/alices/state"))
}

#[test]
fn each_slot_has_a_link_and_what_is_not_one_goes() {
    let dir = tempfile::tempdir().unwrap();
    let three = config("[pool]\nbuild-machines = 3\n");
    let first = links(&dir, &three, "/opt/xpool");
    assert!(!first.are_there());
    first.write().unwrap();
    assert!(first.are_there());
    let link = dir.path().join("slots/02@xpool-riscv64");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/opt/xpool"));
    let one = config("[pool]\nbuild-machines = 1\n");
    let second = links(&dir, &one, "/opt/newer/xpool");
    assert!(!second.are_there());
    second.write().unwrap();
    assert!(second.are_there() && !first.are_there() && !link.exists());
    remove(second.dir()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_name_of_a_link_stands_for_its_slot_and_its_manager() {
    let dir = tempfile::tempdir().unwrap();
    let links = links(&dir, &config(""), "/opt/xpool");
    links.write().unwrap();
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let name = links.dir().join("07@xpool-aarch64");
    let name = name.to_str().unwrap();
    assert_eq!(
        command_line(words(&[name, "--stdio"])),
        words(&[
            name,
            "connect",
            "--state-dir",
            "/alices/state",
            "aarch64-07",
            "--stdio"
        ])
    );
    let nowhere = command_line(words(&["/none/00@xpool-riscv64"]));
    assert_eq!(nowhere[3], "/none/state");
    for name in [
        "xpool",
        "/opt/xpool",
        "/a/0@xpool-riscv64",
        "/a/00@xpool-mips",
        "/a/@xpool-riscv64",
    ] {
        let as_given = words(&[name, "status"]);
        assert_eq!(command_line(as_given.clone()), as_given, "{name}");
    }
    assert_eq!(command_line([]), words(&[]));
}
