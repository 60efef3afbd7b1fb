# A compiler and what goes with it, made from a distribution's packages, as nixpkgs has it: programs whose interpreter and
# libraries are in the store, and a wrapper that tells the compiler where its libc is. It runs in a sandbox without any
# folder of the distribution. Built on this machine, whatever system it is for: nothing in it is run.
{ system, debs }:

let
  triple = "${builtins.head (builtins.split "-" system)}-linux-gnu";
in
derivation {
  name = "toolchain-${system}";
  system = builtins.currentSystem;
  builder = "/bin/bash";
  args = [ ./toolchain.sh ];
  PATH = "/usr/bin:/bin";
  outputs = [
    "cc"
    "libc"
    "lib"
    "gcc"
    "binutils"
    "tools"
  ];
  inherit debs triple;
  wrapper = ./cc-wrapper.sh;
  interpreter =
    {
      riscv64-linux = "ld-linux-riscv64-lp64d.so.1";
      aarch64-linux = "ld-linux-aarch64.so.1";
      x86_64-linux = "ld-linux-x86-64.so.2";
    }
    .${system};
}
