//! The codec against what real Nix clients and daemons have said to each other. Nothing here is made by xpool's own encoder.

#[path = "../../captures/capture.rs"]
mod capture;
mod watching;

use capture::{Capture, Side, greet_client, greet_server};
use xpool::nix::wire::Version;

/// The recorded versions of Nix, and what each speaks with who speaks 1.37.
pub(crate) const RECORDED: [(&str, Version); 3] = [
    ("2.8.0", Version::new(1, 34)),
    ("2.26.3", Version::new(1, 37)),
    ("2.34.8", Version::new(1, 37)),
];

/// Parts of a handshake that may be a part of: all of it, or it and what comes first after it.
const BEGINNING: usize = 120;

/// `bytes` whole, byte by byte, and cut in two wherever the handshake may be.
fn splits(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut all = vec![vec![bytes], bytes.chunks(1).collect()];
    for cut in 1..bytes.len().min(BEGINNING) {
        let (a, b) = bytes.split_at(cut);
        all.push(vec![a, b]);
    }
    all
}

#[test]
fn each_recorded_client_is_understood_however_its_bytes_are_split() {
    for (nix, version) in RECORDED {
        for capture in Capture::all(nix) {
            let said = capture.said(Side::Client);
            let whole = greet_client(&[&said]).unwrap();
            assert_eq!(whole.0, version, "{nix} {}", capture.name);
            for parts in splits(&said) {
                assert_eq!(greet_client(&parts).as_ref(), Ok(&whole), "{nix}");
            }
        }
    }
}

#[test]
fn each_recorded_daemon_is_understood_however_its_bytes_are_split() {
    for (nix, version) in RECORDED {
        for capture in Capture::all(nix) {
            let said = capture.said(Side::Server);
            let whole = greet_server(version, &[&said]).unwrap();
            let (spoken, name, _) = &whole;
            assert_eq!((*spoken, name.as_deref()), (version, Some(nix)));
            for parts in splits(&said) {
                assert_eq!(greet_server(version, &parts).as_ref(), Ok(&whole), "{nix}");
            }
        }
    }
}

#[test]
fn a_session_without_an_operation_is_a_handshake_and_no_more() {
    for (nix, _) in RECORDED {
        let captures = Capture::all(nix);
        let info = captures.iter().find(|capture| capture.name == "info.1");
        let (_, chunks) = info.unwrap().after_handshake();
        assert!(chunks.is_empty(), "{nix}: {chunks:?}");
    }
}
