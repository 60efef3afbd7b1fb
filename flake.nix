# No cache of NixOS can be reached where this is developed: it is parsed and evaluated with a stub for its input (tests/nix), and
# nothing of it was built. flake.lock was written by hand: three public files agree on the hash of this commit.
{
  description = "A pool of emulated Nix builders: riscv64 and aarch64 build machines in QEMU, started when something waits";

  # nixos-26.05, of 2026-09-11.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/21a67dc470149f337cecafbe965d8d252a390518";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      hosts = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      guests = {
        riscv64-linux = ./images/riscv64-linux.nix;
        aarch64-linux = ./images/aarch64-linux.nix;
      };
      pkgsFor = host: nixpkgs.legacyPackages.${host}.extend self.overlays.default;
      forHosts = f: lib.genAttrs hosts (host: f host (pkgsFor host));

      # A guest, built on machines of the kind `builder`; and its image.
      guest =
        builder: system:
        nixpkgs.lib.nixosSystem {
          modules = [
            guests.${system}
            {
              nixpkgs.buildPlatform = builder;
              image.modules.xpool = ./images/format.nix;
            }
          ];
        };
      image = builder: system: (guest builder system).config.system.build.images.xpool;
      # Each guest twice: cross-compiled, which needs no other builder; and built on machines of its own kind, by packages that the
      # cache of NixOS may have, for which `xpool image build --kind nixos` has xpool's own machines.
      images =
        host:
        lib.mapAttrs' (system: _: lib.nameValuePair "image-${system}" (image host system)) guests
        // lib.mapAttrs' (system: _: lib.nameValuePair "image-${system}-native" (image system system)) guests;

      # That a derivation evaluates, without building it.
      evaluates =
        pkgs: name: derivation:
        pkgs.writeText "evaluates-${name}" (builtins.unsafeDiscardStringContext derivation.drvPath);
    in
    {
      overlays.default =
        final: _:
        let
          # What `xpool image build` needs and this nixpkgs does not have, as Debian has packaged it.
          debianPackage =
            pool: sha1: sha256:
            final.runCommand (baseNameOf pool) { nativeBuildInputs = [ final.dpkg ]; } ''
              dpkg-deb -x ${
                final.fetchurl {
                  name = baseNameOf pool;
                  urls = [
                    "https://deb.debian.org/debian/pool/main/${pool}"
                    "https://snapshot.debian.org/file/${sha1}"
                  ];
                  inherit sha256;
                }
              } $out
            '';
          keyring =
            debianPackage "d/debian-archive-keyring/debian-archive-keyring_2023.3+deb12u2_all.deb"
              "2b45099ff48b37494894f36aa9708ddb161fa9e3"
              "f699e2f88dca05212f2a452b58475f2993cb6993dfbafb1d0205a3291eb8b4b8";
          mmdebstrap =
            debianPackage "m/mmdebstrap/mmdebstrap_1.3.5-7_all.deb" "c89c59dd4ba554c02df00554bb027da23451136d"
              "0ecb8da772c8e5b7f73b59cb6d1f02d789f8bcd9a6b5f19ed548fe12c26a76ca";
          # C headers for perl, which Debian's has and nixpkgs' has not. mmdebstrap wants both files and does without what is in them:
          # the numbers of system calls are for modes that need root or namespaces, and it asks whether a terminal's size can be asked.
          headers = final.runCommand "mmdebstrap-headers" { } ''
            mkdir -p $out/sys
            echo '1;' | tee $out/syscall.ph >$out/sys/ioctl.ph
          '';
          mmdebstrapProgram = final.writeShellScriptBin "mmdebstrap" ''
            export PERL5LIB=${headers}
            exec ${final.perl}/bin/perl ${mmdebstrap}/usr/bin/mmdebstrap "$@"
          '';
          # What xpool calls: QEMU, and what `xpool image build` needs for either kind of image.
          tools = [
            final.qemu
            final.apt
            final.bash
            final.coreutils
            final.cpio
            final.dpkg
            final.e2fsprogs
            final.fakeroot
            final.findutils
            final.gawk
            final.gnugrep
            final.gnupg
            final.gnused
            final.gnutar
            final.gzip
            final.kmod
            mmdebstrapProgram
            final.util-linux
            final.xz
          ];
        in
        {
          xpool = final.rustPlatform.buildRustPackage {
            pname = "xpool";
            version = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).package.version;
            src = final.lib.cleanSource ./.;
            cargoLock.lockFile = ./Cargo.lock;
            nativeBuildInputs = [ final.installShellFiles ];
            # Compiled in, with no wrapper around the program: what Nix is told to start is `xpool` then, and a copy of it works.
            env = {
              XPOOL_PACKAGE_PATH = final.lib.makeBinPath tools;
              XPOOL_PACKAGE_KEYRINGS = "${keyring}/usr/share/keyrings";
              XPOOL_PACKAGE_FLAKE = "${self}";
            };
            # `checks` has the tests.
            doCheck = false;
            # A mmdebstrap that does not start would be found out by the first user otherwise.
            postInstall = ''
              ${mmdebstrapProgram}/bin/mmdebstrap --version
              mkdir -p $out/share/man/man1
              HOME=$PWD $out/bin/xpool man $out/share/man/man1
              for shell in bash fish zsh; do
                HOME=$PWD $out/bin/xpool completions $shell > xpool.$shell
                installShellCompletion --cmd xpool --$shell xpool.$shell
              done
            '';
            meta = {
              description = "A pool of emulated Nix builders";
              license = [
                final.lib.licenses.mit
                final.lib.licenses.asl20
              ];
              mainProgram = "xpool";
              platforms = hosts;
            };
            # For tests.
            passthru = { inherit headers mmdebstrapProgram tools; };
          };
        };

      packages = forHosts (
        host: pkgs:
        {
          default = pkgs.xpool;
        }
        // images host
      );

      apps = forHosts (
        _: pkgs: {
          default = {
            type = "app";
            program = lib.getExe pkgs.xpool;
            meta.description = "A pool of emulated Nix builders";
          };
        }
      );

      devShells = forHosts (
        _: pkgs: {
          default = pkgs.mkShell {
            inputsFrom = [ pkgs.xpool ];
            packages = [
              pkgs.cargo-deny
              pkgs.clippy
              pkgs.deadnix
              pkgs.nixfmt-tree
              pkgs.qemu
              pkgs.rustfmt
              pkgs.shellcheck
              pkgs.statix
            ];
          };
        }
      );

      formatter = forHosts (_: pkgs: pkgs.nixfmt-tree);

      # The host, where the package is this flake's.
      nixosModules.default =
        { lib, pkgs, ... }:
        {
          imports = [ ./nixos-module.nix ];
          services.xpool.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };
      nixosModules.guest = ./images/guest.nix;
      # A variant for `image.modules` of NixOS, and, with `formatAttr = "image"` beside it, a format for nixos-generators.
      nixosModules.image = ./images/format.nix;
      # `nixos-rebuild build-image --image-variant xpool --flake .#guest-riscv64-linux`, on a machine of that kind.
      nixosConfigurations = lib.mapAttrs' (
        system: _: lib.nameValuePair "guest-${system}" (guest system system)
      ) guests;

      # The guest contract, held against each image by booting it: hours where the image has to be built first, so it is no check.
      legacyPackages = forHosts (
        host: pkgs:
        lib.mapAttrs' (
          system: _:
          lib.nameValuePair "contract-${system}" (
            pkgs.xpool.overrideAttrs (old: {
              pname = "xpool-contract-${system}";
              env = { };
              doCheck = true;
              nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.qemu ];
              checkPhase = ''
                XPOOL_CONTRACT_IMAGE=${self.packages.${host}."image-${system}"} \
                  cargo test --offline --locked --features real-vm --test real contract:: -- --test-threads 1
              '';
              postInstall = "";
            })
          )
        ) guests
      );

      checks = forHosts (
        host: pkgs:
        {
          # What scripts/check.sh does, but for cargo-deny, which needs the network.
          check = pkgs.xpool.overrideAttrs (old: {
            pname = "xpool-check";
            # As who has no package compiles it.
            env = { };
            doCheck = true;
            nativeBuildInputs = old.nativeBuildInputs ++ [
              pkgs.clippy
              pkgs.nix
              pkgs.openssh
              pkgs.qemu
              pkgs.rustfmt
              pkgs.shellcheck
              pkgs.util-linux
            ];
            checkPhase = ''
              shellcheck $(grep -lrE '^#!(/usr)?/bin/(env |busybox )?(ba)?sh|^# shellcheck shell=' scripts images tests)
              patchShebangs scripts images tests
              cargo fmt --check
              cargo clippy --offline --all-targets --all-features --locked
              cargo test --offline --locked
            '';
            postInstall = "";
          });

          module =
            evaluates pkgs "module"
              (nixpkgs.lib.nixosSystem {
                modules = [
                  self.nixosModules.default
                  {
                    nixpkgs.hostPlatform = host;
                    boot.loader.grub.enable = false;
                    fileSystems."/" = {
                      device = "/dev/vda";
                      fsType = "ext4";
                    };
                    services.xpool.enable = true;
                    system.stateVersion = "26.05";
                  }
                ];
              }).config.system.build.toplevel;

          # The service on a machine that has no network and no image.
          service = pkgs.testers.runNixOSTest {
            name = "xpool-service";
            nodes.machine = {
              imports = [ self.nixosModules.default ];
              services.xpool = {
                enable = true;
                images.riscv64-linux = null;
                images.aarch64-linux = null;
                metrics.enable = true;
                policy.max-vms = 1;
              };
            };
            testScript = ''
              machine.wait_for_unit("xpool.service")
              machine.wait_for_file("/run/xpool-nix/machines")
              machine.succeed("sudo -u xpool xpool --state-dir /var/lib/xpool --cache-dir /var/cache/xpool status")
              machine.succeed("test $(stat -c %a /var/lib/xpool/keys/client_ed25519) = 600")
              machine.fail("sudo -u nobody ls /var/lib/xpool")
              machine.fail("sudo -u xpool sh -c 'test -w /run/xpool-nix || test -w /run/xpool-nix/machines'")
              machine.succeed("grep -F 'builders = @/etc/nix/machines;@/run/xpool-nix/machines' /etc/nix/nix.conf")
              machine.succeed("systemd-analyze security --threshold=30 xpool.service")
              # Who comes while no manager runs has one started.
              machine.succeed("systemctl stop xpool.service")
              machine.succeed("test -s /run/xpool-nix/machines")
              machine.succeed("sudo -u xpool xpool --state-dir /var/lib/xpool --cache-dir /var/cache/xpool status")
              machine.wait_for_unit("xpool.service")
              machine.succeed("curl --fail http://127.0.0.1:31023/metrics | grep -F xpool_manager_info")
              machine.succeed("systemctl stop xpool.socket")
              machine.fail("test -e /run/xpool-nix/machines")
            '';
          };
        }
        // lib.mapAttrs (evaluates pkgs) (removeAttrs self.packages.${host} [ "default" ])
      );
    };
}
