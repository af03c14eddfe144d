#!/bin/bash
# UEFI: the firmware runs from flash and its shell stores a variable there. Another machine with the same flash knows the
# variable, starts GRUB from a FAT disk, and that Linux.
# Usage: qemu_ovmf.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 grub-mkimage
need_guest "$guest_dir"
code_image=/usr/share/OVMF/OVMF_CODE_4M.fd
variables=/usr/share/OVMF/OVMF_VARS_4M.fd
need_files $code_image $variables
cp $variables "$dir/variables"

# host-phys-bits=off: this firmware makes page tables for all of the CPU's physical addresses, with pages of 2 MiB. For 48
# bits that takes 512 MiB.
machine=(qemu-system-x86_64 "$@" -cpu "host,host-phys-bits=off" -m 512 -nodefaults -no-user-config -display none
  -serial stdio -no-reboot
  -drive "if=pflash,unit=0,format=raw,readonly=on,file=$code_image"
  -drive "if=pflash,unit=1,format=raw,file=$dir/variables")

# Hexadecimal digits of FILE's bytes.
hex() { od -An -v -tx1 "$1" | tr -d ' \n'; }

variable='AnyKvm -guid 9d1ff0f4-2f0c-4a0c-8d2b-7f3f5f0a1c55'

will_type 'ESC' '\033' 'Shell> ' "setvar $variable -nv -bs =0x0badcafe\rreset -s\r"
run_client 60 "${machine[@]}"
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the shell" console_has 'UEFI Interactive Shell'
# "AnyKvm" in UTF-16, its end, and the value
expect "the variable in flash" grep -q 41006e0079004b0076006d000000feca <(hex "$dir/variables")
[ $failures = 0 ] || finish

# GRUB uses the firmware's console: reading the serial port itself, it would compete with the firmware for each key.
boot=$dir/files/EFI/BOOT
mkdir -p "$boot"
cp -L "$kernel" "$boot/vmlinuz" && cp "$initrd" "$boot/initrd.gz"
cat >"$boot/grub.cfg" <<'END'
set timeout=-1
menuentry "Power off" {
  halt
}
menuentry "Linux" --hotkey=l {
  linux /EFI/BOOT/vmlinuz console=ttyS0 panic=-1 demo=check
  initrd /EFI/BOOT/initrd.gz
}
END
grub-mkimage -O x86_64-efi -p /EFI/BOOT -o "$boot/BOOTX64.EFI" fat part_msdos normal configfile linux halt ||
  exit 1

will_type 'ESC' '\033' 'Shell> ' "setvar $variable\rFS0:\\\\EFI\\\\BOOT\\\\BOOTX64.EFI\r" 'for a command-line' l
run_client 80 "${machine[@]}" -drive "id=disk,if=none,format=raw,readonly=on,file=fat:$dir/files" \
  -device virtio-blk-pci,drive=disk
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the variable of the first run" console_has '^FE CA AD 0B'
expect "GRUB's title" console_has 'GNU GRUB +version'
expect "Linux knows its firmware" console_has 'efi: EFI v2.* by '
expect_guest_check 1
finish
