//! How many helpers each user has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The helpers of all users, counted.
#[derive(Debug)]
pub(super) struct Users {
    most: usize,
    // A lock rather than messages: a place is given up by being dropped, which cannot wait.
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
}

/// A user's place. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct UserPlace {
    user: u32,
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
}

impl Users {
    /// So many for each user.
    pub(super) fn new(most: usize) -> Self {
        let taken = Arc::default();
        Self { most, taken }
    }

    /// One more of a user's; `None` if all are taken.
    pub(super) fn take(&self, user: u32) -> Option<UserPlace> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(user).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        let taken = Arc::clone(&self.taken);
        Some(UserPlace { user, taken })
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

fn lock(taken: &Mutex<BTreeMap<u32, usize>>) -> MutexGuard<'_, BTreeMap<u32, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_and_others_have_theirs() {
        let users = Users::new(2);
        let (one, _two) = (users.take(7).unwrap(), users.take(7).unwrap());
        assert!(users.take(7).is_none());
        assert!(users.take(8).is_some());
        drop(one);
        assert!(users.take(7).is_some());
        assert_eq!(lock(&users.taken).len(), 1);
    }
}
