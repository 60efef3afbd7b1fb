# Packages that are only names, and what makes packages, which keeps what it was given: `buildCommand` for scripts, `value` for
# generated files.
lib: system:
let
  package =
    name: rest:
    {
      type = "derivation";
      inherit name;
      pname = name;
      version = "1.0";
      outPath = "/nix/store/00000000000000000000000000000000-${name}";
      drvPath = "/nix/store/00000000000000000000000000000000-${name}.drv";
      meta.mainProgram = name;
      nativeBuildInputs = [ ];
      overrideAttrs = change: package name (rest // change (package name rest));
    }
    // rest;
  toml =
    let
      inherit (lib.types)
        attrsOf
        bool
        float
        int
        listOf
        oneOf
        path
        str
        ;
      value =
        oneOf [
          bool
          int
          float
          str
          path
          (attrsOf value)
          (listOf value)
        ]
        // {
          name = "TOML value";
        };
    in
    value;
  pkgs =
    lib.genAttrs [
      "apt"
      "bash"
      "cargo-deny"
      "clippy"
      "coreutils"
      "cpio"
      "dash"
      "deadnix"
      "dpkg"
      "e2fsprogs"
      "fakeroot"
      "findutils"
      "gawk"
      "gnugrep"
      "gnupg"
      "gnused"
      "gnutar"
      "gzip"
      "installShellFiles"
      "kmod"
      "nix"
      "nixfmt-tree"
      "openssh"
      "perl"
      "rustfmt"
      "shellcheck"
      "socat"
      "sqlite"
      "statix"
      "util-linux"
      "xz"
    ] (name: package name { })
    // {
      inherit lib;
      buildPackages = pkgs;
      extend =
        overlay:
        let
          final = pkgs // overlay final pkgs;
        in
        final;
      stdenv.hostPlatform = {
        inherit system;
        isRiscV64 = system == "riscv64-linux";
      };
      stdenv.buildPlatform = {
        # What the tests build guests on.
        system = "x86_64-linux";
        canExecute = platform: platform.system == system;
      };

      qemu_kvm.ga = package "qemu-ga" { };
      # The agent is an output only where it is asked for.
      qemu = package "qemu" {
        override = args: package "qemu" (args // { ga = package "qemu-ga-alone" { }; });
      };
      qemu-utils = package "qemu-utils" { };
      closureInfo = package "closure-info";
      fetchurl = args: package args.name args;
      mkShell = package "shell";
      rustPlatform.buildRustPackage = args: package args.pname args;
      runCommand =
        name: env: buildCommand:
        package name (env // { inherit buildCommand; });
      testers.runNixOSTest = args: package args.name args;
      writeScriptBin = name: value: package name { inherit value; };
      writeShellScriptBin = name: value: package name { inherit value; };
      writeText = name: value: package name { inherit value; };
      # pkgs/pkgs-lib/formats.nix
      formats.toml =
        { }:
        {
          type = toml;
          generate = name: value: package name { inherit value; };
        };
    };
in
pkgs
