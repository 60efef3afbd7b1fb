//! The sessions that wait, in the order in which they are served: by priority, between clients in turn, and first come first
//! served within a client.
//!
//! Each client has a line of its own (one for each kind of VM, but the sessions of a key are of one kind). A line's first
//! session has the number of a turn, the next one the following turn, and so on; the lowest turn is served first, of equal
//! ones who came first. A line that begins joins the turn that is being served, so nobody gains by having waited for nothing,
//! and nobody is passed over by who has sent more. What a session waits for that wants one certain VM is not a turn.

use std::cmp::Reverse;
use std::collections::btree_set;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::iter::Peekable;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Instant;

use super::claim::{Claim, Seat};
use super::policy::Share;
use super::{SessionId, VmId};

/// A session that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// What it wants, in the seat that has built what it comes to fetch.
    pub(super) claim: Claim,
    /// The seat that it came by.
    pub(super) own_seat: Seat,
    /// The VM that it waits for, where it would go to no other.
    pub(super) home: Option<VmId>,
    /// Since when it waits.
    pub(super) since: Instant,
    line: LineId,
}

/// Everybody who waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<SessionId, Waiting>,
    lines: BTreeMap<LineId, Line>,
    names: BTreeMap<Name, LineId>,
    heads: BTreeSet<Place>,
    /// Those who wait for one certain VM. They stand in no line.
    bound: BTreeSet<SessionId>,
    /// Those who fetch: what they wait for may change with every event.
    fetching: BTreeSet<SessionId>,
    seats: BTreeMap<Seat, BTreeSet<SessionId>>,
    /// By how long they have waited.
    ages: BTreeSet<(Instant, SessionId)>,
    /// The turn that is being served, by priority.
    turns: BTreeMap<i32, u64>,
    /// Lines of clients that wait for nothing and have had their turn of this round.
    resting: BTreeSet<LineId>,
    last_line: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LineId(u64);

type Name = (String, Share);

/// The sessions of a client that wait for any VM of their kind.
#[derive(Clone, Debug)]
struct Line {
    name: Name,
    priority: i32,
    /// Its first session's; of an empty line the one that the next session would have.
    turn: u64,
    sessions: BTreeSet<SessionId>,
    /// How many of its client's sessions wait for one certain VM.
    bound: usize,
}

/// A session's place: the least one is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: Reverse<i32>,
    turn: u64,
    session: SessionId,
    line: LineId,
}

impl Line {
    fn head(&self, line: LineId) -> Option<Place> {
        Some(Place {
            priority: Reverse(self.priority),
            turn: self.turn,
            session: *self.sessions.first()?,
            line,
        })
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits for any VM of a kind.
    pub(super) fn has_no_lines(&self) -> bool {
        self.heads.is_empty()
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Waiting> {
        self.waiting.get(&session)
    }

    /// A session begins to wait.
    pub(super) fn push(&mut self, now: Instant, session: SessionId, claim: Claim, priority: i32) {
        let line = self.line(&claim, priority);
        if claim.purpose.fetches() {
            self.fetching.insert(session);
        }
        let own_seat = claim.seat.clone();
        let seated = self.seats.entry(own_seat.clone()).or_default();
        seated.insert(session);
        let waiting = Waiting {
            claim,
            own_seat,
            home: None,
            since: now,
            line,
        };
        self.ages.insert((now, session));
        self.waiting.insert(session, waiting);
        self.change(line, |line| {
            line.sessions.insert(session);
        });
    }

    /// A session that had its turn for nothing waits again: its client has the turn back.
    pub(super) fn put_back(
        &mut self,
        now: Instant,
        session: SessionId,
        claim: Claim,
        priority: i32,
    ) {
        let line = self.line(&claim, priority);
        self.change(line, |line| line.turn = line.turn.saturating_sub(1));
        self.push(now, session, claim, priority);
    }

    /// A session waits no longer, and had nothing.
    pub(super) fn remove(&mut self, session: SessionId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&session)?;
        self.ages.remove(&(waiting.since, session));
        let was_bound = self.bound.remove(&session);
        self.fetching.remove(&session);
        self.forget_seat(&waiting.claim.seat, session);
        self.change(waiting.line, |line| {
            line.sessions.remove(&session);
            line.bound -= usize::from(was_bound);
        });
        self.forget_line(waiting.line);
        Some(waiting)
    }

    /// A session has what it waited for. In a line that was its client's turn.
    pub(super) fn serve(&mut self, session: SessionId) -> Option<Waiting> {
        let line = self.waiting.get(&session)?.line;
        if !self.bound.contains(&session) {
            self.take_turn(line);
        }
        self.remove(session)
    }

    /// Notes the VM that a session waits for and no other, if there is one.
    pub(super) fn bind(&mut self, session: SessionId, home: Option<VmId>) {
        let Some(waiting) = self.waiting.get_mut(&session) else {
            return;
        };
        waiting.home = home;
        let line = waiting.line;
        let is_bound = home.is_some();
        let has_changed = if is_bound {
            self.bound.insert(session)
        } else {
            self.bound.remove(&session)
        };
        if has_changed {
            self.change(line, |line| {
                if is_bound {
                    line.sessions.remove(&session);
                    line.bound += 1;
                } else {
                    line.sessions.insert(session);
                    line.bound -= 1;
                }
            });
        }
    }

    /// Puts a session into another seat of its client.
    pub(super) fn reseat(&mut self, session: SessionId, seat: &Seat) {
        let Some(waiting) = self.waiting.get_mut(&session) else {
            return;
        };
        if waiting.claim.seat != *seat {
            let before = std::mem::replace(&mut waiting.claim.seat, seat.clone());
            self.forget_seat(&before, session);
            self.seats.entry(seat.clone()).or_default().insert(session);
        }
    }

    /// Who has waited longest, and since when.
    pub(super) fn oldest(&self) -> Option<(Instant, SessionId)> {
        self.ages.first().copied()
    }

    /// Those who wait for one certain VM, first come first.
    pub(super) fn bound(&self) -> impl Iterator<Item = (SessionId, &Waiting)> {
        self.bound.iter().map(|id| (*id, &self.waiting[id]))
    }

    /// Those who fetch.
    pub(super) fn fetching(&self) -> impl Iterator<Item = (SessionId, &Waiting)> {
        self.fetching.iter().map(|id| (*id, &self.waiting[id]))
    }

    /// The latest session of a seat that waits.
    pub(super) fn latest_of(&self, seat: &Seat) -> Option<(SessionId, &Waiting)> {
        let latest = *self.seats.get(seat)?.last()?;
        Some((latest, &self.waiting[&latest]))
    }

    /// Those who wait for any VM of their kind, in the order in which they are served. As lazy as can be: the first few of
    /// ten thousand cost little.
    pub(super) fn in_order(&self) -> InOrder<'_> {
        InOrder {
            queue: self,
            heads: self.heads.iter().peekable(),
            further: BinaryHeap::new(),
            last: None,
        }
    }

