#!/bin/bash
# The BIOS's option ROMs: SeaBIOS runs the VGA BIOS and iPXE, its boot menu is answered, and iPXE boots Linux over TFTP.
# Usage: qemu_netboot.sh ANYKVM GUEST_DIR NETWORK_DEVICE QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2 device=$3
shift 3
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64
need_guest "$guest_dir"

mkdir "$dir/tftp"
cp -L "$kernel" "$dir/tftp/vmlinuz" && cp "$initrd" "$dir/tftp/initrd.gz"
cat >"$dir/tftp/boot.ipxe" <<'END'
#!ipxe
kernel vmlinuz console=ttyS0 panic=-1 demo=check initrd=initrd.gz
initrd initrd.gz
boot
END

# Without graphics SeaBIOS's own console, which the ROMs use too, is the serial line.
will_type 'Press ESC for boot menu' '\033' '^2\. iPXE' 2
run_client 80 qemu-system-x86_64 "$@" -M graphics=off -m 512 -nodefaults -no-user-config -display none -serial stdio \
  -no-reboot -boot menu=on -device "$device,netdev=net" \
  -netdev "user,id=net,restrict=on,tftp=$dir/tftp,bootfile=boot.ipxe" \
  -chardev "file,id=firmware,path=$dir/firmware" -device isa-debugcon,iobase=0x402,chardev=firmware

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the VGA BIOS" grep -aq 'Turning on vga text mode console' "$dir/firmware"
expect "iPXE" console_has 'Open Source Network Boot Firmware'
expect "its address by DHCP" console_has '^net0: 10\.0\.2\.15/255'
expect "the script that it loaded" console_has 'boot.ipxe : [0-9]+ bytes \[script\]'
expect_guest_check 1
finish
