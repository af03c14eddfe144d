#!/bin/bash
# Firmware that keeps its variables in flash which only system-management mode may write (Secure Boot's): its shell stores
# one, and another machine with the same flash knows it. Usage: qemu_ovmf_smm.sh ANYKVM QEMU_OPTION...
set -u
anykvm=$1
shift
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64
code_image=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd
variables=/usr/share/OVMF/OVMF_VARS_4M.fd
need_files $code_image $variables
cp $variables "$dir/variables"

# host-phys-bits=off: see qemu_ovmf.sh.
machine=(qemu-system-x86_64 "$@" -cpu "host,host-phys-bits=off" -m 512 -nodefaults -no-user-config -display none
  -serial stdio -no-reboot -global ICH9-LPC.disable_s3=1 -global driver=cfi.pflash01,property=secure,value=on
  -drive "if=pflash,unit=0,format=raw,readonly=on,file=$code_image"
  -drive "if=pflash,unit=1,format=raw,file=$dir/variables")
variable='AnyKvm -guid 9d1ff0f4-2f0c-4a0c-8d2b-7f3f5f0a1c55'

will_type 'ESC' '\033' 'Shell> ' "setvar $variable -nv -bs =0x0badcafe\rreset -s\r"
run_client 80 "${machine[@]}"
# Ubuntu's firmware with Secure Boot has left its shell out.
console_has 'No bootable option' && { echo "this firmware has no shell"; exit 77; }
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the shell" console_has 'UEFI Interactive Shell'
[ $failures = 0 ] || finish

will_type 'ESC' '\033' 'Shell> ' "setvar $variable\rreset -s\r"
run_client 80 "${machine[@]}"
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the variable of the first run" console_has '^FE CA AD 0B'
finish
