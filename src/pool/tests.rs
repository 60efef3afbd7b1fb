//! One test per rule of the pool.

mod decisions;
mod drain;
mod failure;
mod fairness;
mod forecast;
mod keep;
mod leases;
mod machine;
mod memory;
mod outputs;
mod pinned;
mod reuse;
mod scaling;
mod share;
mod status;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::claim::{Claim, Outputs, Purpose, Seat};
use super::hold::{Hold, Pressure};
use super::policy::{Policy, Reuse, Share};
use super::shape::Shape;
use super::{Action, Down, Event, Exit, Pool, Rejection, Retry, SessionId, VmId};

const SECOND: Duration = Duration::from_secs(1);

/// A pool whose VMs are used again: what holds for it holds for every pool, but for whom a VM may serve.
fn pool(max_vms: u32) -> (Pool, Instant) {
    pool_with(policy(Reuse::Always, max_vms))
}

fn policy(reuse: Reuse, max_vms: u32) -> Policy {
    let max_vms = NonZeroU32::new(max_vms).unwrap();
    Policy {
        reuse,
        max_vms,
        up_limit: max_vms,
        ..Policy::default()
    }
}

fn pool_with(policy: Policy) -> (Pool, Instant) {
    #[expect(clippy::disallowed_methods, reason = "the start of virtual time")]
    let now = Instant::now();
    (Pool::new(policy), now)
}

impl Pool {
    /// Notes how much memory the host has available, in MiB, and leaves the rest of what is known of the machine.
    fn set_available_memory(&mut self, available_mib: Option<u64>) {
        self.machine.available_mib = available_mib;
    }
}

/// A claim of a client by a slot.
fn claim(client: &str, slot: u64, purpose: Purpose) -> Claim {
    let (client, slot) = (client.to_owned(), format!("riscv64-{slot:02}"));
    Claim {
        seat: Seat { client, slot },
        purpose,
        share: Share::Host,
    }
}

/// A session that builds, in a slot of its own.
fn open(session: u64) -> Event {
    open_for("anna", session)
}

fn open_for(client: &str, session: u64) -> Event {
    Event::SessionOpened(SessionId(session), claim(client, session, Purpose::Build))
}

fn close(session: u64) -> Event {
    Event::SessionClosed(SessionId(session), Outputs::Fetched)
}

fn ready(vm: u32) -> Event {
    Event::VmReady(VmId(vm))
}

fn gone(vm: u32) -> Event {
    Event::VmExited(VmId(vm), Exit::Stopped)
}

fn kill(vm: u32) -> Action {
    Action::Kill(VmId(vm))
}

fn boot(vm: u32) -> Action {
    boot_of(vm, Share::Host)
}

fn boot_of(vm: u32, share: Share) -> Action {
    Action::Boot(VmId(vm), Shape { share, vcpus: 1 })
}

fn assign(session: u64, vm: u32) -> Action {
    Action::Assign {
        session: SessionId(session),
        vm: VmId(vm),
        fetch_only: false,
    }
}

/// To a VM that has had its build.
fn assign_to_fetch(session: u64, vm: u32) -> Action {
    Action::Assign {
        session: SessionId(session),
        vm: VmId(vm),
        fetch_only: true,
    }
}

fn failed(reason: &str) -> Exit {
    Exit::Failed {
        reason: reason.to_owned(),
        retry: Retry::Later,
    }
}

fn rejected(session: u64) -> Action {
    Action::Reject {
        session: SessionId(session),
        reason: Rejection::Down,
    }
}

fn start_failed(session: u64, reason: &str) -> Action {
    Action::Reject {
        session: SessionId(session),
        reason: Rejection::StartFailed {
            reason: reason.to_owned(),
        },
    }
}

#[test]
fn nothing_is_started_while_nothing_waits() {
    let (mut pool, now) = pool(2);
    assert_eq!(pool.deadline(), None);
    assert_eq!(pool.handle(now, Event::DeadlineReached), []);
}

#[test]
fn a_session_starts_a_vm_and_gets_it_when_it_is_ready() {
    let (mut pool, now) = pool(2);
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(
        pool.handle(now + SECOND, Event::VmReady(VmId(1))),
        [assign(1, 1)]
    );
}

#[test]
fn booting_vms_count_as_supply() {
    let (mut pool, now) = pool(8);
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(pool.handle(now, Event::DeadlineReached), []);
    assert_eq!(pool.handle(now, open(2)), [boot(2)]);
}

#[test]
fn sessions_are_served_first_come_first() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(pool.handle(now, open(3)), []);
    assert_eq!(pool.handle(now, Event::VmReady(VmId(1))), [assign(1, 1)]);
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
    assert_eq!(pool.handle(now, close(2)), [assign(3, 1)]);
}

