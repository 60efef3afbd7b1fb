# The options of NixOS that nixos-module.nix and images/*.nix set or read, with the types that NixOS gives them and nothing
# behind them. Before each: the file of nixpkgs, below nixos/modules unless it says otherwise, where the type was looked up.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  bool = mkOption { type = types.bool; };
  str = mkOption { type = types.str; };
  int = mkOption { type = types.int; };
  # Nothing where it is not set.
  limit = mkOption {
    type = types.nullOr types.int;
    default = null;
  };
  lines = mkOption {
    type = types.lines;
    default = "";
  };
  strings = mkOption {
    type = types.listOf types.str;
    default = [ ];
  };
  raw = mkOption { type = types.raw; };
  setOf =
    options:
    mkOption {
      type = types.attrsOf (types.submodule { inherit options; });
      default = { };
    };
  section = mkOption {
    type = types.attrsOf types.unitOption;
    default = { };
  };

  # config/nix.nix, semanticConfType
  confAtom = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      types.package
    ]
  );
in
{
  options = {
    # misc/assertions.nix
    assertions = mkOption {
      type = types.listOf types.raw;
      default = [ ];
    };

    # system/boot/stage-2.nix. `boot.readOnlyNixStore`, which older ones have as well, is gone from newer ones.
    boot.nixStoreMountOpts = mkOption { type = types.listOf types.nonEmptyStr; };
    # system/boot/loader/grub/grub.nix
    boot.loader.grub.enable = bool;
    # system/boot/kernel.nix. Newer ones take a set beside the list for modules, and strings of one word for parameters.
    boot.kernelParams = mkOption {
      type = types.listOf (types.strMatching "([^\" \t\n]|\"[^\"]*\")+");
      default = [ ];
    };
    # config/sysctl.nix, where a value is given once at each priority
    boot.kernel.sysctl = mkOption {
      type = types.attrsOf (types.either types.bool (types.either types.str types.int));
      default = { };
    };
    boot.kernelModules = strings;
    boot.kernelPackages = raw;
    boot.kernelPatches = mkOption {
      type = types.listOf types.attrs;
      default = [ ];
    };
    boot.initrd.availableKernelModules = strings;
    boot.initrd.includeDefaultModules = bool;
    # system/boot/stage-1.nix; the known words are in pkgs/build-support/kernel/initrd-compressor-meta.nix
    boot.initrd.compressor = str;
    # system/boot/systemd/initrd.nix
    boot.initrd.systemd.enable = bool;

    # system/etc/etc.nix
    environment.etc = setOf {
      text = mkOption {
        type = types.nullOr types.lines;
        default = null;
      };
      source = mkOption {
        type = types.nullOr types.path;
        default = null;
      };
      mode = mkOption {
        type = types.str;
        default = "symlink";
      };
    };
    # config/shells-environment.nix
    environment.binsh = mkOption { type = types.path; };
    # config/system-path.nix
    environment.systemPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
    };

    # tasks/filesystems.nix
    fileSystems = setOf {
      device = mkOption { type = types.nullOr types.nonEmptyStr; };
      fsType = mkOption {
        type = types.nonEmptyStr;
        default = "auto";
      };
      options = mkOption {
        type = types.listOf types.nonEmptyStr;
        default = [ "defaults" ];
      };
      noCheck = mkOption {
        type = types.bool;
        default = false;
      };
      autoResize = mkOption {
        type = types.bool;
        default = false;
      };
    };

    # config/fonts/fontconfig.nix
    fonts.fontconfig.enable = bool;

    # image/images.nix; the other options of `image` are in image/file-options.nix
    image.modules = mkOption {
      type = types.attrsOf types.raw;
      default = { };
    };

    # tasks/network-interfaces.nix
    networking.hostName = mkOption {
      type = types.strMatching "^$|^[[:alnum:]]([[:alnum:]_-]{0,61}[[:alnum:]])?$";
    };
    networking.useDHCP = bool;
    # services/networking/firewall.nix
    networking.firewall.enable = bool;

    # services/system/nix-daemon.nix
    nix.package = mkOption { type = types.package; };
    nix.nrBuildUsers = int;
    # config/nix.nix
    nix.extraOptions = lines;
    # config/nix-channel.nix
    nix.channel.enable = bool;
    # config/nix-remote-build.nix, which sets `builders = null` where this is false
    nix.distributedBuilds = mkOption {
      type = types.bool;
      default = false;
    };
    # config/nix.nix
    nix.settings = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf (types.either confAtom (types.listOf confAtom));
        options = {
          auto-optimise-store = mkOption {
            type = types.bool;
            default = false;
          };
          cores = mkOption {
            type = types.int;
            default = 0;
          };
          max-jobs = mkOption {
            type = types.either types.int (types.enum [ "auto" ]);
            default = "auto";
          };
          require-sigs = mkOption {
            type = types.bool;
            default = true;
          };
          sandbox = mkOption {
            type = types.either types.bool (types.enum [ "relaxed" ]);
            default = true;
          };
          substituters = strings;
          system-features = strings;
          trusted-users = strings;
        };
      };
      default = { };
    };

    # misc/nixpkgs.nix
    nixpkgs.hostPlatform = mkOption { type = types.either types.str types.attrs; };
    nixpkgs.buildPlatform = mkOption { type = types.either types.str types.attrs; };
    # misc/nixpkgs-flake.nix
    nixpkgs.flake.setFlakeRegistry = bool;
    nixpkgs.flake.setNixPath = bool;

    # programs/ssh.nix
    programs.ssh.extraConfig = lines;
    # security/sudo.nix
    security.sudo.enable = bool;
    # system/boot/systemd/journald.nix
    services.journald.storage = mkOption {
      type = types.enum [
        "persistent"
        "volatile"
        "auto"
        "none"
      ];
    };
    # virtualisation/qemu-guest-agent.nix
    services.qemuGuest.enable = bool;
    services.qemuGuest.package = mkOption {
      type = types.package;
      default = pkgs.qemu_kvm.ga;
    };
    # system/boot/resolved.nix
    services.resolved.enable = bool;
    # system/boot/timesyncd.nix
    services.timesyncd.enable = bool;

    # system/build.nix
    system.build = mkOption {
      type = types.attrsOf types.raw;
      default = { };
    };
    # system/activation/top-level.nix
    system.boot.loader.kernelFile = str;
    system.boot.loader.initrdFile = str;
    # misc/version.nix
    system.stateVersion = str;
    # system/activation/switchable-system.nix
    system.switch.enable = bool;
    # installer/tools/tools.nix
    system.disableInstallerTools = bool;
    # config/nsswitch.nix
    system.nssModules = raw;
    # services/system/nscd.nix
    services.nscd.enable = bool;

    # system/boot/emergency-mode.nix
    systemd.enableEmergencyMode = bool;
    # nixos/lib/systemd-unit-options.nix
    systemd.services = setOf {
      enable = mkOption {
        type = types.bool;
        default = true;
      };
      description = mkOption {
        type = types.str;
        default = "";
      };
      after = strings;
      before = strings;
      requires = strings;
      stopIfChanged = mkOption {
        type = types.bool;
        default = true;
      };
      wantedBy = strings;
      wants = strings;
      environment = mkOption {
        type = types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.str
              types.path
              types.package
            ]
          )
        );
        default = { };
      };
      path = mkOption {
        type = types.listOf (types.either types.package types.str);
        default = [ ];
      };
      restartTriggers = mkOption {
        type = types.listOf types.raw;
        default = [ ];
      };
      script = lines;
      serviceConfig = section;
      startLimitBurst = limit;
      startLimitIntervalSec = limit;
      unitConfig = section;
    };
    # nixos/lib/systemd-unit-options.nix
    systemd.sockets = setOf {
      description = mkOption {
        type = types.str;
        default = "";
      };
      listenStreams = strings;
      socketConfig = section;
      wantedBy = strings;
    };
    # system/boot/networkd.nix
    systemd.network.enable = bool;
    systemd.network.wait-online.enable = bool;
    systemd.network.networks = setOf {
      address = strings;
      gateway = strings;
      matchConfig = section;
    };
    # system/boot/systemd/oomd.nix
    systemd.oomd.enable = bool;
    # system/boot/systemd/tmpfiles.nix
    systemd.tmpfiles.rules = strings;

    # config/users-groups.nix
    users.allowNoPasswordLogin = bool;
    users.mutableUsers = bool;
    users.groups = setOf { members = strings; };
    users.users = setOf {
      description = str;
      group = str;
      home = mkOption { type = types.path; };
      isSystemUser = mkOption {
        type = types.bool;
        default = false;
      };
    };
  };

  # What NixOS itself says of some of them, as far as the modules have to get along with it.
  config = {
    # config/networking.nix
    environment.etc.hosts.text = "127.0.0.1 localhost";
    # config/nix.nix and config/nix-remote-build.nix
    nix.settings = lib.mkMerge [
      {
        trusted-users = [ "root" ];
        # Since 25.05 at the priority of who writes a configuration, which lists of theirs are added to.
        system-features = [
          "nixos-test"
          "benchmark"
          "big-parallel"
          "kvm"
        ];
      }
      (lib.mkIf (!config.nix.distributedBuilds) { builders = null; })
    ];
    # system/boot/networkd.nix, in some releases
    services.resolved.enable = lib.mkDefault true;
  };
}
