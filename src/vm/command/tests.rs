//! The command line as it comes out, for both systems.

use std::time::Duration;

use super::*;
use crate::config::vm::VmProfile;
use crate::image::Image;
use crate::image::manifest::{ImageFile, ImageKind, Manifest};
use crate::nix::System;

fn profile(system: System) -> VmProfile {
    let text = match system {
        System::Riscv64Linux => include_str!("../../../vm-configs/riscv64-linux.toml"),
        System::Aarch64Linux => include_str!("../../../vm-configs/aarch64-linux.toml"),
    };
    toml::from_str(text).unwrap()
}

/// A VM under emulation, with a network.
pub(in crate::vm) fn spec(system: System) -> VmSpec {
    spec_with(system, Accel::Tcg, Network::Nat)
}

fn spec_with(system: System, accel: Accel, network: Network) -> VmSpec {
    let file = |name: &str| ImageFile {
        name: name.to_owned(),
        size: 1,
        sha256: String::new(),
    };
    let manifest = Manifest {
        contract: 1,
        system,
        kind: ImageKind::Portable,
        recipe: String::new(),
        nix_version: String::new(),
        kernel_version: String::new(),
        cmdline: "quiet".to_owned(),
        kernel: file("kernel"),
        initrd: file("initrd"),
        disk: file("disk.qcow2"),
    };
    let profile = profile(system);
    VmSpec {
        name: format!("{}-1", system.cpu()),
        accel,
        qemu: format!("/bin/{}", profile.qemu).into(),
        profile,
        vcpus: 2,
        memory_mib: 2048,
        qemu_identity: "10".to_owned(),
        qemu_img: "/bin/qemu-img".into(),
        image: Image {
            dir: "/img".into(),
            manifest,
        },
        slots: 2,
        network,
        given: Vec::new(),
        names: None,
        store: None,
        templates: None,
        pauses: true,
        private_parent: "/s".into(),
        console_log: "/s/log".into(),
        boot_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(10),
    }
}

/// The arguments, an option and its value to a line.
fn rendered(spec: &VmSpec, dir: &str) -> String {
    rendered_with(spec, Memory::Own, dir)
}

fn rendered_with(spec: &VmSpec, memory: Memory<'_>, dir: &str) -> String {
    let mut text = String::new();
    for argument in arguments(spec, memory, &Layout::new(Path::new(dir))) {
        let argument = argument.into_string().unwrap();
        text.push(if argument.starts_with('-') { '\n' } else { ' ' });
        text.push_str(&argument);
    }
    text.trim().to_owned()
}