#[test]
fn a_session_that_lost_its_vm_unused_waits_in_its_old_place() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    pool.handle(now, Event::VmReady(VmId(1)));
    assert_eq!(
        pool.handle(now, Event::VmExited(VmId(1), failed("killed"))),
        [boot(2)]
    );
    let returned = Event::SessionReturned(SessionId(1), claim("anna", 1, Purpose::Build));
    assert_eq!(pool.handle(now, returned), []);
    assert_eq!(pool.handle(now, Event::VmReady(VmId(2))), [assign(1, 2)]);
}

#[test]
fn a_session_that_goes_while_it_waits_is_forgotten() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    pool.handle(now, close(1));
    assert_eq!(pool.handle(now, Event::VmReady(VmId(1))), [assign(2, 1)]);
}

#[test]
fn an_idle_vm_goes_after_the_idle_timeout() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, close(1));
    let at = now + Policy::default().idle_timeout;
    assert_eq!(pool.deadline(), Some(at));
    let early = now + Policy::default().idle_timeout.saturating_sub(SECOND);
    assert_eq!(pool.handle(early, Event::DeadlineReached), []);
    assert_eq!(
        pool.handle(at, Event::DeadlineReached),
        [Action::PowerDown(VmId(1))]
    );
    assert_eq!(pool.deadline(), None);
}

#[test]
fn what_up_asked_for_stays_until_down() {
    let (mut pool, now) = pool(4);
    let boots = [boot(1), boot(2)];
    assert_eq!(pool.handle(now, Event::Up(2)), boots);
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, Event::VmReady(VmId(2)));
    assert_eq!(pool.deadline(), None);
    let downs = [Action::PowerDown(VmId(1)), Action::PowerDown(VmId(2))];
    let mut got = pool.handle(now, Event::Down(Down::Drain));
    got.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(got, downs);
}

#[test]
fn a_vm_that_ended_is_replaced_where_up_asked_for_it() {
    let (mut pool, now) = pool(4);
    pool.handle(now, Event::Up(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    assert_eq!(
        pool.handle(now, Event::VmExited(VmId(1), failed("killed"))),
        []
    );
    let at = now + Policy::default().retry_first;
    assert_eq!(pool.deadline(), Some(at));
    assert_eq!(pool.handle(at, Event::DeadlineReached), [boot(2)]);
}

#[test]
fn a_vm_that_dies_at_work_is_replaced_at_once() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    pool.handle(now, Event::VmReady(VmId(1)));
    let died = Event::VmExited(VmId(1), failed("QEMU was killed"));
    assert_eq!(pool.handle(now, died), [boot(2)]);
}

#[test]
fn a_stopping_vm_still_counts_against_the_maximum() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, close(1));
    let later = now + Policy::default().idle_timeout;
    assert_eq!(
        pool.handle(later, Event::DeadlineReached),
        [Action::PowerDown(VmId(1))]
    );
    assert_eq!(pool.handle(later, open(2)), []);
    let gone = Event::VmExited(VmId(1), Exit::Stopped);
    assert_eq!(pool.handle(later, gone), [boot(2)]);
}

#[test]
fn down_lets_sessions_end_and_rejects_those_who_wait() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, open(2));
    assert_eq!(pool.handle(now, Event::Down(Down::Drain)), [rejected(2)]);
    assert_eq!(pool.handle(now, close(1)), [Action::PowerDown(VmId(1))]);
    assert!(!pool.is_down());
    pool.handle(now, Event::VmExited(VmId(1), Exit::Stopped));
    assert!(pool.is_down());
}

#[test]
fn down_now_kills_what_runs_and_what_was_draining() {
    let (mut pool, now) = pool(2);
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    pool.handle(now, Event::VmReady(VmId(1)));
    assert_eq!(
        pool.handle(now, Event::Down(Down::Drain)),
        [Action::Kill(VmId(2)), rejected(2)]
    );
    let kills = [Action::Kill(VmId(1)), Action::Kill(VmId(2))];
    assert_eq!(pool.handle(now, Event::Down(Down::Now)), kills);
}

#[test]
fn a_pool_that_is_down_takes_nobody_until_it_is_up_again() {
    let (mut pool, now) = pool(1);
    pool.handle(now, Event::Down(Down::Drain));
    assert_eq!(pool.handle(now, open(1)), [rejected(1)]);
    assert_eq!(pool.handle(now, Event::Up(1)), [boot(1)]);
    assert_eq!(pool.handle(now, open(2)), []);
}

#[test]
fn a_full_queue_rejects() {
    let (mut pool, now) = pool(1);
    pool.policy.max_queued = 2;
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    let reason = Rejection::QueueFull { waiting: 2 };
    assert_eq!(
        pool.handle(now, open(3)),
        [Action::Reject {
            session: SessionId(3),
            reason
        }]
    );
}
