//! One VM: its arguments, its process, its monitor and agent, the hops into it, and its end.
//!
//! Knows nothing of pools and sessions: it returns values, and the manager turns them into events.

mod agent;
mod alive;
mod boot_error;
mod clock;
mod command;
mod console;
mod disk;
mod given;
mod guest_text;
mod hop;
pub mod host;
pub mod leftovers;
mod machine;
mod names;
mod out_of_memory;
mod port;
mod port_state;
mod private_dir;
mod process;
mod qemu;
mod qmp;
mod ready;
mod registrar;
mod shell;
mod start;
mod stop;
pub mod template;
mod thaw;
mod timers;
mod wait;

#[doc(hidden)]
pub use agent::hear_agent;
#[doc(hidden)]
pub use qmp::filtered;

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use agent::GuestOutput;
pub use given::GivenFile;
pub use hop::{DetachedPort, Hop};
pub use names::{HOST_ADDRESS, HostNames};
pub use qemu::{Qemu, QemuVm};
pub use shell::{SHELL_STREAMS, Shell, ShellProgram, ShellTerminal};

use crate::config::vm::{Accel, Network, VmProfile};
use crate::image::Image;
use crate::nix::registrations::Registrations;

/// Everything it takes to run one VM: one self-contained value that another host could execute.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The VM's name, unique on this machine: `riscv64-1`.
    pub name: String,
    /// How QEMU is laid out.
    pub profile: VmProfile,
    /// Its processors.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// QEMU's program, absolute.
    pub qemu: PathBuf,
    /// What tells this QEMU from any other; see [`host::UsableQemu`].
    pub qemu_identity: String,
    /// The `qemu-img` program, absolute.
    pub qemu_img: PathBuf,
    /// The image to boot.
    pub image: Image,
    /// How many sessions the VM can serve at once: the number of `xpool.K` ports.
    pub slots: u32,
    /// Whether the guest has a network device.
    pub network: Network,
    /// Files that the guest finds when it boots.
    pub given: Vec<GivenFile>,
    /// What the guest is told of this machine's network; `None` for a guest that has no network.
    pub names: Option<HostNames>,
    /// A folder of store paths on this machine that the guest sees below its own store, read-only, absolute; `None` for a
    /// guest that has no device to see one by.
    pub store: Option<PathBuf>,
    /// The folder of templates, one of which the VM is cloned from; `None` for a VM that boots from its image.
    pub templates: Option<PathBuf>,
    /// Whether the VM is paused while nobody uses it; its owner sees to that.
    pub pauses: bool,
    /// Where the VM's private folder (overlay, sockets) is made; removed at the VM's end.
    pub private_parent: PathBuf,
    /// Where the console goes; kept after the VM's end, bounded in size.
    pub console_log: PathBuf,
    /// How long a boot may take in all.
    pub boot_timeout: Duration,
    /// How long a clean shutdown may take before QEMU is told to quit.
    pub stop_grace: Duration,
}

/// Told of each stage of a boot, as a person would call it: `waiting for the guest agent`.
pub type BootProgress<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// It was asked to stop and did.
    Stopped,
    /// It ended without being asked; the text says how: `QEMU was killed by signal 9`.
    Died(String),
}

impl VmExit {
    /// The end in words, to follow a colon.
    pub fn in_words(&self) -> &str {
        match self {
            Self::Stopped => "it was stopped",
            Self::Died(cause) => cause,
        }
    }
}

/// Starts VMs. The one seam of the program: QEMU in production, a fake in tests below the real-VM level.
pub trait VmBackend: Send + Sync + 'static {
    /// What a started VM is handled by.
    type Vm: RunningVm;

    /// Starts a VM and returns when it can serve. Cancelling `abort` ends the start: QEMU is killed and reaped, its
    /// folder removed, and the error says that it was aborted.
    fn boot(
        &self,
        spec: VmSpec,
        progress: &BootProgress<'_>,
        abort: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<Self::Vm>> + Send;
}

/// A VM that can serve sessions.
pub trait RunningVm: Send + Sync + 'static {
    /// Opens a session into the guest's nix-daemon over port `xpool.<slot>`.
    fn open_hop(&self, slot: u32) -> impl Future<Output = anyhow::Result<Hop>> + Send;

    /// Tells the guest the names of this machine's network as they are now, where it was told others: with private ones and
    /// passwords if all who are in it may know them at that moment.
    fn tell_names(&self, may_know: &AtomicBool) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Makes paths of the host's store valid in the guest; all or none. Only for a VM that has the store.
    fn register(
        &self,
        registrations: &Registrations,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Resolves when the guest has closed port `xpool.<slot>` after a hop, so that the slot can be used again.
    fn slot_released(&self, slot: u32) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Opens what [`Self::open_hop`] will give for a slot that is free, so that who asks does not wait.
    fn open_ahead(&self, slot: u32) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Starts a program in the guest for a person, one at a time, whatever else goes on there.
    fn open_shell(
        &self,
        program: ShellProgram,
    ) -> impl Future<Output = anyhow::Result<Shell>> + Send;

    /// Resolves when QEMU has ended for whatever reason, was reaped, and the private folder is gone. A folder whose
    /// removal takes more than a second goes after that, and the process does not end before. Cancel safe.
    fn ended(&self) -> impl Future<Output = VmExit> + Send;

    /// Resolves when the guest's kernel has killed a process for want of memory: its name. Cancel safe.
    fn killed_for_memory(&self) -> impl Future<Output = String> + Send;

    /// Stops the guest's processors, so that it costs no processor time. Nothing in it goes on until [`Self::resume`].
    fn pause(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Lets a paused guest go on, and sets its clock, which has stood still.
    fn resume(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Sets the clock of a guest that runs.
    fn set_clock(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// The process that runs the VM, on this machine; `None` once it has ended.
    fn pid(&self) -> Option<u32>;

    /// Whether its end needs no running guest: a clone is thrown away.
    fn is_disposable(&self) -> bool;

    /// Whether a further build may not find enough room on its disk.
    fn is_worn(&self) -> bool;

    /// Stops the VM: guest shutdown, then ACPI power button, then `quit`, then kill; a clone by `quit` at once. Returns at
    /// once; a second call is the same as one.
    fn power_down(&self);

    /// Kills QEMU and its children. Returns at once.
    fn kill(&self);
}