#[test]
fn riscv64_under_emulation_with_network() {
    let spec = spec_with(System::Riscv64Linux, Accel::Tcg, Network::Nat);
    insta::assert_snapshot!(rendered(&spec, "/s/vm1"), @r"
    -nodefaults
    -no-user-config
    -display none
    -no-reboot
    -name riscv64-1
    -machine virt
    -accel tcg,thread=multi
    -cpu rv64,sv57=off
    -smp 2
    -m 2048
    -kernel /img/kernel
    -initrd /img/initrd
    -append quiet console=ttyS0
    -drive if=none,id=disk,format=qcow2,file=/s/vm1/disk,cache=unsafe,discard=unmap,detect-zeroes=unmap
    -device virtio-blk-pci,drive=disk,werror=enospc,rerror=report
    -device virtio-rng-pci
    -device pvpanic-pci
    -netdev user,id=net
    -device virtio-net-pci,netdev=net,romfile=
    -chardev stdio,id=console,signal=off
    -serial chardev:console
    -chardev socket,id=qmp,path=/s/vm1/qmp,server=on,wait=off
    -mon chardev=qmp,mode=control
    -device virtio-serial-pci
    -chardev socket,id=agent,path=/s/vm1/agent,server=on,wait=off
    -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
    -chardev socket,id=port0,path=/s/vm1/port0,server=on,wait=off
    -device virtserialport,id=port0,chardev=port0,name=xpool.0
    -chardev socket,id=port1,path=/s/vm1/port1,server=on,wait=off
    -device virtserialport,id=port1,chardev=port1,name=xpool.1
    -chardev socket,id=shell0,path=/s/vm1/shell0,server=on,wait=off
    -device virtserialport,id=shell0,chardev=shell0,name=xpool.shell.0
    -chardev socket,id=shell1,path=/s/vm1/shell1,server=on,wait=off
    -device virtserialport,id=shell1,chardev=shell1,name=xpool.shell.1
    -chardev socket,id=shell2,path=/s/vm1/shell2,server=on,wait=off
    -device virtserialport,id=shell2,chardev=shell2,name=xpool.shell.2
    -device virtio-balloon-pci,free-page-reporting=on
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    ");
}

#[test]
fn aarch64_under_emulation_without_network() {
    let spec = spec_with(System::Aarch64Linux, Accel::Tcg, Network::None);
    insta::assert_snapshot!(rendered(&spec, "/s/vm1"), @r"
    -nodefaults
    -no-user-config
    -display none
    -no-reboot
    -name aarch64-1
    -machine virt,gic-version=3
    -accel tcg,thread=multi
    -cpu max,pauth=off,sve=off,sme=off,lpa2=off
    -smp 2
    -m 2048
    -kernel /img/kernel
    -initrd /img/initrd
    -append quiet console=ttyAMA0
    -drive if=none,id=disk,format=qcow2,file=/s/vm1/disk,cache=unsafe,discard=unmap,detect-zeroes=unmap
    -device virtio-blk-pci,drive=disk,werror=enospc,rerror=report
    -device virtio-rng-pci
    -device pvpanic-pci
    -chardev stdio,id=console,signal=off
    -serial chardev:console
    -chardev socket,id=qmp,path=/s/vm1/qmp,server=on,wait=off
    -mon chardev=qmp,mode=control
    -device virtio-serial-pci
    -chardev socket,id=agent,path=/s/vm1/agent,server=on,wait=off
    -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
    -chardev socket,id=port0,path=/s/vm1/port0,server=on,wait=off
    -device virtserialport,id=port0,chardev=port0,name=xpool.0
    -chardev socket,id=port1,path=/s/vm1/port1,server=on,wait=off
    -device virtserialport,id=port1,chardev=port1,name=xpool.1
    -chardev socket,id=shell0,path=/s/vm1/shell0,server=on,wait=off
    -device virtserialport,id=shell0,chardev=shell0,name=xpool.shell.0
    -chardev socket,id=shell1,path=/s/vm1/shell1,server=on,wait=off
    -device virtserialport,id=shell1,chardev=shell1,name=xpool.shell.1
    -chardev socket,id=shell2,path=/s/vm1/shell2,server=on,wait=off
    -device virtserialport,id=shell2,chardev=shell2,name=xpool.shell.2
    -device virtio-balloon-pci,free-page-reporting=on
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    ");
}

#[test]
fn kvm_changes_the_accelerator_and_the_cpu_only() {
    for system in System::ALL {
        let emulated = rendered(&spec_with(system, Accel::Tcg, Network::Nat), "/s/vm1");
        let native = rendered(&spec_with(system, Accel::Kvm, Network::Nat), "/s/vm1");
        let cpu = profile(system).cpu;
        let expected = emulated
            .replace("-accel tcg,thread=multi", "-accel kvm")
            .replace(&format!("-cpu {cpu}"), "-cpu host");
        assert_eq!(native, expected);
    }
}

#[test]
fn no_network_means_no_device_and_nothing_else() {
    for system in System::ALL {
        let with = rendered(&spec_with(system, Accel::Tcg, Network::Nat), "/s/vm1");
        let without = rendered(&spec_with(system, Accel::Tcg, Network::None), "/s/vm1");
        let device = "-netdev user,id=net\n-device virtio-net-pci,netdev=net,romfile=\n";
        assert_eq!(with.replace(device, ""), without);
    }
}

#[test]
fn commas_in_paths_and_names_are_doubled_where_qemu_splits() {
    let mut spec = spec_with(System::Riscv64Linux, Accel::Tcg, Network::None);
    spec.name = "a,b".to_owned();
    spec.image.dir = "/i,mg".into();
    let text = rendered(&spec, "/s,t/vm1");
    for expected in [
        "-name a,,b\n",
        "file=/s,,t/vm1/disk,",
        "path=/s,,t/vm1/qmp,",
        "path=/s,,t/vm1/agent,",
        "path=/s,,t/vm1/port1,",
        "-kernel /i,mg/kernel\n",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn a_clone_differs_from_its_template_in_how_it_has_its_memory_and_in_the_restoring() {
    let ram = Path::new("/t,1/ram");
    let lines = |spec: &VmSpec, memory| -> Vec<String> {
        let text = rendered_with(spec, memory, "/s/vm1");
        text.lines().map(str::to_owned).collect()
    };
    let differing = |system| {
        let spec = spec(system);
        let saved = lines(&spec, Memory::Saved(ram));
        let copied = lines(&spec, Memory::Copied(ram));
        let only_in = |these: &[String], those: &[String]| {
            let only: Vec<_> = these
                .iter()
                .filter(|line| !those.contains(line))
                .cloned()
                .collect();
            only.join("\n")
        };
        (only_in(&saved, &copied), only_in(&copied, &saved))
    };
    let (template, clone) = differing(System::Riscv64Linux);
    insta::assert_snapshot!(template, @"-object memory-backend-file,id=ram,size=2048M,share=on,mem-path=/t,,1/ram");
    insta::assert_snapshot!(clone, @r"
    -object memory-backend-file,id=ram,size=2048M,share=off,readonly=on,rom=off,mem-path=/t,,1/ram
    -incoming defer
    -chardev socket,id=debugger,path=/s/vm1/debugger,server=on,wait=off
    -gdb chardev:debugger
    ");
    let (_, clone) = differing(System::Aarch64Linux);
    assert!(clone.ends_with("-incoming defer"), "{clone}");
}

#[test]
fn a_saved_guests_memory_is_the_machines_and_none_of_it_goes_back() {
    let text = rendered_with(
        &spec(System::Aarch64Linux),
        Memory::Saved(Path::new("/ram")),
        "/s",
    );
    assert!(
        text.contains("-machine virt,gic-version=3,memory-backend=ram"),
        "{text}"
    );
    assert!(!text.contains("balloon"), "{text}");
}

#[test]
fn a_guest_that_sees_the_hosts_store_has_a_device_and_a_port_for_it() {
    let mut spec = spec(System::Riscv64Linux);
    let without = rendered(&spec, "/s/vm1");
    assert!(
        !without.contains("9p") && !without.contains("fsdev") && !without.contains("xpool.store")
    );
    spec.store = Some("/odd,place/nix/store".into());
    let with = rendered(&spec, "/s/vm1");
    let added: Vec<&str> = with
        .lines()
        .filter(|line| !without.contains(line))
        .collect();
    insta::assert_snapshot!(added.join("\n"), @r"
    -fsdev local,id=store,path=/odd,,place/nix/store,security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=store,mount_tag=xpool-store
    -chardev socket,id=storeport,path=/s/vm1/store,server=on,wait=off
    -device virtserialport,chardev=storeport,name=xpool.store
    ");
}
