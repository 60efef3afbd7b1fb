//! What a VM is made to be when it starts, and how many processors that is.

use std::num::NonZeroU32;

use super::policy::Share;

/// What is fixed of a VM from its start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it sees of this machine's store.
    pub share: Share,
    /// Its processors.
    pub vcpus: u32,
}

/// How many processors VMs are given: all of the machine's where one is at work, fewer where many are.
///
/// An emulated processor is a thread of this machine's. More of them at work than there are real ones gain nothing, and cost
/// something where a build only forks: on riscv64 a second one made such a build a third slower (QEMU 10.0.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpus {
    most: NonZeroU32,
    least: NonZeroU32,
    /// Processors of this machine.
    host: u32,
}

impl Vcpus {
    /// So many, whatever is at work.
    pub fn fixed(count: NonZeroU32) -> Self {
        Self {
            most: count,
            least: count,
            host: count.get(),
        }
    }

    /// As many as a machine with `host` processors has for each VM that is at work, `most` at the most.
    pub fn following(most: NonZeroU32, host: u32) -> Self {
        Self {
            most,
            least: NonZeroU32::MIN,
            host,
        }
    }

    /// Without which no VM starts.
    pub(super) fn least(&self) -> u32 {
        self.least.get()
    }

    /// Those of a VM that starts while so many are at work, itself included, and so many processors may still be given; the
    /// least if there are fewer.
    ///
    /// Each count has a template of its own, so there are few: the most, half of it, and so on.
    pub(super) fn of_each(&self, at_work: usize, left: Option<u32>) -> u32 {
        let at_work = u32::try_from(at_work.max(1)).unwrap_or(u32::MAX);
        let enough = (self.host / at_work).min(left.unwrap_or(u32::MAX));
        let mut count = self.most.get();
        while count > enough && count > self.least() {
            count = (count / 2).max(self.least());
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn one_vm_has_all_and_many_have_one_each() {
        let vcpus = Vcpus::following(count(6), 6);
        let each = |at_work| vcpus.of_each(at_work, None);
        assert_eq!([0, 1, 2, 3, 6, 100].map(each), [6, 6, 3, 1, 1, 1]);
    }

    #[test]
    fn a_large_machine_has_the_most_for_several() {
        let vcpus = Vcpus::following(count(4), 16);
        let each = |at_work| vcpus.of_each(at_work, None);
        assert_eq!([1, 4, 5, 8, 9].map(each), [4, 4, 2, 2, 1]);
    }

    #[test]
    fn what_a_budget_leaves_is_enough_down_to_the_least() {
        let vcpus = Vcpus::following(count(4), 4);
        assert_eq!(vcpus.of_each(1, Some(3)), 2);
        assert_eq!(vcpus.of_each(1, Some(0)), 1);
        let fixed = Vcpus::fixed(count(4));
        assert_eq!(fixed.of_each(100, Some(1)), 4);
    }
}
