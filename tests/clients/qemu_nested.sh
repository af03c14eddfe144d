#!/bin/bash
# Linux in Linux: QEMU's guest is a hypervisor, whose KVM runs the demo guest. Usage: qemu_nested.sh ANYKVM GUEST_DIR CPUS
# WORDS QEMU_OPTION... ; WORDS are more for the hypervisor's command line.
set -u
anykvm=$1 guest_dir=$2 cpus=$3 words=$4
shift 4
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/nested.sh"
need qemu-system-x86_64
need_guest "$guest_dir"
make_hypervisor_guest "$guest_dir" "$kernel" "$initrd"
run_client 100 qemu-system-x86_64 "$@" -smp "$cpus" -m 1024 -nodefaults -no-user-config -display none -serial stdio \
  -no-reboot -kernel "$kernel" -initrd "$initrd" \
  -append "console=ttyS0 quiet panic=-1 cpus=$cpus words=demo=check $words"
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect_nested_guest "$cpus"
expect_guest_check "$cpus"
finish
