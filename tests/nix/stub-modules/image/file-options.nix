# image/file-options.nix: what an image is called.
{ lib, ... }:
let
  str = lib.mkOption { type = lib.types.str; };
in
{
  options.image = {
    baseName = str;
    extension = str;
    filePath = str;
  };
}
