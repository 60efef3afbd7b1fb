//! NARs: the end is found in the same place however the bytes are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xpool::nix::nar_walk::NarWalk;

fuzz_target!(|data: &[u8]| {
    let whole = walked(data, usize::MAX);
    assert_eq!(walked(data, 1), whole);
    assert_eq!(walked(data, 7), whole);
});

/// Where it ends, if it does; `None` if these bytes are no NAR.
fn walked(data: &[u8], size: usize) -> Option<Option<usize>> {
    let mut walk = NarWalk::new();
    let mut n_walked = 0;
    for part in data.chunks(size) {
        let mut unread = part;
        let ended = walk.advance(&mut unread).ok()?;
        n_walked += part.len() - unread.len();
        if ended {
            return Some(Some(n_walked));
        }
    }
    Some(None)
}
