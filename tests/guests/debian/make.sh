#!/bin/bash
# Makes a whole Debian in GUEST_DIR/debian: disk, vmlinuz and initrd.img. Usage: make.sh GUEST_DIR, as root (debootstrap
# works in a chroot). The release and its mirror are those of the machine's own apt. Nothing is done if all is there.
set -u
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/debian" || exit 1
dir=$(cd "$1/debian" && pwd)
tree=$dir/tree
die() { echo "Debian guest: $*" >&2; exit 1; }

packages=systemd,systemd-sysv,udev,dbus,kmod,initramfs-tools,zstd,linux-image-amd64,gcc,libc6-dev,stress-ng,iproute2,e2fsprogs,procps

# Sets suite and mirror: the first entry of apt's sources that is Debian's main.
find_mirror() {
  local line
  line=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
    head -1)
  read -r suite mirror <<<"$line"
  [ -n "${mirror:-}" ] || die "apt has no Debian source; run apt-get update"
}

bootstrap() {
  find_mirror
  echo "Debian guest: debootstrap of $suite" >&2
  rm -rf "$tree" "$dir/bootstrapped" && mkdir -p "$dir/packages" || die "cannot make $dir"
  debootstrap --variant=minbase --cache-dir="$dir/packages" --include="$packages" "$suite" "$tree" "$mirror" \
    >"$dir/debootstrap.log" 2>&1 || die "debootstrap failed: $(tail -1 "$dir/debootstrap.log")"
  echo "$packages" >"$dir/bootstrapped"
}

configure() {
  echo guest >"$tree/etc/hostname"
  echo '127.0.0.1 localhost guest' >"$tree/etc/hosts"
  echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$tree/etc/fstab"
  chroot "$tree" passwd -d root >/dev/null || die "cannot clear root's password"
  install -m 755 "$here/work" "$tree/root/work"
  mkdir -p "$tree/srv/packages"
  compgen -G "$tree/srv/packages/*.deb" >/dev/null ||
    (cd "$tree/srv/packages" && apt-get download -qq -o APT::Sandbox::User=root hello) || die "cannot download hello"
  cp "$tree"/boot/vmlinuz-* "$dir/vmlinuz" && cp "$tree"/boot/initrd.img-* "$dir/initrd.img" || die "there is no kernel"
}

[ "$dir/disk" -nt "$here/make.sh" ] && [ "$dir/disk" -nt "$here/work" ] && exit 0
[ "$(id -u)" = 0 ] || die "needs root"
[ "$(cat "$dir/bootstrapped" 2>/dev/null)" = "$packages" ] || bootstrap
configure
rm -f "$dir/disk.tmp"
mke2fs -q -t ext4 -d "$tree" "$dir/disk.tmp" 3G >/dev/null && mv "$dir/disk.tmp" "$dir/disk" || die "cannot make the disk image"
