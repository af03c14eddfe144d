#!/bin/bash
# QEMU boots the demo guest's kernel. Usage: qemu_boot_linux.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
# Exit code 77: QEMU or the guest is missing (scripts/check brings both).
set -u
anykvm=$1
shift
. "$(dirname "$0")/lib.sh"
boot_demo_guest "$@"
finish
