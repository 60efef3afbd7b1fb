//! The SSH front end: a russh server on loopback that Nix connects to.
