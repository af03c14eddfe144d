#!/bin/bash
# A Linux guest under QEMU that takes the machine for Hyper-V and uses its clock and timers.
# Usage: qemu_hyperv.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
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
expect "the kernel finds Hyper-V" console_has 'Hypervisor detected: Microsoft Hyper-V'
expect "its clock is the reference TSC page" console_has '^clock: hyperv_clocksource_tsc_page'
finish
