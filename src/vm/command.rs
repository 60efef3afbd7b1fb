//! QEMU's command line. Pure: a specification and paths in, arguments out, one function per concern.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::VmSpec;
use super::given::{GivenContent, GivenFile};
use super::private_dir::Layout;
use super::shell::SHELL_STREAMS;
use crate::config::vm::{Accel, Network};
use crate::nix::System;

/// The id of a slot's port, for QEMU's device as well as its chardev, and in QMP's events.
pub(super) fn port_id(slot: u32) -> String {
    format!("port{slot}")
}

/// The same for a port of the shell, which has one for each of its standard streams; their numbers are those of the streams.
pub(super) fn shell_port_id(stream: usize) -> String {
    format!("shell{stream}")
}

/// Where the guest's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory<'a> {
    /// QEMU's own, and what the guest does not need goes back to the host.
    Own,
    /// This file, which the guest writes to, so that it can be copied later.
    Saved(&'a Path),
    /// A copy-on-write view of such a file, which itself is not written. QEMU waits to be told what to restore.
    Copied(&'a Path),
}

/// Whether QEMU forgets the timers of restored processors, and its debugger's port is needed to remind it.
pub(super) fn forgets_timers(spec: &VmSpec) -> bool {
    spec.image.manifest.system == System::Riscv64Linux && spec.accel == Accel::Tcg
}

/// QEMU's arguments.
pub(super) fn arguments(spec: &VmSpec, memory: Memory<'_>, layout: &Layout) -> Vec<OsString> {
    [
        base_args(spec),
        machine_args(spec, memory),
        memory_args(spec, memory),
        kernel_args(spec),
        spec.given
            .iter()
            .flat_map(|given| given_args(given, layout))
            .collect(),
        disk_args(layout),
        device_args(),
        network_args(spec.network),
        spec.store.as_deref().map(store_args).unwrap_or_default(),
        console_args(),
        qmp_args(layout),
        agent_args(layout),
        store_port_args(spec, layout),
        (0..spec.slots)
            .flat_map(|slot| slot_args(slot, layout))
            .collect(),
        (0..SHELL_STREAMS)
            .flat_map(|stream| shell_port_args(stream, layout))
            .collect(),
        balloon_args(memory),
        restore_args(spec, memory, layout),
        sandbox_args(),
    ]
    .concat()
}

/// Nothing that was not asked for, and no restart: a guest that wants one has ended.
fn base_args(spec: &VmSpec) -> Vec<OsString> {
    let name = spec.name.replace(',', ",,");
    plain(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-name",
        &name,
    ])
}

fn machine_args(spec: &VmSpec, memory: Memory<'_>) -> Vec<OsString> {
    let (accel, cpu) = match spec.accel {
        Accel::Kvm => ("kvm", &spec.profile.cpu_kvm),
        Accel::Tcg => ("tcg,thread=multi", &spec.profile.cpu),
    };
    let vcpus = spec.vcpus.to_string();
    let machine = match memory {
        Memory::Own => spec.profile.machine.clone(),
        Memory::Saved(_) | Memory::Copied(_) => {
            format!("{},memory-backend=ram", spec.profile.machine)
        }
    };
    plain(&[
        "-machine", &machine, "-accel", accel, "-cpu", cpu, "-smp", &vcpus,
    ])
}

fn memory_args(spec: &VmSpec, memory: Memory<'_>) -> Vec<OsString> {
    let mib = spec.memory_mib;
    let mut args = plain(&["-m", &mib.to_string()]);
    // Opened read-only, a clone can do no harm to the file that all of them share, whatever its guest asks for.
    let (path, sharing) = match memory {
        Memory::Own => return args,
        Memory::Saved(path) => (path, "share=on"),
        Memory::Copied(path) => (path, "share=off,readonly=on,rom=off"),
    };
    let backend = format!("memory-backend-file,id=ram,size={mib}M,{sharing},mem-path=");
    args.extend(["-object".into(), with_path(&backend, path)]);
    args
}

/// Gives memory back to the host. QEMU cannot do so in a view of a file that others share (`ram_block_discard_range`), so
/// clones have none, nor has what they are copies of: their devices must be the same.
fn balloon_args(memory: Memory<'_>) -> Vec<OsString> {
    match memory {
        Memory::Own => plain(&["-device", "virtio-balloon-pci,free-page-reporting=on"]),
        Memory::Saved(_) | Memory::Copied(_) => Vec::new(),
    }
}

fn restore_args(spec: &VmSpec, memory: Memory<'_>, layout: &Layout) -> Vec<OsString> {
    let Memory::Copied(_) = memory else {
        return Vec::new();
    };
    let mut args = plain(&["-incoming", "defer"]);
    if forgets_timers(spec) {
        args.extend(socket_args("debugger", &layout.debugger()));
        args.extend(plain(&["-gdb", "chardev:debugger"]));
    }
    args
}

