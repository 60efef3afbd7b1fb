# A variant of a NixOS's image (`image.modules`, `system.build.images`), and a format for nixos-generators: a folder with kernel,
# initrd, disk.qcow2 and manifest.json, which xpool takes as it is. Made without a VM and without running anything of the guest's
# system, so cross-compiled guests need nothing else.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  # What runs while the image is made, as opposed to what is in it.
  build = pkgs.buildPackages;
  inherit (config.system.build) toplevel;
  closure = build.closureInfo { rootPaths = [ toplevel ]; };
  system = pkgs.stdenv.hostPlatform.system;

  # The disk of the portable image (portable/assemble.sh): no journal and no checksums, since it is thrown away.
  features = "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,resize_inode,sparse_super,uninit_bg";
  # Room for the tables of a disk of 4 TiB.
  mostBlocks = "1073741824";
  uuid = "c3ad2a96-34f1-4c8c-9b1b-1f1f3e0d6b3c";

  # Fields of src/image/manifest.rs; those of the files are added where they are known.
  manifest = {
    contract = 6;
    inherit system;
    kind = "nixos";
    recipe = builtins.hashString "sha256" (builtins.unsafeDiscardStringContext "${toplevel}");
    nix-version = lib.getVersion config.nix.package;
    kernel-version = config.boot.kernelPackages.kernel.modDirVersion;
    # NixOS is told by `init=` which of the systems on a disk it is.
    cmdline = lib.concatStringsSep " " ([ "init=${toplevel}/init" ] ++ config.boot.kernelParams);
  };
in
{
  # The options `image.*`, which nixos-rebuild asks for.
  imports = [ "${modulesPath}/image/file-options.nix" ];
  image = {
    baseName = "xpool-${system}";
    extension = "json";
    filePath = "manifest.json";
  };

  system.build.image =
    build.runCommand "xpool-image-${system}"
      {
        # The outputs with programs, which `nativeBuildInputs` by itself would find by way of those for compilers.
        nativeBuildInputs = map lib.getBin [
          build.e2fsprogs
          build.fakeroot
          build.nix
          build.qemu-utils
        ];
        # The rest of the object is written below, behind the comma.
        manifestStart = lib.removeSuffix "}" (builtins.toJSON manifest);
        # The paths in the image are for the guest. Taken for references, they would keep all of it in the store of who has the image.
        __structuredAttrs = true;
        unsafeDiscardReferences.out = true;
      }
      ''
        mkdir -p "$out" root/nix/store
        cp ${config.system.build.kernel}/${config.system.boot.loader.kernelFile} "$out/kernel"
        cp ${config.system.build.initialRamdisk}/${config.system.boot.loader.initrdFile} "$out/initrd"

        xargs cp -a --reflink=auto -t root/nix/store <${closure}/store-paths
        # Nix in the guest has to know what is in its store.
        NIX_REMOTE="local?root=$PWD/root" USER=nobody nix-store --load-db <${closure}/registration

        # Files belong to root in the image; mke2fs sees what fakeroot tells it.
        export E2FSPROGS_FAKE_TIME=1
        fakeroot mke2fs -q -F -t ext4 -O ${features} -b 4096 -I 256 -i 8192 -m 0 -U ${uuid} \
          -E lazy_itable_init=1,nodiscard,resize=${mostBlocks},hash_seed=${uuid} -d root disk.raw 16G
        qemu-img convert -f raw -O qcow2 disk.raw "$out/disk.qcow2"

        file() {
          printf ',"%s":{"name":"%s","size":%s,"sha256":"%s"}' \
            "$1" "$2" "$(stat -c %s "$out/$2")" "$(sha256sum "$out/$2" | cut -d' ' -f1)"
        }
        {
          printf %s "$manifestStart"
          file kernel kernel
          file initrd initrd
          file disk disk.qcow2
          echo '}'
        } >"$out/manifest.json"
      '';
}
