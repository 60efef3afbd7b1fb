//! What a build sees of a guest, beside what it would see on a builder that runs NixOS.

use std::collections::BTreeMap;

use xpool::nix::System;
use xpool::vm::QemuVm;

use super::{booted, build, for_each_image};
use crate::common::builder::{LIMITS, NO_TOOLS, SYSCTLS};
use crate::common::vm::{boot_of, in_guest};

/// What a build has found, by what it was asked for.
async fn seen(vm: &QemuVm, script: &str) -> BTreeMap<String, String> {
    let said = in_guest(vm, &build(&format!("{{\n{script}\n}} > $out"))).await;
    let lines = said.lines().map(|line| line.split_once('\t').unwrap());
    lines
        .map(|(what, value)| {
            (
                what.to_owned(),
                value.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect()
}

/// What test suites have the kernel load by asking for a kind of socket, a file system, a cipher or a device.
const MODULES: [&str; 18] = [
    "af_alg",
    "algif_skcipher",
    "btrfs",
    "can",
    "dm_mod",
    "dummy",
    "fuse",
    "isofs",
    "loop",
    "nbd",
    "nf_tables",
    "sctp",
    "squashfs",
    "tun",
    "vcan",
    "veth",
    "vsock_loopback",
    "xfs",
];

/// The kernel finds them, or names those that it does not.
async fn assert_modules(vm: &QemuVm) {
    let modules = MODULES.join(" ");
    let find = format!(
        "IFS=:; for dir in $PATH; do [ -x $dir/modprobe ] && modprobe=$dir/modprobe; done; unset IFS
        for module in {modules}; do $modprobe -n -q $module || echo $module; done"
    );
    assert_eq!(in_guest(vm, &find).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_cannot_tell_the_guest_from_a_builder_that_runs_nixos() {
    for_each_image(async |image, dir| {
        let vm = boot_of(booted(image, dir)).await;
        let mut script = Vec::new();
        let mut right = BTreeMap::new();
        for (name, value, _) in SYSCTLS {
            let file = name.replace('.', "/");
            let said = format!("printf '%s\\t%s\\n' {name} \"$value\"");
            script.push(format!("read -r value < /proc/sys/{file}; {said}"));
            right.insert(name.to_owned(), value.to_owned());
        }
        for (limit, value) in LIMITS {
            script.push(format!("printf '%s\\t%s\\n' {limit} \"$(ulimit {limit})\""));
            right.insert(limit.to_owned(), value.to_owned());
        }
        let tools = NO_TOOLS.join(" ");
        script.push(format!(
            "found=
            for tool in {tools}; do PATH= type $tool > /dev/null 2>&1 && found=\"$found $tool\"; done
            printf 'tools\\t%s\\n' \"$found\"
            while read -r key value; do
                case $key in SigBlk: | NoNewPrivs: | Seccomp:) printf '%s\\t%s\\n' $key $value ;; esac
            done < /proc/self/status
            while read -r key colon value; do [ \"$key\" != mmu ] || printf 'mmu\\t%s\\n' $value; done < /proc/cpuinfo
            while read -r _ where _ options _; do
                case $options in *noatime*) printf 'noatime\\t%s\\n' $where ;; esac
            done < /proc/self/mounts
            [ -d /proc/sys/net/ipv6 ] && printf 'ipv6\\tyes\\n'
            read -r score < /proc/self/oom_score_adj
            printf 'oom\\t%s\\n' $score"
        ));
        for (key, value) in [
            ("tools", ""),
            ("SigBlk:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
            ("ipv6", "yes"),
            ("oom", "0"),
        ] {
            right.insert(key.to_owned(), value.to_owned());
        }
        if image.manifest.system == System::Riscv64Linux {
            // What boards have, and JDKs know.
            right.insert("mmu".to_owned(), "sv48".to_owned());
        }
        assert_eq!(seen(&vm, &script.join("\n")).await, right);
        assert_modules(&vm).await;
    })
    .await;
}
