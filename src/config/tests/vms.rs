//! What VMs have, and what their builders can do.

use super::*;
use crate::config::Host;

#[test]
fn memory_is_what_the_machine_has_and_this_process_may_have() {
    let meminfo = ("proc/meminfo", "MemTotal:       24615248 kB\n");
    let root = crate::cgroup::tests::root(&[meminfo]);
    assert_eq!(Host::of(root.path()).memory_mib, 24038);
    let root = crate::cgroup::tests::root(&[
        meminfo,
        ("proc/self/cgroup", "0::/\n"),
        ("sys/fs/cgroup/memory.max", "1572864000\n"),
        ("sys/fs/cgroup/memory.current", "0\n"),
    ]);
    assert_eq!(Host::of(root.path()).memory_mib, 1500);
}

#[test]
fn what_builders_can_do_and_what_they_have_is_configured_for_a_system() {
    let text = "[systems.aarch64-linux]\ncpu = \"cortex-a72\"\ndisk-gib = 40\nfeatures = [\"gccarch-armv8-a\"]\n\
        extra-platforms = [\"armv7l-linux\"]\nexperimental-features = [\"ca-derivations\"]\n";
    let config = parse(text).unwrap();
    let arm = &config.systems[&System::Aarch64Linux];
    assert_eq!(
        (arm.profile.cpu.as_str(), arm.profile.disk_gib),
        ("cortex-a72", 40)
    );
    let conf = "extra-experimental-features = ca-derivations\nextra-extra-platforms = armv7l-linux\n\
        extra-system-features = ca-derivations gccarch-armv8-a\n";
    assert_eq!(arm.abilities.guest_conf(), conf);
    let riscv = &config.systems[&System::Riscv64Linux];
    assert_eq!(
        (
            riscv.profile.disk_gib,
            riscv.abilities.guest_conf().as_str()
        ),
        (64, "")
    );
    assert_eq!(
        refused("[pool]\nfeatures = [\"a b\"]\n"),
        "xpool.toml:2: `a b` is not the name of a feature or a platform, such as `gccarch-rv64gc` or `armv7l-linux`"
    );
    assert_eq!(
        refused("[pool]\ncpu = \"cortex-a72\"\n"),
        "xpool.toml:2: `cpu` cannot be the same for all systems: move it to a section such as `[systems.aarch64-linux]`"
    );
    assert_eq!(
        refused("[systems.riscv64-linux]\ncpu = \"rv64 -drive\"\n"),
        "xpool.toml:2: `rv64 -drive` is not a value of QEMU's `-cpu`, such as `rv64,v=true,sv57=off`"
    );
    assert_eq!(
        refused("[pool]\ndisk-gib = 8\n"),
        "xpool.toml:2: `disk-gib` is 8 but must be from 16 to 4096"
    );
}

#[test]
fn memory_follows_the_machine_and_the_budget() {
    let given = |memory_mib, text: &str| {
        let host = Host { memory_mib, ..HOST };
        let config = Config::of_text(text, &host).unwrap();
        config.systems[&System::Riscv64Linux].policy.memory_mib
    };
    // A build that takes 6 GiB works on a machine with 24.
    assert_eq!(given(24 * 1024, ""), 8192);
    assert_eq!(given(24038, ""), 7936);
    assert_eq!([2048, 4096].map(|mib| given(mib, "")), [2048; 2]);
    assert_eq!(given(1 << 20, ""), 16384);
    assert_eq!(given(24 * 1024, "[budget]\nmemory-mib = 12000\n"), 3840);
    assert_eq!(given(24 * 1024, "[budget]\nmemory-mib = 1000\n"), 1000);
    assert_eq!(given(24 * 1024, "[pool]\nmemory-mib = 3000\n"), 3000);
    let auto = "[pool]\nmemory-mib = 3000\n[systems.riscv64-linux]\nmemory-mib = \"auto\"\n";
    assert_eq!(given(24 * 1024, auto), 8192);
    assert_eq!(
        refused("[pool]\nmemory-mib = 100\n"),
        "xpool.toml:2: invalid value: integer `100`, expected a number from 256 to 1048576, or \"auto\""
    );
}
