#!/bin/bash
# QEMU's monitor takes memory from a guest that computes and gives it back (virtio-balloon); the host gets it meanwhile.
# Usage: qemu_balloon.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest=$2/devices
shift 2
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/compute.sh"
need qemu-system-x86_64
need_files "$guest/vmlinuz" "$guest/initrd.gz"
KERNEL=
numbers=300000 guest_words=balloon=170000
make_compute_guest "$guest"
filled=$(yes "the guest fills its memory" 2>/dev/null | head -c 80000000 | sha256sum)

# MiB of QEMU's memory that the host has given.
resident() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$(qemu_process one)/status"; }

start_qemu one "$dir/console1" "$@" -m 256 -device virtio-balloon-pci
expect "the guest has filled its memory" wait_for "$dir/console1" 'balloon, please' 90
full=$(resident)
expect "the balloon is empty" ask one 'info balloon' 'actual=256'
tell one 'balloon 120'
expect "the guest has less memory" wait_for "$dir/console1" 'memory is small' 60
expect "the balloon is full" ask one 'info balloon' 'actual=120'
small=$(resident)
tell one 'balloon 256'
expect "the guest has its memory again" wait_for "$dir/console1" 'memory is large' 60
expect "the balloon is empty again" ask one 'info balloon' 'actual=256'
enough one "$dir/console1"
end_qemu one
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "50 MiB less of the host's memory ($full MiB, then $small)" [ $((full - small)) -ge 50 ]
expect_computed 2 "$dir/console1"
expect "the modules" console_lacks '^FAILED'
for when in before after; do expect "memory $when" console_has "^fill $when: ${filled%% *}"; done
finish
