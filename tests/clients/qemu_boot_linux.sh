#!/bin/bash
# QEMU boots the demo guest's kernel. Usage: qemu_boot_linux.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
# Exit code 77: QEMU or the guest is missing (scripts/check brings both).
set -u
anykvm=$1 guest_dir=$2 cpus=$3
shift 3
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64
kernel=$guest_dir/vmlinuz
[ -f "${KERNEL:-}" ] && kernel=$KERNEL
for file in "$kernel" "$guest_dir/initrd.gz"; do
  [ -e "$file" ] || { echo "no $file: run scripts/check first"; exit 77; }
done

run_client 60 qemu-system-x86_64 "$@" -smp "$cpus" -m 512 -nodefaults -no-user-config -display none -serial stdio \
  -no-reboot -kernel "$kernel" -initrd "$guest_dir/initrd.gz" -append "console=ttyS0 panic=-1 demo=check"

# sha256sum of 4,000,000 zero bytes
sum=8dbe5f139fd946d4cd84e8cc612cd9f68cbc87e394457884acc0c5dad56dd8dd
last=$((cpus - 1))
online=0
[ "$last" -gt 0 ] && online=0-$last

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "all CPUs online" console_has "^cpus online: $online.?\$"
expect "the same sum on every CPU" console_has "^sums: $sum .?\$"
expect "the last line of the guest" console_has '^guest check done'
expect_calm_kernel
finish
