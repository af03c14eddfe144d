# What the scripts share: messages with timings, packages, builds, and the demo guest. Sourced by bash, not run.
# Everything made goes under build/.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest_dir=$root/build/guest
started=$SECONDS

build_packages=(g++ cmake ninja-build libzydis-dev libasmjit-dev libcli11-dev libfmt-dev libgtest-dev libgmock-dev
  libzstd-dev)
client_packages=(qemu-system-x86 seabios gdb ipxe-qemu ovmf grub-common grub-pc-bin e2fsprogs grub-efi-amd64-bin)
guest_packages=(busybox-static cpio gzip)
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

# image_package NAME: echoes the image package that the metapackage NAME depends on now, or NAME if it is none.
image_package() {
  apt-cache show "$1" >/dev/null 2>&1 || return 1
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

# kernel_of_package PACKAGE: echoes the path of its vmlinuz, downloaded and unpacked (not installed) if need be.
kernel_of_package() {
  local package=$1 dir=$guest_dir/$1 deb
  if ! compgen -G "$dir/vmlinuz-*" >/dev/null; then
    say "downloading $package"
    rm -rf "$dir.tmp" && mkdir -p "$dir.tmp"
    # As root, apt would otherwise complain that its own user cannot write here.
    (cd "$dir.tmp" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$package") >&2 ||
      die "cannot download $package"
    deb=("$dir.tmp"/*.deb)
    say "unpacking $package"
    dpkg-deb -x "${deb[0]}" "$dir.tmp/x" || die "cannot unpack $package"
    mkdir -p "$dir" && mv "$dir.tmp"/x/boot/vmlinuz-* "$dir/" || die "$package has no kernel"
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

# Sets initrd=PATH: busybox and our own /init.
make_initrd() {
  initrd=$guest_dir/initrd.gz
  local dir=$guest_dir/initrd busybox
  busybox=$(command -v busybox) || die "busybox is not installed"
  if [ "$initrd" -nt "$root/tests/guests/demo/init" ] && [ "$initrd" -nt "$busybox" ]; then return; fi
  say "making the initial RAM disk"
  rm -rf "$dir" && mkdir -p "$dir"/{bin,dev,proc,sys,tmp,root}
  install -m 755 "$busybox" "$dir/bin/busybox"
  install -m 755 "$root/tests/guests/demo/init" "$dir/init"
  (cd "$dir" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --quiet | gzip -1) >"$initrd.tmp" &&
    mv "$initrd.tmp" "$initrd" || die "cannot make the initial RAM disk"
}

prepare_guest() {
  install_packages "${guest_packages[@]}"
  choose_kernel
  make_initrd
}
