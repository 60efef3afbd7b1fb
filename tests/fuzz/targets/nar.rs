//! NARs: the end is found in the same place however the bytes are split.
#![cfg_attr(fuzzing, no_main)]

use xpool::nix::nar_walk::NarWalk;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let whole = walked(data, usize::MAX);
    assert_eq!(walked(data, 1), whole);
    assert_eq!(walked(data, 7), whole);
}

#[derive(Debug, PartialEq, Eq)]
enum Walked {
    /// To the NAR's end, which is here.
    Ended(usize),
    /// There is more to come.
    Goes,
    /// These bytes are no NAR.
    Refused,
}

fn walked(data: &[u8], size: usize) -> Walked {
    let mut walk = NarWalk::new();
    let mut n_walked = 0;
    for part in data.chunks(size) {
        let mut unread = part;
        let Ok(ended) = walk.advance(&mut unread) else {
            return Walked::Refused;
        };
        n_walked += part.len() - unread.len();
        if ended {
            return Walked::Ended(n_walked);
        }
    }
    Walked::Goes
}
