//! What a client calls the place where it comes in: one build at a time for a system, or one VM. Pure.

use super::System;

/// What the name of a VM begins with where it stands for a slot.
const VM: &str = "vm-";

/// What is between a slot's number and its system where it is a program's name.
const LINK: &str = "@xpool-";

/// A slot's name, which over ssh is a user name: `riscv64-03`, `vm-riscv64-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotName {
    /// The platform that it is for.
    pub system: System,
    /// Which one of it.
    pub slot: Slot,
}

/// Which slot of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// One of those that Nix is told of, any VM's: the pool gives it one for each build.
    Number(u32),
    /// The VM of this number and no other.
    Vm(u32),
}

impl SlotName {
    /// What a name stands for; `None` if no slot is ever called that.
    pub fn parse(name: &str) -> Option<Self> {
        let (vm, place) = match name.strip_prefix(VM) {
            Some(vm) => (true, vm),
            None => (false, name),
        };
        let (cpu, number) = place.rsplit_once('-')?;
        let system = System::ALL.into_iter().find(|known| known.cpu() == cpu)?;
        let number = number.parse().ok()?;
        let slot = if vm {
            Slot::Vm(number)
        } else {
            Slot::Number(number)
        };
        let parsed = Self { system, slot };
        // One spelling each: what is told apart by name is never the same.
        (number > 0 || !vm).then_some(())?;
        (parsed.to_string() == name).then_some(parsed)
    }

    /// What a program is called that Nix starts for the slot: `03@xpool-riscv64`. None for a VM, which has no lines.
    pub fn link(&self) -> Option<String> {
        match self.slot {
            Slot::Number(number) => Some(format!("{number:02}{LINK}{}", self.system.cpu())),
            Slot::Vm(_) => None,
        }
    }

    /// The slot whose program is called that; `None` if no slot's ever is.
    pub fn of_link(name: &str) -> Option<Self> {
        let (number, cpu) = name.split_once(LINK)?;
        let slot = Self::parse(&format!("{cpu}-{number}"))?;
        (slot.link().as_deref() == Some(name)).then_some(slot)
    }
}

impl std::fmt::Display for SlotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.slot {
            Slot::Number(number) => write!(f, "{}-{number:02}", self.system.cpu()),
            Slot::Vm(number) => write!(f, "{VM}{}", vm_name(self.system, number)),
        }
    }
}

/// What a VM is called: `riscv64-1`.
pub fn vm_name(system: System, number: u32) -> String {
    format!("{}-{number}", system.cpu())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_known_by_its_name() {
        let of = |slot| SlotName {
            system: System::Riscv64Linux,
            slot,
        };
        for (name, slot) in [
            ("riscv64-00", Slot::Number(0)),
            ("riscv64-03", Slot::Number(3)),
            ("riscv64-100", Slot::Number(100)),
            ("vm-riscv64-1", Slot::Vm(1)),
            ("vm-riscv64-42", Slot::Vm(42)),
        ] {
            assert_eq!(SlotName::parse(name), Some(of(slot)), "{name}");
            assert_eq!(of(slot).to_string(), name);
            let link = of(slot).link();
            assert_eq!(link.is_some(), name.starts_with("riscv64"));
            assert_eq!(
                link.and_then(|link| SlotName::of_link(&link)),
                SlotName::parse(name).filter(|_| !name.starts_with(VM))
            );
        }
    }

    #[test]
    fn what_no_slot_is_called_is_none() {
        for name in [
            "",
            "riscv64",
            "riscv64-",
            "riscv64-3",
            "riscv64-003",
            "riscv64-+3",
            "mips-00",
            "vm-",
            "vm-riscv64",
            "vm-riscv64-0",
            "vm-riscv64-01",
            "vm-mips-1",
            "vm-vm-riscv64-1",
            "VM-riscv64-1",
            "vm-riscv64-1 ",
            "vm-riscv64-99999999999",
            "root",
        ] {
            assert_eq!(SlotName::parse(name), None, "{name}");
            assert_eq!(SlotName::of_link(name), None, "{name}");
        }
        for name in [
            "3@xpool-riscv64",
            "03@xpool-",
            "03@xpool-vm-riscv64",
            "+3@xpool-riscv64",
            "03@riscv64",
        ] {
            assert_eq!(SlotName::of_link(name), None, "{name}");
        }
    }
}
