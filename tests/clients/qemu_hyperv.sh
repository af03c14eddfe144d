#!/bin/bash
# A Linux guest under QEMU that takes the machine for Hyper-V and uses its clock and timers.
# Usage: qemu_hyperv.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
set -u
anykvm=$1
shift
. "$(dirname "$0")/lib.sh"
boot_demo_guest "$@"
expect "the kernel finds Hyper-V" console_has 'Hypervisor detected: Microsoft Hyper-V'
expect "its clock is the reference TSC page" console_has '^clock: hyperv_clocksource_tsc_page'
finish
