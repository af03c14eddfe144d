#!/bin/bash
# QEMU boots the demo guest's kernel. Usage: qemu_boot_linux.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
# Exit code 77: QEMU or the guest is missing (scripts/check brings both).
set -u
anykvm=$1 guest_dir=$2 cpus=$3
shift 3
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64
need_guest "$guest_dir"

run_client 60 qemu-system-x86_64 "$@" -smp "$cpus" -m 512 -nodefaults -no-user-config -display none -serial stdio \
  -no-reboot -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 panic=-1 demo=check"

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect_guest_check "$cpus"
finish
