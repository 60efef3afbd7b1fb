# The riscv64 guest. To cross-compile it, set `nixpkgs.buildPlatform` beside this.
{ lib, ... }:
{
  imports = [ ./guest.nix ];

  nixpkgs.hostPlatform = "riscv64-linux";

  # As Linux itself configures it for riscv, which nixpkgs begins with, the kernel checks what it does at each lock and page. That
  # would be emulated, too. No cache has this kernel in either case.
  boot.kernelPatches = [
    {
      name = "no-self-checks";
      patch = null;
      structuredExtraConfig =
        lib.genAttrs
          [
            "DEBUG_ATOMIC_SLEEP"
            "DEBUG_MUTEXES"
            "DEBUG_PAGEALLOC"
            "DEBUG_PLIST"
            "DEBUG_RT_MUTEXES"
            "DEBUG_RWSEMS"
            "DEBUG_SG"
            "DEBUG_SPINLOCK"
            "DEBUG_TIMEKEEPING"
            "DEBUG_VM"
            "RCU_EQS_DEBUG"
          ]
          (
            # Not every kernel has them all.
            _: lib.mkForce (lib.kernel.option lib.kernel.no)
          );
    }
  ];
}