/// The kernel is booted directly: no firmware menu, no boot loader.
fn kernel_args(spec: &VmSpec) -> Vec<OsString> {
    let console = format!("console={}", spec.profile.console);
    let cmdline = [
        &spec.image.manifest.cmdline,
        &console,
        &spec.profile.cmdline,
    ]
    .into_iter()
    .map(|part| part.trim())
    .filter(|part| !part.is_empty())
    .collect::<Vec<_>>()
    .join(" ");
    // These three are no option lists, so commas in them mean nothing.
    vec![
        "-kernel".into(),
        spec.image.kernel().into(),
        "-initrd".into(),
        spec.image.initrd().into(),
        "-append".into(),
        cmdline.into(),
    ]
}

/// Files that the guest finds by its firmware's interface (`xpool-guest configure`).
fn given_args(given: &GivenFile, layout: &Layout) -> Vec<OsString> {
    let name = format!("name=opt/org.xpool/{},", given.name);
    let option = match &given.content {
        GivenContent::Text(text) => format!("{name}string={}", text.replace(',', ",,")).into(),
        GivenContent::Secret(_) => with_path(&format!("{name}file="), &layout.given(given.name)),
        GivenContent::File { path, .. } => with_path(&format!("{name}file="), path),
    };
    vec!["-fw_cfg".into(), option]
}

/// The overlay dies with the VM, so nothing is ever flushed. When the host's disk is full the VM pauses rather than
/// seeing errors, which is told by an event, and it is ended: nobody would free space for a guest that hangs unseen.
fn disk_args(layout: &Layout) -> Vec<OsString> {
    let mut drive = with_path("if=none,id=disk,format=qcow2,file=", layout.overlay());
    drive.push(",cache=unsafe,discard=unmap,detect-zeroes=unmap");
    let mut args = vec!["-drive".into(), drive];
    args.extend(plain(&[
        "-device",
        "virtio-blk-pci,drive=disk,werror=enospc,rerror=report",
    ]));
    args
}

/// Entropy for the guest, and its way to report a panic.
fn device_args() -> Vec<OsString> {
    plain(&["-device", "virtio-rng-pci", "-device", "pvpanic-pci"])
}

fn network_args(network: Network) -> Vec<OsString> {
    match network {
        Network::None => Vec::new(),
        Network::Nat => plain(&[
            "-netdev",
            "user,id=net",
            "-device",
            // No boot ROM: the kernel is booted directly, and distributions package ROMs apart.
            "virtio-net-pci,netdev=net,romfile=",
        ]),
    }
}

/// The host's store, by QEMU's own 9p server, which refuses every write. A store of several file systems has inode numbers
/// that occur twice; they are told apart (`multidevs`).
fn store_args(folder: &Path) -> Vec<OsString> {
    let mut fsdev = with_path("local,id=store,path=", folder);
    fsdev.push(",security_model=none,readonly=on,multidevs=remap");
    let mut args = vec!["-fsdev".into(), fsdev];
    args.extend(plain(&[
        "-device",
        "virtio-9p-pci,fsdev=store,mount_tag=xpool-store",
    ]));
    args
}

/// The console goes to QEMU's standard output, which is read from its first byte on.
fn console_args() -> Vec<OsString> {
    plain(&[
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
    ])
}

fn qmp_args(layout: &Layout) -> Vec<OsString> {
    let mut args = socket_args("qmp", &layout.qmp());
    args.extend(plain(&["-mon", "chardev=qmp,mode=control"]));
    args
}

fn agent_args(layout: &Layout) -> Vec<OsString> {
    let mut args = plain(&["-device", "virtio-serial-pci"]);
    args.extend(socket_args("agent", &layout.agent()));
    args.extend(plain(&[
        "-device",
        "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ]));
    args
}

fn store_port_args(spec: &VmSpec, layout: &Layout) -> Vec<OsString> {
    if spec.store.is_none() {
        return Vec::new();
    }
    let mut args = socket_args("storeport", &layout.store());
    args.extend(plain(&[
        "-device",
        "virtserialport,chardev=storeport,name=xpool.store",
    ]));
    args
}

fn slot_args(slot: u32, layout: &Layout) -> Vec<OsString> {
    let id = port_id(slot);
    let mut args = socket_args(&id, &layout.port(slot));
    let device = format!("virtserialport,id={id},chardev={id},name=xpool.{slot}");
    args.extend(plain(&["-device", &device]));
    args
}

fn shell_port_args(stream: usize, layout: &Layout) -> Vec<OsString> {
    let id = shell_port_id(stream);
    let mut args = socket_args(&id, &layout.shell(stream));
    let device = format!("virtserialport,id={id},chardev={id},name=xpool.shell.{stream}");
    args.extend(plain(&["-device", &device]));
    args
}

/// What an emulated guest's escape into QEMU could not do: start programs, gain privileges, change its limits.
fn sandbox_args() -> Vec<OsString> {
    plain(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ])
}

fn socket_args(id: &str, path: &Path) -> Vec<OsString> {
    let mut socket = with_path(&format!("socket,id={id},path="), path);
    socket.push(",server=on,wait=off");
    vec!["-chardev".into(), socket]
}

fn plain(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

/// An option that ends in a path; in QEMU's option lists a comma is written twice.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut bytes = option.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
pub(in crate::vm) mod tests;
