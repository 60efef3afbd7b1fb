//! What each user may have of the local transport, so that others always find room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::session::account::Account;

/// What the lines may hold that one user's helpers have begun, in bytes; each of them has a small share beside.
const MOST_HELD: usize = 64 << 20;

/// Those of the group, each by a number. Root and the owner have no limit of their own.
#[derive(Debug)]
pub(super) struct Users {
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
    pub(super) fn new(most: usize, most_of_all: usize) -> Self {
        Self {
            most,
            most_of_all,
            members: Arc::default(),
        }
    }

    /// One more of a member's; `None` if all are taken.
    pub(super) fn take(&self, user: u32) -> Option<Place> {
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
