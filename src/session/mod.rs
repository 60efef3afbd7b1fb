//! One Nix session: handshake answered at once, parked at its first operation, then joined to a guest.