    /// The line of a claim, which joins the turn that is being served if it was empty.
    fn line(&mut self, claim: &Claim, priority: i32) -> LineId {
        let name = (claim.seat.client.clone(), claim.share);
        let turn = self.turns.get(&priority).copied().unwrap_or_default();
        if let Some(id) = self.names.get(&name) {
            let id = *id;
            self.resting.remove(&id);
            self.change(id, |line| {
                if line.sessions.is_empty() {
                    line.turn = line.turn.max(turn);
                }
            });
            return id;
        }
        self.last_line += 1;
        let id = LineId(self.last_line);
        self.names.insert(name.clone(), id);
        let sessions = BTreeSet::new();
        let line = Line {
            name,
            priority,
            turn,
            sessions,
            bound: 0,
        };
        self.lines.insert(id, line);
        id
    }

    fn change(&mut self, id: LineId, how: impl FnOnce(&mut Line)) {
        change(&mut self.lines, &mut self.heads, id, how);
    }

    fn forget_seat(&mut self, seat: &Seat, session: SessionId) {
        if let Some(sessions) = self.seats.get_mut(seat) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.seats.remove(seat);
            }
        }
    }

    /// A line's first session is served.
    fn take_turn(&mut self, id: LineId) {
        let (turns, mut has_advanced) = (&mut self.turns, false);
        change(&mut self.lines, &mut self.heads, id, |line| {
            let turn = turns.entry(line.priority).or_default();
            has_advanced = line.turn > *turn;
            *turn = line.turn.max(*turn);
            // Who was passed over, because no VM of its kind was there, does not have all those turns at once.
            line.turn = (line.turn + 1).max(*turn);
        });
        if has_advanced {
            for id in std::mem::take(&mut self.resting) {
                self.forget_line(id);
            }
        }
    }

    /// Forgets an empty line, unless its client has had its turn of this round: then it is known until the next one.
    fn forget_line(&mut self, id: LineId) {
        let Some(line) = self.lines.get(&id) else {
            return;
        };
        if !line.sessions.is_empty() || line.bound > 0 {
            return;
        }
        let turn = self.turns.get(&line.priority).copied();
        if line.turn > turn.unwrap_or_default() {
            self.resting.insert(id);
        } else {
            self.names.remove(&line.name);
            self.lines.remove(&id);
        }
    }
}

/// Changes a line and keeps its head among the others.
fn change(
    lines: &mut BTreeMap<LineId, Line>,
    heads: &mut BTreeSet<Place>,
    id: LineId,
    how: impl FnOnce(&mut Line),
) {
    let Some(line) = lines.get_mut(&id) else {
        return;
    };
    let before = line.head(id);
    how(line);
    let after = line.head(id);
    if before != after {
        before.map(|head| heads.remove(&head));
        heads.extend(after);
    }
}

/// Sessions in the order in which they are served.
pub(super) struct InOrder<'a> {
    queue: &'a Queue,
    heads: Peekable<btree_set::Iter<'a, Place>>,
    /// The next ones of the lines whose heads have come.
    further: BinaryHeap<Reverse<Place>>,
    last: Option<Place>,
}

impl<'a> Iterator for InOrder<'a> {
    type Item = (SessionId, &'a Waiting);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(last) = self.last.take() {
            let line = &self.queue.lines[&last.line];
            let mut after = line.sessions.range((Excluded(last.session), Unbounded));
            // As it will be when the last one is served.
            let served = self.queue.turns.get(&last.priority.0).copied();
            let turn = (last.turn + 1).max(served.unwrap_or_default());
            let next = after.next().map(|session| Place {
                session: *session,
                turn,
                ..last
            });
            self.further.extend(next.map(Reverse));
        }
        let head = self.heads.peek().copied();
        let further = self.further.peek().map(|Reverse(place)| place);
        let place = match (head, further) {
            (Some(head), Some(further)) if further < head => self.further.pop()?.0,
            (None, _) => self.further.pop()?.0,
            (Some(_), _) => *self.heads.next()?,
        };
        self.last = Some(place);
        Some((place.session, &self.queue.waiting[&place.session]))
    }
}

impl InOrder<'_> {
    /// Leaves out whoever stands behind the last one in its line.
    pub(super) fn leave_line(&mut self) {
        self.last = None;
    }
}
