#!/bin/bash
# SeaBIOS loads GRUB from a disk image, its menu is answered over the serial line, and Linux boots from the image.
# Usage: qemu_grub.sh ANYKVM GUEST_DIR QEMU_OPTION... ; the disk is drive "disk".
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/disk.sh"
need qemu-system-x86_64 grub-mkimage mke2fs
need_guest "$guest_dir"

boot=$dir/files/boot
mkdir -p "$boot/grub"
cp -L "$kernel" "$boot/vmlinuz" && cp "$initrd" "$boot/initrd.gz"
cat >"$boot/grub/grub.cfg" <<'END'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=-1
menuentry "Power off" {
  halt
}
menuentry "Linux from the disk" --hotkey=l {
  linux /boot/vmlinuz console=ttyS0 panic=-1 demo=check
  initrd /boot/initrd.gz
}
END
make_disk "$dir/disk" 64 "$dir/files"
put_grub "$dir/disk"

will_type 'for a command-line' l
run_client 80 qemu-system-x86_64 "$@" -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -drive "id=disk,file=$dir/disk,format=raw,if=none"

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "GRUB's title" console_has 'GNU GRUB +version'
expect "the menu's entries" console_has '\*Power off.*Linux from the disk'
expect "the kernel that GRUB loaded" console_has 'Command line: BOOT_IMAGE=/boot/vmlinuz'
expect_guest_check 1
finish
