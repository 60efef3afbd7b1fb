//! Messages of every shape, split anywhere.

use proptest::prelude::*;

use super::*;
use crate::nix::wire::{put_number, put_string, put_strings};

const SHAPE: &[Item] = &[
    Item::Number,
    Item::Wanted,
    Item::List(&[Item::String, Item::List(&[Item::Number])]),
    Item::Frames,
    Item::List(&[Item::Field]),
    Item::List(&[Item::WantedField]),
    Item::Optional(&[Item::WantedNumber]),
    Item::WantedOptional,
    Item::List(&[Item::Wanted]),
];

fn message(wanted: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, u64::MAX);
    put_string(&mut out, wanted);
    put_number(&mut out, 2);
    for _ in 0..2 {
        put_string(&mut out, b"in a list");
        put_number(&mut out, 1);
        put_number(&mut out, 7);
    }
    for frame in frames.iter().filter(|frame| !frame.is_empty()) {
        put_number(&mut out, frame.len() as u64);
        out.extend(frame);
    }
    put_number(&mut out, 0);
    put_number(&mut out, 2);
    put_number(&mut out, 0);
    put_number(&mut out, 5);
    put_number(&mut out, 1);
    put_string(&mut out, b"text");
    put_number(&mut out, 2);
    put_number(&mut out, 0);
    put_number(&mut out, 5);
    put_number(&mut out, 1);
    put_string(&mut out, b"a field");
    put_number(&mut out, 1);
    put_number(&mut out, 11);
    put_number(&mut out, 0);
    put_strings(&mut out, &["", "last"]);
    out
}

#[test]
fn what_is_not_a_length_ends_the_walk() {
    let mut bytes: &[u8] = &u64::MAX.to_le_bytes();
    assert_eq!(
        Walk::new(&[Item::String]).advance(&mut bytes),
        Err(Unexpected)
    );
    for item in [
        &[Item::Field],
        &[Item::Optional(&[])],
        &[Item::WantedOptional],
    ] {
        let mut two: &[u8] = &2_u64.to_le_bytes();
        assert_eq!(Walk::new(item).advance(&mut two), Err(Unexpected));
    }
}

#[test]
fn of_a_wanted_string_only_a_prefix_is_kept() {
    let mut out = Vec::new();
    put_string(&mut out, &[b'x'; 10_000]);
    let mut walk = Walk::new(&[Item::Wanted]);
    assert_eq!(walk.advance(&mut &out[..]), Ok(true));
    assert_eq!(walk.wanted(), [[b'x'; MAX_WANTED]]);
}

#[test]
fn of_wanted_strings_only_so_many_are_kept() {
    let message = |n| {
        let mut out = Vec::new();
        put_strings(&mut out, &vec!["x"; n]);
        out
    };
    let walk = |n| Walk::new(&[Item::List(&[Item::Wanted])]).advance(&mut &message(n)[..]);
    assert_eq!(walk(MAX_WANTED_STRINGS), Ok(true));
    assert_eq!(walk(MAX_WANTED_STRINGS + 1), Err(Unexpected));
}

proptest! {
    #[test]
    fn a_message_ends_where_it_ends_however_it_is_split(
        wanted in prop::collection::vec(any::<u8>(), 0..20),
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..4),
        sizes in prop::collection::vec(1..40_usize, 1..30),
    ) {
        let message = message(&wanted, &frames);
        let followed = [&message[..], b"more"].concat();
        // What an earlier walk kept is not seen in a later one.
        let mut walk = Walk::new(&[Item::WantedNumber, Item::List(&[Item::Wanted])]);
        let earlier = [1_u64, 1, 8, 8].map(u64::to_le_bytes).concat();
        walk.advance(&mut &earlier[..]).unwrap();
        walk.restart(SHAPE);
        let mut sizes = sizes.into_iter().cycle();
        let mut rest = &followed[..];
        let mut n_walked = 0;
        loop {
            let (part, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            let mut unread = part;
            let done = walk.advance(&mut unread).unwrap();
            n_walked += part.len() - unread.len();
            prop_assert_eq!(done, n_walked == message.len());
            if done {
                break;
            }
            prop_assert!(unread.is_empty());
            rest = later;
        }
        prop_assert_eq!(walk.wanted(), &[wanted, b"a field".to_vec(), Vec::new(), b"last".to_vec()]);
        prop_assert_eq!(walk.wanted_numbers(), &[Some(11), None]);
    }
}
