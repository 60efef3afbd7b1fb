//! Who may use the local transport, and what each user may have of it, so that others always find room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::server::Allowed;
use crate::session::account::Account;

/// What the lines may hold that one user's helpers have begun, in bytes; each of them has a small share beside.
const MOST_HELD: usize = 64 << 20;

/// Who may come. Root and the owner have no limit of their own.
#[derive(Debug)]
pub(super) struct Gate {
    allowed: Allowed,
    members: Users,
}

/// Why a helper is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "this manager is for its owner, root, and the group in section `[local]` of its xpool.toml"
    )]
    Stranger,
    #[error(
        "the members of the group in section `[local]` of xpool.toml have as many sessions as they may; try again when some have ended"
    )]
    NoPlace,
}

impl Gate {
    /// With so many helpers of all members together; half of them for one.
    pub(super) fn new(allowed: Allowed, most_of_members: usize) -> Self {
        let members = Users::new(most_of_members / 2, most_of_members);
        Self { allowed, members }
    }

    /// A member's place; none for root and the owner, who need none.
    pub(super) fn admit(
        &self,
        user: u32,
        group: u32,
        process: Option<i32>,
    ) -> Result<Option<Place>, Refused> {
        if !self.allowed.allows(user, group, process) {
            return Err(Refused::Stranger);
        }
        if [0, self.allowed.owner].contains(&user) {
            return Ok(None);
        }
        self.members.take(user).map(Some).ok_or(Refused::NoPlace)
    }
}

/// Members of the group, each by a number.
#[derive(Debug)]
struct Users {
    /// Helpers of one member.
    most: usize,
    /// Helpers of all members: one may be many users, in a namespace of its own.
    most_of_all: usize,
    // A lock rather than messages: a place is given up by being dropped, which cannot wait.
    members: Arc<Mutex<BTreeMap<u32, Member>>>,
}

#[derive(Debug)]
struct Member {
    helpers: usize,
    account: Arc<Account>,
}

/// A member's place. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    user: u32,
    pub(super) account: Arc<Account>,
    members: Arc<Mutex<BTreeMap<u32, Member>>>,
}

impl Users {
    /// So many helpers for each member, and for all together.
    fn new(most: usize, most_of_all: usize) -> Self {
        Self {
            most,
            most_of_all,
            members: Arc::default(),
        }
    }

    /// One more of a member's; `None` if all are taken.
    fn take(&self, user: u32) -> Option<Place> {
        let mut members = lock(&self.members);
        let all: usize = members.values().map(|member| member.helpers).sum();
        let helpers = members.get(&user).map_or(0, |member| member.helpers);
        if helpers >= self.most || all >= self.most_of_all {
            return None;
        }
        let member = members.entry(user).or_insert_with(|| Member {
            helpers: 0,
            account: Account::new(MOST_HELD),
        });
        member.helpers += 1;
        Some(Place {
            user,
            account: Arc::clone(&member.account),
            members: Arc::clone(&self.members),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = lock(&self.members);
        if let Some(member) = members.get_mut(&self.user) {
            member.helpers -= 1;
            if member.helpers == 0 {
                members.remove(&self.user);
            }
        }
    }
}

fn lock(members: &Mutex<BTreeMap<u32, Member>>) -> MutexGuard<'_, BTreeMap<u32, Member>> {
    members.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_owner_always_find_room() {
        let allowed = Allowed {
            owner: 1,
            group: Some(100),
        };
        let gate = Gate::new(allowed, 4);
        let come = |user, group| gate.admit(user, group, None);
        let _taken = [(); 2].map(|()| come(7, 100).unwrap().unwrap());
        assert_eq!(come(7, 100).unwrap_err(), Refused::NoPlace);
        let _others = [8, 9].map(|user| come(user, 100).unwrap().unwrap());
        assert_eq!(come(10, 100).unwrap_err(), Refused::NoPlace);
        assert_eq!(come(10, 101).unwrap_err(), Refused::Stranger);
        for user in [0, 1] {
            assert!(come(user, user).unwrap().is_none());
        }
    }

    #[test]
    fn a_member_has_so_many_and_others_have_theirs() {
        let users = Users::new(2, 3);
        let (one, _two) = (users.take(7).unwrap(), users.take(7).unwrap());
        assert!(users.take(7).is_none());
        let other = users.take(8).unwrap();
        assert!(users.take(9).is_none(), "all together have three");
        drop(other);
        assert!(users.take(9).is_some());
        drop(one);
        assert!(users.take(7).is_some());
        assert_eq!(lock(&users.members).len(), 1);
    }
}
