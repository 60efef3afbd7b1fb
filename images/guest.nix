# The guest contract (README.md) as a NixOS module: what a NixOS needs to be a machine of xpool. systemd does
# what `init` does in the portable image; `xpool-guest` is the same file in both.
#
# No cache of NixOS can be reached where this is developed: it is parsed and evaluated against stubs (tests/nix), never built.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  xpool-guest = pkgs.runCommand "xpool-guest" { } ''
    install -D -m 755 ${./xpool-guest} $out/bin/xpool-guest
  '';
  # What xpool-guest calls, beside what each unit of NixOS has in its PATH (coreutils, findutils, grep, sed, systemd).
  tools = [
    config.nix.package
    pkgs.gawk
    pkgs.socat
    pkgs.sqlite
    pkgs.util-linux
    xpool-guest
  ];
  # What it prints is to be seen when it fails. The host keeps a console's last 2 MiB.
  onConsole = {
    StandardOutput = "journal+console";
    StandardError = "journal+console";
  };
in
{
  imports = [ "${modulesPath}/profiles/minimal.nix" ];

  # Boot: the kernel is started directly and its command line is in the manifest; `console=` comes from the VM profile.
  boot.loader.grub.enable = false;
  boot.kernelParams = [
    "quiet"
    # A panic restarts the guest, and QEMU with -no-reboot then ends. So does a root disk that cannot be mounted.
    "panic=-1"
    "oops=panic"
    "boot.panic_on_fail"
    # The network's device is called eth0.
    "net.ifnames=0"
  ];
  boot.initrd.systemd.enable = true;
  boot.initrd.includeDefaultModules = false;
  boot.initrd.availableKernelModules = [
    "ext4"
    "virtio_blk"
    "virtio_pci"
  ];
  # Not compressed: QEMU copies it in no time, unpacking it would be the guest's work.
  boot.initrd.compressor = "cat";
  # The other devices' modules are loaded by udev. These no device asks for before it is too late: the share is mounted in
  # a copy, whose first build waits for it.
  boot.kernelModules = [
    "9p"
    "9pnet_virtio"
    "overlay"
  ];

  fileSystems."/" = {
    device = "/dev/vda";
    fsType = "ext4";
    # The disk reads as zeros wherever mke2fs did not write: nothing is left to initialise, and nothing to check.
    options = [ "noinit_itable" ];
    noCheck = true;
    # As large as its device, which is the manager's to choose.
    autoResize = true;
  };

  # The store share: an overlay whose upper layer is /nix/store and whose work folder is beside it, in /nix. Both have to be on
  # one mount. NixOS would bind /nix/store over itself to make it read-only, and the overlay could not be mounted: no options,
  # no bind mount. Nix protects what it has registered by its modes, and nobody but root is in a guest.
  # `/` is mounted shared by systemd, so that nix-daemon, in its mount namespace, sees what is mounted later.
  boot.nixStoreMountOpts = [ ];

  # Identity: /etc/machine-id is an ordinary file, made by systemd at the first boot, which every boot of an image is.
  # /etc/hosts is a link into the store, and `xpool-guest identity` lets links be: with a mode it is a file. Without a
  # name in the configuration there is no /etc/hostname, and nothing sets the name back.
  networking.hostName = "";
  environment.etc.hosts.mode = "0644";
  systemd.services.xpool-identity = {
    description = "A host name and a machine-id that no other guest has";
    wantedBy = [ "sysinit.target" ];
    before = [ "sysinit.target" ];
    after = [
      "local-fs.target"
      "systemd-machine-id-commit.service"
    ];
    unitConfig.DefaultDependencies = false;
    path = tools;
    script = ''
      read -r id </proc/sys/kernel/random/uuid
      xpool-guest identity "xpool-''${id%%-*}"
    '';
    serviceConfig = onConsole // {
      Type = "oneshot";
      RemainAfterExit = true;
    };
  };

  boot.kernel.sysctl = {
    # What newer releases of NixOS set by themselves, whichever this is evaluated with.
    "vm.max_map_count" = 1048576;
    "fs.inotify.max_user_instances" = 524288;
    "fs.inotify.max_user_watches" = 524288;
    "kernel.pid_max" = 4194304;
  };

  # The agent, which the manager has run /usr/bin/xpool-guest. A session is not ended when the agent dies and is started
  # again, nor when what a session started has used up the memory.
  services.qemuGuest = {
    enable = true;
    # Otherwise it is an output of QEMU with its windows and sound, which no cache has for riscv64 and nobody wants to compile.
    package =
      lib.mkIf (pkgs.stdenv.buildPlatform != pkgs.stdenv.hostPlatform || pkgs.stdenv.hostPlatform.isRiscV64)
        (
          pkgs.qemu.override {
            toolsOnly = true;
            enableTools = false;
            enableBlobs = false;
            enableDocs = false;
            uringSupport = false;
            guestAgentSupport = true;
          }
        ).ga;
  };
  # The agent has the clock written back to the machine's, which is thrown away: hwclock would wait for the next half second, as
  # busy as it can be, in each copy. Without a program of this name the agent does not set the clock at all.
  environment.systemPackages = [
    # Not a link: coreutils is one program, which does what its name says.
    (lib.hiPrio (pkgs.writeScriptBin "hwclock" "#!${pkgs.coreutils}/bin/true\n"))
  ];
  systemd.services.qemu-guest-agent = {
    path = tools;
    serviceConfig = onConsole // {
      KillMode = "process";
      OOMPolicy = "continue";
      OOMScoreAdjust = -1000;
    };
  };
  systemd.tmpfiles.rules = [ "L+ /usr/bin/xpool-guest - - - - ${xpool-guest}/bin/xpool-guest" ];

  # Nix: as images/portable/nix.conf says it, and why. Its daemon is started before anybody asks, since all wait for it. The
  # static /bin/sh of the sandbox is the one that nixpkgs builds Nix with.
  nix.settings = {
    trusted-users = lib.mkForce [ "root" ];
    substitute = false;
    substituters = lib.mkForce [ ];
    require-sigs = false;
    sandbox = true;
    sandbox-fallback = false;
    # NixOS adds its own to a list: `kvm` among them, which no guest has.
    system-features = lib.mkForce [
      "benchmark"
      "big-parallel"
    ];
    max-jobs = "auto";
    cores = 0;
    max-silent-time = 0;
    auto-optimise-store = false;
    fsync-metadata = false;
    keep-build-log = false;
    # There if the host gives one.
    netrc-file = "/run/xpool/netrc";
  };
  # `xpool-guest` and what it starts: bash would take longer to begin, on a processor that is emulated.
  environment.binsh = "${pkgs.dash}/bin/dash";
  # What is configured for the pool.
  nix.extraOptions = "!include /run/xpool/nix.conf";
  systemd.services.xpool-configure = {
    description = "Configuration of Nix, its variables and certificates, as the host gives them";
    wantedBy = [ "multi-user.target" ];
    before = [
      "nix-daemon.service"
      "nix-daemon.socket"
    ];
    unitConfig.DefaultDependencies = false;
    after = [ "local-fs.target" ];
    path = tools ++ [ pkgs.kmod ];
    script = "xpool-guest configure";
    serviceConfig = onConsole // {
      Type = "oneshot";
      RemainAfterExit = true;
    };
  };
  nix.nrBuildUsers = 32;
  systemd.services.nix-daemon = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig = {
      Restart = "always";
      RestartSec = 1;
      StandardOutput = "journal+console";
      StandardError = "journal+console";
      # A build that takes all memory ends, and the others go on.
      OOMPolicy = lib.mkDefault "continue";
      LimitNOFILE = lib.mkDefault 1048576;
      # Builders inherit which signals are ignored (NixOS/nix issue 2803).
      IgnoreSIGPIPE = false;
      # What the host gives: proxies, and which certificates to trust.
      EnvironmentFile = "-/run/xpool/environment";
    };
  };
  # Nobody evaluates anything here, and the sources of nixpkgs would be in the image.
  nix.channel.enable = false;
  nixpkgs.flake.setFlakeRegistry = false;
  nixpkgs.flake.setNixPath = false;

  # Network: as QEMU's user network has it. A pool with `network = "none"` has no device, and nothing waits for one.
  networking.useDHCP = false;
  networking.firewall.enable = false;
  systemd.network = {
    enable = true;
    wait-online.enable = false;
    networks."10-eth0" = {
      matchConfig.Name = "eth0";
      address = [
        "10.0.2.15/24"
        # For name servers that this machine has by IPv6 only: QEMU's is at fec0::3.
        "fec0::15/64"
      ];
      gateway = [ "10.0.2.2" ];
    };
  };
  services.resolved.enable = false;
  # As /etc/hosts a file and not a link: `xpool-guest names` writes it.
  environment.etc."resolv.conf" = {
    text = "nameserver 10.0.2.3\n";
    mode = "0644";
  };

  # Nobody logs in: no password, no key, no terminal, no sshd unless somebody adds `services.openssh`, whose host key then is
  # in all copies. A shell comes through the agent.
  users.mutableUsers = false;
  users.allowNoPasswordLogin = true;
  systemd.services."serial-getty@".enable = false;
  systemd.services."getty@".enable = false;
  systemd.services."autovt@".enable = false;
  systemd.enableEmergencyMode = false;

  # The manager sets the clock, and a guest lives for one build: nothing is kept, collected, switched or killed in it.
  services.timesyncd.enable = false;
  services.journald.storage = "volatile";
  systemd.oomd.enable = false;
  system.switch.enable = false;
  # Nor is anything installed in it, or looked up but in files: their tools are in Python and Rust, whose compilers come first where no
  # cache has them.
  system.disableInstallerTools = true;
  services.nscd.enable = false;
  system.nssModules = lib.mkForce [ ];
  fonts.fontconfig.enable = false;
  security.sudo.enable = false;

  system.stateVersion = "26.05";
}
