# The input of the flake, for `nix flake show --override-input nixpkgs path:tests/nix`: tests/it/flake.rs.
{
  outputs = _: (import ./inputs.nix).nixpkgs;
}
