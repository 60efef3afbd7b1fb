//! Sessions that are none.

use super::*;

proptest! {
    #[test]
    fn garbage_never_panics(parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..50)), 0..10)) {
        let mut observer = Observer::new(V);
        for (from_client, bytes) in parts {
            if from_client { observer.from_client(&bytes) } else { observer.from_server(&bytes) };
        }
    }

    #[test]
    fn a_damaged_session_never_panics(
        part in 0..6_usize,
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut parts = [
            (true, build()),
            (false, [frames().concat(), result(V, 0)].concat()),
            (true, ask(26, OUTPUTS[0])),
            (false, path_info()),
            (true, ask(38, OUTPUTS[0])),
            (false, nar()),
        ];
        let damaged = &mut parts[part].1;
        let at = at.index(damaged.len());
        damaged[at] = byte;
        let mut observer = Observer::new(V);
        for (from_client, bytes) in parts {
            if from_client { observer.from_client(&bytes) } else { observer.from_server(&bytes) };
        }
    }
}
