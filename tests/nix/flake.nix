# Both inputs of the flake as one, for `nix flake show --override-input nixpkgs path:tests/nix`: tests/it/nix.rs.
{
  outputs =
    _:
    let
      inputs = import ./inputs.nix;
    in
    inputs.nixpkgs // inputs.nixos-generators;
}
