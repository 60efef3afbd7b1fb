# The aarch64 guest. To cross-compile it, set `nixpkgs.buildPlatform` beside this.
{
  imports = [ ./guest.nix ];

  nixpkgs.hostPlatform = "aarch64-linux";

  # The power button, which only this machine has; systemd-logind listens to it.
  boot.kernelModules = [
    "evdev"
    "gpio_keys"
  ];
}
