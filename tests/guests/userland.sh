#!/bin/bash
# Real programs must do in the guest what they do on the host: the same work on both, the outputs compared byte by byte.
# Usage: userland.sh ANYKVM GUEST_DIR CPUS. Exit code 77: the guest has not been made and cannot be (scripts/check makes it).
set -u
anykvm=$1 guest_dir=$2 cpus=$3
here=$(cd "$(dirname "$0")" && pwd)
kernel=$guest_dir/vmlinuz
[ -f "${KERNEL:-}" ] && kernel=$KERNEL
[ -e "$kernel" ] || { echo "no $kernel: run scripts/check first"; exit 77; }
"$here/userland/make.sh" "$guest_dir" || exit 77
tree=$guest_dir/userland/tree

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/work"
"$tree/bin/busybox" sh "$tree/share/work.sh" "$(realpath "$tree")" "$dir/work" >"$dir/host" 2>&1
"$anykvm" run --accel anykvm --kernel "$kernel" --initrd "$guest_dir/userland/initrd.gz" --append quiet \
  --cpus "$cpus" --memory 512M --timeout 100 </dev/null >"$dir/console" 2>"$dir/messages"
code=$?
tr -d '\r' <"$dir/console" | sed -n '/^== begin$/,/^== end$/p' | sed '1d;$d' >"$dir/guest"

. "$(dirname "$0")/../expect.sh"
expect "exit code 0, not $code" [ $code = 0 ]
expect "the engine was anykvm" grep -q "(engine anykvm, $cpus vCPU" "$dir/messages"
expect "the host did all of it" grep -q '^== busybox' "$dir/host"
expect "the guest's output is the host's" diff "$dir/host" "$dir/guest"
expect "no complaint of the kernel" grep -qa '^complaints: 0' "$dir/console"
if [ $failures != 0 ]; then
  echo "--- console"
  tr -d '\r' <"$dir/console"
  echo "--- messages"
  cat "$dir/messages"
  exit 1
fi
echo "$(wc -l <"$dir/host") lines agree"
cat "$dir/messages"
