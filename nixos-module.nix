# `services.xpool`: the manager as a service of a NixOS machine, whose Nix builds on its machines by itself.
#
# It runs as a user of its own; keys are made at its first start. Nix comes by the local transport (or by ssh), and reads of its
# machines in a file that is there from the first start on as long as somebody listens. What root's Nix and ssh read, root writes, into
# /run/xpool-nix: nothing in the manager's folders. (None of this has run on a NixOS.)
# systemd listens: while the manager is started anew, who comes waits, and one that has ended is started by who comes.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.xpool;
  toml = pkgs.formats.toml { };

  user = "xpool";
  state = "/var/lib/xpool";
  cache = "/var/cache/xpool";
  # What root's Nix and ssh read. Nobody but root writes in it.
  fixed = "/run/xpool-nix";
  systems = [
    "riscv64-linux"
    "aarch64-linux"
  ];

  given = lib.filterAttrs (_: value: value != null);
  weak = lib.mapAttrs (_: lib.mkDefault);

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  # Keys of xpool.toml: those that are named here are checked when the configuration is evaluated, all others when it is built.
  section =
    options:
    types.submodule {
      freeformType = toml.type;
      inherit options;
    };
  pool = section {
    min-vms = optional types.ints.unsigned "Machines that are kept when nothing waits.";
    max-vms = optional (types.ints.between 1 1000) "Machines at the most.";
    warm = optional types.ints.unsigned "Unused machines that are kept ready.";
    warm-max = optional types.ints.unsigned "Machines that are kept ready at the most, by a forecast too.";
    forecast = optional (types.enum [
      "observe"
      "on"
      "off"
    ]) "Whether machines are kept ready for what the hour usually brings.";
    reuse = optional (types.enum [
      "never"
      "client"
      "always"
    ]) "Whose builds a machine may have after its first one.";
    network = optional (types.enum [
      "nat"
      "none"
    ]) "Whether machines have a network device.";
    memory-mib = optional (types.either (types.ints.between 256 1048576) (types.enum [ "auto" ])) "Memory of a machine.";
    disk-gib = optional (types.ints.between 16 4096) "Size of a machine's disk; what is not written takes no room.";
    cpu = optional types.str "What QEMU's `-cpu` is given.";
    features = optional (types.listOf types.str) "What builds may want of a machine, beside benchmark and big-parallel.";
    mandatory-features = optional (types.listOf types.str) "What builds have to want, or the machine is not for them.";
    extra-platforms = optional (types.listOf types.str) "What a machine can build for beside its own system.";
    experimental-features = optional (types.listOf types.str) "Experimental features of the Nix in a machine.";
    timeout = optional types.str "The longest that a build may take, such as `4h`.";
    keep-failed = optional types.str "How long the machine of a failed build is kept, such as `10m`.";
    max-silent-time = optional types.str "The longest that a build may say nothing, such as `30m`.";
  };

  rawConfig = toml.generate "xpool.toml" cfg.settings;
  # What the module system cannot see is found by xpool itself, before the configuration is switched to.
  configFile =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "xpool-checked.toml" { } ''
        HOME=$PWD ${lib.getExe cfg.package} config check --elsewhere --config ${rawConfig}
        cp ${rawConfig} $out
      ''
    else
      rawConfig;

  xpool = "${lib.getExe cfg.package} --config /etc/xpool/xpool.toml --state-dir ${state} --cache-dir ${cache}";

  # One image: a package of this flake, or made of Debian's packages where there is none yet. What another configuration has put
  # in its place goes.
  image =
    system:
    let
      chosen = cfg.images.${system};
      link = "${cache}/images/${system}";
    in
    if chosen == null then
      ""
    else if chosen == "portable" then
      ''
        case $(readlink ${link}) in ${builtins.storeDir}/*) rm ${link} ;; esac
        ${xpool} image build ${system} || fails $?
      ''
    else
      ''
        ln -sfn ${chosen} ${cache}/images/.${system}.new
        mv -T ${cache}/images/.${system}.new ${link}
      '';

  # Of both services. What is not here and why:
  # * PrivateUsers: the manager tells its clients by their numeric users.
  # * ProtectProc, ProcSubset: it reads of its clients' processes, of the memory, and of how long programs wait for it.
  # * PrivateDevices: /dev/kvm. On machines that have none, everything is emulated.
  # * PrivateNetwork: the gateway listens, and guests fetch.
  # * MemoryDenyWriteExecute: QEMU translates a guest's code into memory that it then executes.
  sandbox = {
    User = user;
    Group = user;
    SupplementaryGroups = [ "kvm" ] ++ lib.optional (cfg.group != user) cfg.group;
    CacheDirectory = "xpool";
    CacheDirectoryMode = "0700";
    UMask = "0077";
    AmbientCapabilities = "";
    CapabilityBoundingSet = "";
    DeviceAllow = [ "/dev/kvm rw" ];
    DevicePolicy = "closed";
    KeyringMode = "private";
    LockPersonality = true;
    NoNewPrivileges = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_UNIX"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    SystemCallArchitectures = "native";
  };

  isSsh = cfg.transport == "ssh";
  ssh =
    let
      listen = builtins.match "(.*):([0-9]+)" cfg.settings.gateway.listen;
      host = lib.removeSuffix "]" (lib.removePrefix "[" (builtins.head listen));
      # Where it listens on all addresses, one that can be connected to.
      loopback = {
        "0.0.0.0" = "127.0.0.1";
        "::" = "::1";
      };
      entry = system: ''
        Host xpool-${lib.removeSuffix "-linux" system}
          HostName ${loopback.${host} or host}
          Port ${builtins.elemAt listen 1}
          HostKeyAlias xpool-${lib.removeSuffix "-linux" system}
          UserKnownHostsFile ${fixed}/known_hosts
          StrictHostKeyChecking yes
          IdentityFile ${fixed}/client_ed25519
          IdentitiesOnly yes
          ServerAliveInterval 30
          ServerAliveCountMax 3
          BatchMode yes
          ClearAllForwardings yes
          ControlMaster no
          ControlPath none
          ForwardAgent no
          ForwardX11 no
          PermitLocalCommand no
          ProxyCommand none
          RemoteCommand none
          RequestTTY no
      '';
    in
    # What another module says without a `Host` of its own is not for the last of these only.
    lib.concatStringsSep "\n" (map entry systems ++ [ "Match all\n" ]);
in
{
  options.services.xpool = {
    enable = lib.mkEnableOption "xpool, emulated riscv64 and aarch64 build machines for this machine's Nix";

    package = mkOption {
      type = types.package;
      default = pkgs.xpool;
      defaultText = lib.literalExpression "pkgs.xpool";
      description = "The package that has `xpool`, with QEMU in its PATH.";
    };

    builders = mkOption {
      type = types.bool;
      default = true;
      description = "Whether this machine's Nix uses the machines, while the manager serves.";
    };

    transport = mkOption {
      type = types.enum [
        "local"
        "ssh"
      ];
      default = "local";
      description = "What carries a build from this machine's Nix to xpool: a helper that Nix starts, or its ssh.";
    };

    group = mkOption {
      type = types.str;
      default = user;
      description = "Group whose members may use the local transport, beside root. It is made if it is not there.";
    };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = "Users that are put into the group. Those who build by a Nix daemon need not be.";
    };

    images = lib.genAttrs systems (
      system:
      mkOption {
        type = types.nullOr (
          types.either (types.enum [ "portable" ]) types.package
        );
        default = "portable";
        example = lib.literalExpression "inputs.xpool.packages.x86_64-linux.image-${system}";
        description = ''
          The guest image: a package such as `image-${system}` of the flake; `portable` for one that is made of Debian's
          packages at the first start, which needs the network; or null for none.
        '';
      }
    );

    policy = mkOption {
      type = pool;
      default = { };
      example = {
        max-vms = 4;
        warm = 1;
      };
      description = "The section `[pool]` of xpool.toml, for every system.";
    };

    systems = lib.genAttrs systems (
      system:
      mkOption {
        type = pool;
        default = { };
        description = "The same keys for ${system} alone.";
      }
    );

    metrics = {
      enable = lib.mkEnableOption "metrics for Prometheus, at `/metrics`; who can connect can read them";
      listen = mkOption {
        type = types.strMatching ".*:[0-9]+";
        default = "127.0.0.1:31023";
        description = "Where they are served.";
      };
    };

    limits = mkOption {
      type = section {
        vcpus = optional (types.ints.between 1 4096) "Processors that all machines are given together.";
        memory-mib = optional (types.ints.between 256 1048576) "Memory that all machines are given together.";
        memory-pressure = optional (types.ints.between 1 100) "Nothing starts while programs wait for memory longer.";
        cpu-pressure = optional (types.ints.between 1 100) "Nothing starts while programs wait for processors longer.";
      };
      default = { };
      description = "The section `[budget]` of xpool.toml.";
    };

    settings = mkOption {
      type = section {
        gateway.listen = mkOption {
          type = types.strMatching ".*:[0-9]+";
          default = "127.0.0.1:31022";
          description = "Where the SSH gateway listens.";
        };
      };
      default = { };
      description = "All of xpool.toml; it wins over the other options. xpool checks it when the system is built.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.xpool.settings = {
      local.group = lib.mkDefault cfg.group;
      pool = weak (given cfg.policy);
      budget = weak (given cfg.limits);
      metrics = weak (given {
        listen = if cfg.metrics.enable then cfg.metrics.listen else null;
      });
      systems = lib.mapAttrs (_: own: weak (given own)) cfg.systems;
    };

    users.users.${user} = {
      isSystemUser = true;
      group = user;
      home = state;
      description = "xpool's manager";
    };
    users.groups = lib.mkMerge [
      { ${user} = { }; }
      { ${cfg.group}.members = cfg.users; }
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."xpool/xpool.toml".source = configFile;

    # A file that is missing is no error to Nix; a blank after `;` is, up to 2.26.
    nix.distributedBuilds = lib.mkIf cfg.builders true;
    nix.settings.builders = lib.mkIf cfg.builders "@/etc/nix/machines;@${fixed}/machines";
    # Only root can read the key that it names.
    programs.ssh.extraConfig = lib.mkIf (cfg.builders && isSsh) ssh;

    # Lix, and Nix before 2.20, have bash start what Nix runs in the place of ssh.
    systemd.services.nix-daemon = lib.mkIf (cfg.builders && !isSsh) {
      path = [ pkgs.bash ];
    };

    systemd.sockets.xpool = {
      description = "xpool: where Nix and commands come";
      wantedBy = [ "sockets.target" ];
      listenStreams = [
        "${state}/control.sock"
        "${state}/connect.sock"
        "${state}/shell.sock"
        cfg.settings.gateway.listen
      ];
      socketConfig = {
        SocketUser = user;
        SocketGroup = user;
        SocketMode = "0600";
        # Before there is a network, too.
        FreeBind = true;
        # It is there before the service, to whose user it is given then.
        DirectoryMode = "0700";
        RemoveOnStop = true;
        # Where nobody listens, Nix is told of no machines.
        ExecStopPost = "${pkgs.coreutils}/bin/rm -f ${fixed}/machines ${state}/machines ${state}/machines-ssh ${state}/machines-ssh-port";
      };
    };

    systemd.services.xpool = {
      description = "xpool: emulated Nix build machines";
      # It says what machines there are, so it is there from the start.
      wantedBy = [ "multi-user.target" ];
      requires = [ "xpool.socket" ];
      after = [
        "network.target"
        "nix-daemon.socket"
        "xpool.socket"
      ];
      # A new configuration has the manager restarted. Stopped and started, it would have its socket stopped as well, and who comes
      # in between would be refused.
      stopIfChanged = false;
      # To ask which inputs this machine's store has, and to name lines that suit this Nix.
      path = [ config.nix.package ];
      environment.HOME = state;
      restartTriggers = [ configFile ];
      serviceConfig = sandbox // {
        Type = "notify";
        StateDirectory = "xpool";
        # The manager closes it to the group, unless its configuration has one.
        StateDirectoryMode = "0710";
        # As root, for root's Nix: the machines are as the configuration says at each start. Before the manager, since systemd gives the
        # state folder back to the service's group for each of these, and the manager may give it to another one.
        ExecStartPre = lib.mkIf cfg.builders (
          # Makes the keys, if there are none.
          lib.optional isSsh "${pkgs.bash}/bin/bash -c 'test -e ${state}/keys/client_ed25519 || ${xpool} machines --format nix-conf'"
          ++ [
            (
              "-+${xpool} machines --write-to ${fixed} --transport ${cfg.transport}"
              # In the form that every Nix takes, to which the ssh configuration belongs.
              + lib.optionalString isSsh " --nix-version 2.8"
            )
          ]
        );
        ExecStart = "${xpool} serve";
        Restart = "on-failure";
        RestartSec = 2;
        # The first signal lets builds end. Who is still there then is killed alone: its machines go on with their builds, over
        # the local transport at least, and the next manager takes care of them.
        KillMode = "process";
        TimeoutStopSec = "2min";
        # A machine that takes too much memory ends, and not the manager with it.
        OOMPolicy = "continue";
        OOMScoreAdjust = -100;
        LimitNOFILE = 65536;
        RestrictSUIDSGID = true;
        # Giving the socket to the group takes chown, and QEMU has a filter of its own to put on.
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
          "@chown"
          "seccomp"
        ];
        SystemCallErrorNumber = "EPERM";
      };
    };

    # Beside the manager, which takes an image when it is there: without a network at this moment, the rest still works. The state
    # folder is the manager's: named as this one's as well, it would be given back what the manager has given to a group.
    systemd.services.xpool-images = {
      description = "xpool: guest images";
      # Not by a target, which would wait for it, and a boot with it.
      wantedBy = [ "xpool.service" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "xpool.service"
      ];
      environment.HOME = state;
      startLimitIntervalSec = 86400;
      startLimitBurst = 100;
      script = ''
        failed=0
        # Of two, the one that may go well later.
        fails() { [ "$failed" = 69 ] || failed=$1; }
        mkdir -p ${cache}/images
        ${lib.concatStrings (map image systems)}
        exit $failed
      '';
      # Debian's packages have set-user-ID files, which are unpacked as what they are, by programs that take themselves for root's.
      serviceConfig = sandbox // {
        # Nobody waits for its end.
        Type = "exec";
        ReadWritePaths = [ "-${state}" ];
        SystemCallFilter = [ "@system-service" ];
        SystemCallErrorNumber = "EPERM";
        RemainAfterExit = true;
        # Again where it may go well then, as without a network (69, EX_UNAVAILABLE): a hundred times, and not for ever.
        Restart = "on-failure";
        RestartPreventExitStatus = "1 2";
        RestartSec = "5min";
      };
    };
  };
}
