# Stand-ins for nixpkgs, which is the flake's input, and for nixos-generators, which a user may have beside it: NixOS has the options of nixos.nix and nothing behind them.
let
  lib = import ./lib.nix // {
    # What only the flake uses.
    cleanSource = path: path;
    licenses = {
      mit = "MIT";
      asl20 = "Apache-2.0";
    };
    nixosSystem =
      { modules }:
      let
        all = modules ++ [ installed ];
        config = nixos config.nixpkgs.hostPlatform all;
        # image/images.nix: one more evaluation for each.
        variant = module: (nixos config.nixpkgs.hostPlatform (all ++ [ module ])).system.build.image;
        images = builtins.mapAttrs (_: variant) config.image.modules;
      in
      {
        config = config // {
          system = config.system // {
            build = config.system.build // { inherit images; };
          };
        };
      };
  };
  pkgsFor = import ./pkgs.nix lib;

  nixos =
    system: modules:
    (lib.evalModules {
      modules = [
        ./nixos.nix
        { nix.package = (pkgsFor system).nix; }
      ]
      ++ modules;
      specialArgs = {
        pkgs = pkgsFor system;
        modulesPath = toString ./stub-modules;
      };
    }).config;

  # What is there of a system when it is built.
  installed = {
    boot.kernelPackages.kernel.modDirVersion = "6.12.1";
    system.build.toplevel = {
      outPath = "/nix/store/11111111111111111111111111111111-nixos-system";
      drvPath = "/nix/store/11111111111111111111111111111111-nixos-system.drv";
    };
    system.build.kernel = "[KERNEL]";
    system.build.initialRamdisk = "[INITRD]";
    system.boot.loader.kernelFile = "Image";
    system.boot.loader.initrdFile = "initrd";
  };
in
{
  inherit installed nixos;

  nixpkgs = {
    inherit lib;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] pkgsFor;
  };

  # As flake.nix of nixos-generators has it.
  nixos-generators.nixosGenerate =
    {
      system,
      format,
      customFormats,
      modules,
    }:
    let
      # format-module.nix
      attribute.options.formatAttr = lib.mkOption { type = lib.types.str; };
      config = nixos system (
        [
          attribute
          customFormats.${format}
        ]
        ++ modules
        ++ [ installed ]
      );
    in
    config.system.build.${config.formatAttr};
}
