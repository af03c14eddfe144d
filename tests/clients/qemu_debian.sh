#!/bin/bash
# A whole Debian boots to its login prompt without a failed unit or a kernel warning; root logs in, installs a package,
# compiles a program and runs stress-ng. Takes minutes, so it is not among ctest's tests: scripts/debian-guest runs it.
# Usage: qemu_debian.sh ANYKVM GUEST_DIR CPUS SECONDS QEMU_OPTION... ; SECONDS is for stress-ng.
set -u
anykvm=$1 guest=$2/debian cpus=$3 seconds=$4
shift 4
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 e2fsck
need_files "$guest/disk" "$guest/vmlinuz" "$guest/initrd.img"
cp --sparse=always --reflink=auto "$guest/disk" "$dir/disk" || exit 1

will_type 'login: $' 'root\r' '# $' "./work $seconds\r"
began=$SECONDS
run_client $((seconds + 600)) qemu-system-x86_64 "$@" -smp "$cpus" -m 2048 -nodefaults -no-user-config -display none \
  -serial stdio -no-reboot -kernel "$guest/vmlinuz" -initrd "$guest/initrd.img" \
  -append "console=ttyS0 panic=-1 root=/dev/vda" -drive "file=$dir/disk,format=raw,if=virtio" \
  -netdev user,id=net -device virtio-net-pci,netdev=net
elapsed=$((SECONDS - began))

# What Debian's configuration of the kernel says about itself, on hardware too.
harmless='CONFIG_IMA_DISABLE_HTABLE'

nothing_between() { # nothing_between FIRST LAST: no line between these two
  tr -d '\r' <"$dir/console" | sed -n "/^$1\$/,/^$2\$/p" | grep -vE "$harmless" >"$dir/part"
  [ "$(wc -l <"$dir/part")" = 2 ] || { cat "$dir/part"; false; }
}
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "systemd is content" console_has '^state: running'
expect "no unit failed" console_has '^failed units: .?$'
expect "all CPUs" console_has "^cpus: $cpus.?\$"
expect "no kernel warning" nothing_between "== kernel warnings" "== end of kernel warnings"
for what in "package installed from a folder" "package works" "compiler" "compiled program" "stress-ng"; do
  expect "$what" console_has "^passed: $what"
done
expect "no unit failed in the end" console_has '^failed units afterwards: .?$'
expect "no kernel warning in the end" nothing_between "== kernel warnings afterwards" "== end of kernel warnings afterwards"
expect "the last line of the guest" console_has '^work done'
expect_calm_kernel
expect "the file system is clean" e2fsck -fn "$dir/disk" >"$dir/e2fsck" 2>&1
echo "$cpus CPUs, $elapsed s from start to power-off"
grep -aE '^Startup finished|stress-ng: (info|metrc)' "$dir/console" | tr -d '\r'
[ $failures = 0 ] || tr -d '\r' <"$dir/console" | sed -n '/# ..work/,/^work done/p'
finish
