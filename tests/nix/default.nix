# What tests/it/nix.rs asks for: the modules and the flake, evaluated with stubs in place of NixOS, and configurations that are to be
# refused.
let
  inputs = import ./inputs.nix;
  inherit (inputs) installed nixos;
  flake = (import ../../flake.nix).outputs {
    self = flake // {
      outPath = "/nix/store/22222222222222222222222222222222-source";
    };
    inherit (inputs) nixpkgs;
  };

  host =
    xpool:
    nixos "x86_64-linux" [
      ../../nixos-module.nix
      {
        services.xpool = {
          package = flake.packages.x86_64-linux.default;
        }
        // xpool;
      }
    ];
  enabled = rest: host ({ enable = true; } // rest);
  # What a host's configuration comes to.
  told = config: {
    toml = config.services.xpool.settings;
    check = config.environment.etc."xpool/xpool.toml".source.buildCommand;
    inherit (config.nix) distributedBuilds;
    inherit (config.nix.settings) builders;
    ssh = config.programs.ssh.extraConfig;
    inherit (config.users) groups users;
    inherit (config.systemd) services sockets;
  };

  guest =
    system: module:
    nixos system [
      module
      ../../images/format.nix
      installed
      { nixpkgs.buildPlatform = "x86_64-linux"; }
    ];
  image = config: {
    inherit (config.system.build.image)
      __structuredAttrs
      buildCommand
      manifestStart
      name
      unsafeDiscardReferences
      ;
    inherit (config.image) filePath;
  };
  generated = inputs.nixos-generators.nixosGenerate {
    system = "riscv64-linux";
    format = "xpool";
    customFormats.xpool = {
      imports = [ flake.nixosModules.image ];
      formatAttr = "image";
    };
    modules = [
      flake.nixosModules.guest
      { nixpkgs.buildPlatform = "x86_64-linux"; }
    ];
  };
in
{
  host = {
    disabled =
      let
        config = host { };
      in
      {
        inherit (config.nix) distributedBuilds;
        inherit (config.systemd) services sockets;
        inherit (config.users) users;
      };
    plain = told (enabled { });
    ssh = told (enabled {
      transport = "ssh";
      settings.gateway.listen = "[::]:4022";
    });
    full = told (enabled {
      group = "builders";
      users = [ "alice" ];
      images.riscv64-linux = flake.packages.x86_64-linux.image-riscv64-linux;
      images.aarch64-linux = null;
      policy = {
        max-vms = 4;
        reuse = "client";
        store.share = "none";
      };
      systems.riscv64-linux.vcpus = 1;
      limits.memory-mib = 8192;
      metrics.enable = true;
      settings.pool.max-vms = 6;
      settings.keys.alice.public-key = "ssh-ed25519 AAAA alice";
    });
    alone = told (enabled { builders = false; });
  };

  guest = {
    riscv64 = guest "riscv64-linux" ../../images/riscv64-linux.nix;
    aarch64 = guest "aarch64-linux" ../../images/aarch64-linux.nix;
  };
  image = {
    riscv64 = image (guest "riscv64-linux" ../../images/riscv64-linux.nix);
    aarch64 = image (guest "aarch64-linux" ../../images/aarch64-linux.nix);
  };

  # All of its outputs, with what their derivations come to.
  flake = {
    outputs = builtins.mapAttrs (_: builtins.attrNames) flake;
    inherit (flake)
      apps
      checks
      devShells
      formatter
      legacyPackages
      packages
      ;
    package =
      let
        inherit (flake.packages.x86_64-linux.default) passthru;
      in
      {
      inherit (flake.packages.x86_64-linux.default) env postInstall;
      headers = passthru.headers.buildCommand;
      mmdebstrap = passthru.mmdebstrapProgram.value;
    };
    generated = generated.name;
    # NixOS refuses a system that has no root file system.
    disks = builtins.mapAttrs (
      _: guest: guest.config.fileSystems."/".device
    ) flake.nixosConfigurations;
    images = builtins.mapAttrs (
      _: guest: guest.config.system.build.images.xpool.name
    ) flake.nixosConfigurations;
    # The machine of the VM test.
    tested = told (nixos "x86_64-linux" [ flake.checks.x86_64-linux.service.nodes.machine ]);
  };

  # Each is refused, with the words that tests/it/nix.rs has for it.
  bad = {
    unknown-option = (enabled { pakage = null; }).services.xpool;
    wrong-type = (enabled { users = "alice"; }).services.xpool.users;
    wrong-choice = (enabled { transport = "tcp"; }).services.xpool.transport;
    wrong-range = (enabled { limits.memory-pressure = 0; }).services.xpool.limits;
    wrong-policy = (enabled { policy.reuse = "sometimes"; }).services.xpool.policy;
    wrong-system = (enabled { systems.x86_64-linux.max-vms = 1; }).services.xpool.systems;
    wrong-listen = (enabled { settings.gateway.listen = "localhost"; }).services.xpool.settings;
    wrong-toml = (enabled { settings.pool.max-vms = null; }).services.xpool.settings;
    wrong-metrics = (enabled { metrics.listen = "31023"; }).services.xpool.metrics;
    wrong-image = (enabled { images.riscv64-linux = "nixos"; }).services.xpool.images;
    two-values =
      (nixos "riscv64-linux" [
        ../../images/riscv64-linux.nix
        { networking.hostName = "guest"; }
      ]).networking.hostName;
    gone-from-nixos = (nixos "riscv64-linux" [ { boot.readOnlyNixStore = false; } ]).boot;
  };
}
