#!/bin/bash
# Makes the userland guest: an initial RAM disk with Python and OpenSSL of this distribution and a program of our own.
# Usage: make.sh GUEST_DIR. Packages are downloaded by apt-get and unpacked, not installed; nothing is done if all is new.
set -u
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/userland" || exit 1
dir=$(cd "$1/userland" && pwd)
tree=$dir/tree
die() { echo "userland guest: $*" >&2; exit 1; }

wanted='^(libc6|libgcc-s1|zlib1g|libexpat1|libmpdec[0-9]+|libssl3[a-z0-9]*|openssl|libzstd1|python3\.[0-9]+-minimal|libpython3\.[0-9]+-(minimal|stdlib))$'
packages() {
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    python3-minimal libpython3-stdlib openssl 2>/dev/null | grep -E "$wanted" | sort -u
}

unpack_packages() {
  rm -rf "$dir/packages" && mkdir -p "$dir/packages/unpacked" || die "cannot make $dir/packages"
  local names
  names=$(packages)
  [ -n "$names" ] || die "apt-cache knows no packages; run apt-get update"
  # shellcheck disable=SC2086
  (cd "$dir/packages" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" $names) >"$dir/apt.log" 2>&1 ||
    die "apt-get download failed: $(tail -1 "$dir/apt.log")"
  local deb
  for deb in "$dir"/packages/*.deb; do
    dpkg-deb -x "$deb" "$dir/packages/unpacked" || die "cannot unpack $deb"
  done
  touch "$dir/packages/complete"
}

copy_tree() {
  local from=$dir/packages/unpacked python
  rm -rf "$tree" && mkdir -p "$tree"/{bin,lib,lib64,share,usr/lib} || die "cannot make $tree"
  python=$(basename "$(compgen -G "$from/usr/bin/python3.*" | head -1)")
  [ -n "$python" ] || die "there is no python3 among the packages"
  cp -L "$from/usr/bin/$python" "$tree/bin/python3" && cp -L "$from/usr/bin/openssl" "$tree/bin/" || die "no programs"
  cp -a "$from/usr/lib/$python" "$tree/usr/lib/" || die "no Python library"
  rm -rf "$tree/usr/lib/$python"/{test,idlelib,lib2to3,ensurepip,pydoc_data,distutils,__pycache__}
  local libs=("$from"/lib/x86_64-linux-gnu/*.so* "$from"/usr/lib/x86_64-linux-gnu/*.so*) lib
  for lib in "${libs[@]}"; do [ -f "$lib" ] && cp -L "$lib" "$tree/lib/"; done
  cp -L "$tree/lib/ld-linux-x86-64.so.2" "$tree/lib64/" || die "no loader"
  "$tree/lib64/ld-linux-x86-64.so.2" --library-path "$tree/lib" "$tree/bin/openssl" genpkey -algorithm RSA \
    -pkeyopt rsa_keygen_bits:2048 -out "$tree/share/rsa.pem" 2>/dev/null || die "openssl does not run"
}

copy_our_files() {
  cp -L "$(command -v busybox)" "$tree/bin/busybox" || die "busybox is not installed"
  "${CXX:-c++}" -std=c++20 -O2 -static -pthread "$here/program.cpp" -o "$tree/bin/program" || die "cannot compile program.cpp"
  cp "$here/check.py" "$here/work.sh" "$tree/share/" && install -m 755 "$here/init" "$tree/init" || die "cannot copy"
}

[ "$dir/packages/complete" -nt "$here/make.sh" ] || unpack_packages
for file in make.sh init work.sh check.py program.cpp; do
  [ "$dir/initrd.gz" -nt "$here/$file" ] || stale=yes
done
if [ "${stale:-no}" = yes ]; then
  copy_tree
  copy_our_files
  (cd "$tree" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --quiet | gzip -1) >"$dir/initrd.tmp" &&
    mv "$dir/initrd.tmp" "$dir/initrd.gz" || die "cannot make the initial RAM disk"
fi
