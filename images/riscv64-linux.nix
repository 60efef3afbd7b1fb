# The riscv64 guest. To cross-compile it, set `nixpkgs.buildPlatform` beside this.
{
  imports = [ ./guest.nix ];

  nixpkgs.hostPlatform = "riscv64-linux";
}
