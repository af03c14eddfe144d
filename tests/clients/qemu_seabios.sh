#!/bin/bash
# SeaBIOS comes up in real mode, finds nothing to boot and says so on the serial line. Usage: qemu_seabios.sh ANYKVM
# QEMU_OPTION...
set -u
anykvm=$1
shift
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64

# The debug port's text says how far the firmware came; reboot-timeout ends the guest after "No bootable device".
run_client 40 qemu-system-x86_64 "$@" -m 128 -nodefaults -no-user-config -display none -no-reboot -boot reboot-timeout=100 \
  -chardev "file,id=firmware,path=$dir/firmware" -device isa-debugcon,iobase=0x402,chardev=firmware

firmware_has() { grep -aq "$1" "$dir/firmware"; }
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the firmware's version" firmware_has '^SeaBIOS (version'
expect "its end" firmware_has 'No bootable device'
[ $failures = 0 ] || { echo "--- firmware"; tail -30 "$dir/firmware"; }
finish
