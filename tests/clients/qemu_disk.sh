#!/bin/bash
# A guest reads what the host wrote on a disk and writes files of its own; the host then looks at file system and data.
# Usage: qemu_disk.sh ANYKVM GUEST_DIR DEVICE_FILE QEMU_OPTION... ; the disk is drive "disk".
set -u
anykvm=$1 guest=$2/devices device=$3
shift 3
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/disk.sh"
need qemu-system-x86_64 mke2fs e2fsck debugfs
need_files "$guest/vmlinuz" "$guest/initrd.gz"

sum_check() { (cd "$dir/after" && sha256sum --quiet -c "$1"); }

mkdir "$dir/files" "$dir/after"
for size in 1 4096 65537 3000001; do head -c $size /dev/urandom >"$dir/files/$size"; done
(cd "$dir/files" && sha256sum ./* >../host.sums && mv ../host.sums .)
make_disk "$dir/disk" 192 "$dir/files"

run_client 120 qemu-system-x86_64 "$@" -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -kernel "$guest/vmlinuz" -initrd "$guest/initrd.gz" -append "console=ttyS0 panic=-1 disk=${device}1" \
  -drive "id=disk,file=$dir/disk,format=raw,if=none"

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the guest's checks" console_lacks '^FAILED'
expect "its files read back" console_has '^passed: our files'
expect "the last line of the guest" console_has '^device check done'
expect "no error of the device" console_lacks 'I/O error|exception Emask|EXT4-fs error|timed out|timeout'
expect_calm_kernel
file_system="$dir/disk?offset=$((partition_start * 512))"
expect "the file system is clean" e2fsck -fn "$file_system" >"$dir/e2fsck" 2>&1
debugfs -R "rdump / $dir/after" "$file_system" >/dev/null 2>&1
expect "the host's files, seen from the host" sum_check host.sums
expect "the guest's files, seen from the host" sum_check guest.sums
[ $failures = 0 ] || cat "$dir/e2fsck"
finish
