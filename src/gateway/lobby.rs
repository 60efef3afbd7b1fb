//! How many connections there are, and who of those that have not logged in makes room for a newcomer.
//!
//! A login that is refused fails a build, and a connection that says nothing costs its peer nothing. So nobody is turned
//! away: where there is no room, a newcomer takes the place of the connection that has got no further for the longest time.
//! Which one that is does not depend on how much it sends, only on how far its login is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Limits;

/// The places of all connections. Clones are the same places.
#[derive(Clone, Debug)]
pub(super) struct Lobby {
    // A lock rather than messages: a place is given up by being dropped, which cannot wait.
    places: Arc<Mutex<Places>>,
    /// Told when a place is free, or one that could be taken.
    changed: Arc<Notify>,
}

/// A connection's place. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    lobby: Lobby,
}

impl Lobby {
    pub(super) fn new(limits: &Limits) -> Self {
        let places = Places {
            max_logins: limits.max_logins,
            max_connections: limits.max_connections,
            patience: limits.login_patience,
            last: 0,
            all: BTreeMap::new(),
        };
        Self {
            places: Arc::new(Mutex::new(places)),
            changed: Arc::default(),
        }
    }

    /// Waits until there is room for one more connection, and makes it where it can be made. Cancelling `cut` ends the
    /// connection. One caller at a time.
    pub(super) async fn enter(&self, cut: &CancellationToken) -> Place {
        loop {
            let entered = self.lock().enter(Instant::now(), cut);
            match entered {
                Ok(id) => {
                    let lobby = self.clone();
                    return Place { id, lobby };
                }
                Err(Some(at)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(at) => {}
                },
                Err(None) => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The client has come to the next step of its login.
    pub(super) fn got_further(&self) {
        self.lobby.lock().got_further(Instant::now(), self.id);
    }

    /// The client has logged in: nobody takes its place any more.
    pub(super) fn logged_in(&self) {
        self.lobby.lock().logged_in(self.id);
        self.lobby.changed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.lock().all.remove(&self.id);
        self.lobby.changed.notify_one();
    }
}

#[derive(Debug)]
struct Places {
    max_logins: usize,
    max_connections: usize,
    patience: Duration,
    last: u64,
    /// Every connection; for one that has not logged in, what that takes.
    all: BTreeMap<u64, Option<Login>>,
}

/// A login that goes on.
#[derive(Debug)]
struct Login {
    /// When it got as far as it is.
    since: Instant,
    /// Ends the connection.
    cut: CancellationToken,
}

impl Places {
    /// A place for a newcomer; when to try again where there is none, unless something changes before.
    fn enter(&mut self, now: Instant, cut: &CancellationToken) -> Result<u64, Option<Instant>> {
        if self.all.len() >= self.max_connections || self.logins().count() >= self.max_logins {
            self.make_room(now)?;
        }
        self.last += 1;
        let cut = cut.clone();
        self.all.insert(self.last, Some(Login { since: now, cut }));
        Ok(self.last)
    }

    /// Cuts who has got no further for the longest time, if that was long.
    fn make_room(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let (id, login) = self
            .logins()
            .min_by_key(|(_, login)| login.since)
            .ok_or(None)?;
        let at = login.since + self.patience;
        if now < at {
            return Err(Some(at));
        }
        login.cut.cancel();
        self.all.remove(&id);
        Ok(())
    }

    fn logins(&self) -> impl Iterator<Item = (u64, &Login)> {
        let all = self.all.iter();
        all.filter_map(|(id, login)| Some((*id, login.as_ref()?)))
    }

    fn got_further(&mut self, now: Instant, id: u64) {
        if let Some(Some(login)) = self.all.get_mut(&id) {
            login.since = now;
        }
    }

    fn logged_in(&mut self, id: u64) {
        if let Some(login) = self.all.get_mut(&id) {
            *login = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn places(max_logins: usize, max_connections: usize) -> Places {
        Places {
            max_logins,
            max_connections,
            patience: PATIENCE,
            last: 0,
            all: BTreeMap::new(),
        }
    }

    /// Lets connections in; how each can be cut.
    fn enter<const N: usize>(places: &mut Places, at: Instant) -> [CancellationToken; N] {
        [(); N].map(|()| {
            let cut = CancellationToken::new();
            places.enter(at, &cut).unwrap();
            cut
        })
    }

    #[test]
    fn a_newcomer_takes_the_place_of_who_has_got_no_further_for_longest() {
        let start = Instant::now();
        let mut places = places(2, 9);
        let [first, second] = enter(&mut places, start);
        places.got_further(start + Duration::from_secs(1), 1);
        let [third] = enter(&mut places, start + PATIENCE);
        assert!(second.is_cancelled() && !first.is_cancelled() && !third.is_cancelled());
        assert_eq!(places.all.len(), 2);
    }

    #[test]
    fn nobody_is_cut_for_a_newcomer_before_its_time() {
        let start = Instant::now();
        let mut places = places(2, 9);
        let [first, _] = enter(&mut places, start);
        let newcomer = CancellationToken::new();
        let soon = start + Duration::from_secs(1);
        assert_eq!(places.enter(soon, &newcomer), Err(Some(start + PATIENCE)));
        assert!(!first.is_cancelled());
        places.logged_in(1);
        assert_eq!(places.enter(soon, &newcomer), Ok(3));
    }

    #[test]
    fn who_has_logged_in_is_never_cut() {
        let start = Instant::now();
        let mut places = places(9, 2);
        let [first, second] = enter(&mut places, start);
        places.logged_in(1);
        let later = start + 2 * PATIENCE;
        enter::<1>(&mut places, later);
        assert!(second.is_cancelled());
        places.logged_in(3);
        let newcomer = CancellationToken::new();
        assert_eq!(places.enter(later + 2 * PATIENCE, &newcomer), Err(None));
        assert!(!first.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_for_a_place_that_is_given_up() {
        let limits = Limits {
            max_connections: 1,
            ..Limits::default()
        };
        let lobby = Lobby::new(&limits);
        let place = lobby.enter(&CancellationToken::new()).await;
        place.logged_in();
        let newcomer = CancellationToken::new();
        let entering = lobby.enter(&newcomer);
        tokio::pin!(entering);
        assert!(tokio::time::timeout(PATIENCE, &mut entering).await.is_err());
        drop(place);
        entering.await;
    }
}
