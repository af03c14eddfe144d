# What the scripts share: messages with timings, packages, builds, and the demo guest. Sourced by bash, not run.
# Everything made goes under build/.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest_dir=$root/build/guest
started=$SECONDS

build_packages=(g++ cmake ninja-build libzydis-dev libasmjit-dev libcli11-dev libfmt-dev libgtest-dev libgmock-dev
  libzstd-dev)
client_packages=(qemu-system-x86 qemu-utils seabios gdb ipxe-qemu ovmf grub-common grub-pc-bin e2fsprogs grub-efi-amd64-bin)
guest_packages=(busybox-static cpio gzip kmod zstd)
source_package=linux-source-6.12  # the kernel's selftests
bench_packages=(python3 libbenchmark-dev)

say() { printf '==> [%3d s] %s\n' $((SECONDS - started)) "$*" >&2; }
die() { printf '==> %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Package lists are fetched once per run, and only if something is needed from them.
lists_are_fresh=no
refresh_lists() {
  [ $lists_are_fresh = yes ] && return
  say "fetching the package lists"
  as_root apt-get update -qq || die "apt-get update failed"
  lists_are_fresh=yes
}

# install_packages NAME...: those that are missing.
install_packages() {
  local missing=() name
  for name in "$@"; do is_installed "$name" || missing+=("$name"); done
  [ ${#missing[@]} = 0 ] && return
  refresh_lists
  say "installing ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" \
    >"$root/build/apt.log" 2>&1 || { tail -20 "$root/build/apt.log" >&2; die "apt-get install failed"; }
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  local dir=$root/build
  [ "$preset" = release ] || dir=$root/build/$preset
  say "building (preset $preset)"
  cmake -S "$root" --preset "$preset" >"$root/build/cmake-$preset.log" 2>&1 ||
    { tail -20 "$root/build/cmake-$preset.log" >&2; die "cmake failed"; }
  # On a terminal ninja counts up in one line; elsewhere only warnings and errors are worth printing.
  local quiet=--quiet
  [ -t 1 ] && quiet=
  cmake --build "$dir" ${1:+--target "$@"} -- $quiet || die "the build failed"
}

# is_package NAME: can it be downloaded? (Ubuntu knows linux-image-amd64 only as a name that others provide.)
is_package() { apt-cache policy "$1" | grep -q '^ *Candidate: [0-9]'; }

# image_package NAME: echoes the image package that the metapackage NAME depends on now, or NAME if it is none.
image_package() {
  is_package "$1" || return 1
  apt-cache depends --no-recommends --no-suggests "$1" |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -1 | grep . || echo "$1"
}

# Echoes the image package to boot: $KERNEL's, or the newest for virtual machines of this distribution.
newest_kernel_package() {
  local name
  for name in ${KERNEL:-linux-image-cloud-amd64 linux-image-virtual linux-image-amd64}; do
    image_package "$name" && return
  done
  return 1
}

# unpack_package PACKAGE DIR: downloads it and unpacks it there; nothing is installed.
unpack_package() {
  local package=$1 dir=$2 deb
  say "downloading $package"
  mkdir -p "$dir"
  # As root, apt would otherwise complain that its own user cannot write here.
  (cd "$dir" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$package") >&2 || die "cannot download $package"
  deb=("$dir"/*.deb)
  say "unpacking $package"
  dpkg-deb -x "${deb[0]}" "$dir" && rm "${deb[0]}" || die "cannot unpack $package"
}

# kernel_of_package PACKAGE: echoes the path of its vmlinuz, downloaded and unpacked if need be.
kernel_of_package() {
  local package=$1 dir=$guest_dir/$1
  if ! compgen -G "$dir/vmlinuz-*" >/dev/null; then
    rm -rf "$dir.tmp"
    unpack_package "$package" "$dir.tmp"
    mkdir -p "$dir" && mv "$dir.tmp"/boot/vmlinuz-* "$dir/" || die "$package has no kernel"
    rm -rf "$dir.tmp"
  fi
  compgen -G "$dir/vmlinuz-*" | head -1
}

# Sets kernel=PATH: $KERNEL if it is a file, else that of the newest package, downloaded if it is not there yet.
choose_kernel() {
  local package
  mkdir -p "$guest_dir"
  if [ -f "${KERNEL:-}" ]; then
    kernel=$KERNEL
    return
  fi
  package=$(newest_kernel_package)
  # An old list may name a version that the archive no longer has.
  if ! compgen -G "$guest_dir/$package/vmlinuz-*" >/dev/null; then
    refresh_lists
    package=$(newest_kernel_package) || die "no kernel package found; name one with KERNEL=linux-image-..."
  fi
  kernel=$(kernel_of_package "$package") || exit 1
  ln -sfn "$package/$(basename "$kernel")" "$guest_dir/vmlinuz"
}

# pack_initrd DIR FILE: as the kernel wants it.
pack_initrd() {
  (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --quiet | gzip -1) >"$2.tmp" &&
    mv "$2.tmp" "$2" || die "cannot make the initial RAM disk"
}

# start_initrd DIR INIT: the tree with busybox and our own /init.
start_initrd() {
  local busybox
  busybox=$(command -v busybox) || die "busybox is not installed"
  rm -rf "$1" && mkdir -p "$1"/{bin,dev,proc,sys,tmp,root}
  install -m 755 "$busybox" "$1/bin/busybox"
  install -m 755 "$2" "$1/init"
}

# Sets initrd=PATH: busybox and our own /init.
make_initrd() {
  local init=$root/tests/guests/demo/init
  initrd=$guest_dir/initrd.gz
  if [ "$initrd" -nt "$init" ] && [ "$initrd" -nt "$(command -v busybox)" ]; then return; fi
  say "making the initial RAM disk"
  start_initrd "$guest_dir/initrd" "$init"
  pack_initrd "$guest_dir/initrd" "$initrd"
}

# The guest that looks at disks and network cards, in $guest_dir/devices: the distribution's kernel for any machine, since
# that for virtual machines lacks drivers, and these modules.
device_modules=(crc32c_generic ext4 sd_mod ahci ata_piix virtio_pci virtio_blk virtio_net e1000 virtio_balloon)

# add_module PACKAGE_DIR NAME DIR: the module behind those that it needs, numbered in the order of loading.
add_module() {
  local package=$1 file name
  file=$(find "$package" -name "${2//[-_]/[-_]}.ko*" -print -quit)
  [ -n "$file" ] || return 0  # built in
  compgen -G "$3/*-$(basename "${file%.ko*}").ko" >/dev/null && return
  for name in $(modinfo -F depends "$file" | tr , ' '); do add_module "$package" "$name" "$3"; done
  case $file in
    *.xz) xz -d "$file" ;;
    *.zst) zstd -q -d "$file" ;;
  esac || die "cannot unpack $file"
  file=${file%.xz}
  file=${file%.zst}
  cp "$file" "$3/$(printf %02d "$(find "$3" -name '*.ko' | wc -l)")-$(basename "$file")"
}

# make_modules_initrd PACKAGE_DIR DIR INIT MODULE...: DIR/initrd.gz
make_modules_initrd() {
  local package=$1 dir=$2 init=$3 module
  shift 3
  start_initrd "$dir/initrd" "$init"
  mkdir "$dir/initrd/modules" "$dir/initrd/mnt"
  for module in "$@"; do add_module "$package" "$module" "$dir/initrd/modules"; done
  pack_initrd "$dir/initrd" "$dir/initrd.gz"
}

# The guest that is a hypervisor, in $guest_dir/nested: the same kernel, and KVM. Tests lay its own guest over it.
make_devices_guest() {
  local dir=$guest_dir/devices nested=$guest_dir/nested guests=$root/tests/guests package part
  package=$(image_package "${DEVICES_KERNEL:-linux-image-amd64}" || image_package linux-image-generic) ||
    die "no kernel package with drivers found; name one with DEVICES_KERNEL=linux-image-..."
  if [ "$dir/initrd.gz" -nt "$guests/devices/init" ] && [ "$nested/initrd.gz" -nt "$guests/nested/init" ] &&
    [ "$dir/initrd.gz" -nt "${BASH_SOURCE[0]}" ]; then return; fi
  rm -rf "$dir/package"
  # Ubuntu has the modules in packages of their own.
  for part in "$package" "${package/image/modules}" "${package/image/modules-extra}"; do
    ! is_package "$part" || unpack_package "$part" "$dir/package"
  done
  mv "$dir"/package/boot/vmlinuz-* "$dir/vmlinuz" || die "$package has no kernel"
  make_modules_initrd "$dir/package" "$nested" "$guests/nested/init" kvm-amd
  ln -sfn ../devices/vmlinuz "$nested/vmlinuz"
  make_modules_initrd "$dir/package" "$dir" "$guests/devices/init" "${device_modules[@]}"
  rm -rf "$dir/package"
}

prepare_guest() {
  install_packages "${guest_packages[@]}"
  choose_kernel
  make_initrd
}
