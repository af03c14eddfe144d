# Disk images, made without root and without loop devices. Sourced by bash after lib.sh.

partition_start=2048  # sectors; the gap before it is for GRUB

le32() { # le32 NUMBER: as four bytes, for printf
  printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))
}

# make_disk IMAGE MEBIBYTES DIRECTORY: an MBR with one active partition, in it ext4 with the directory's files.
make_disk() {
  local image=$1 sectors=$(($2 * 2048)) files=$3
  truncate -s "$2M" "$image" &&
    mke2fs -q -t ext4 -d "$files" -E offset=$((partition_start * 512)) "$image" $(((sectors - partition_start) / 2))k &&
    printf "\\x80\\xfe\\xff\\xff\\x83\\xfe\\xff\\xff$(le32 $partition_start)$(le32 $((sectors - partition_start)))" |
    dd of="$image" bs=1 seek=446 conv=notrunc status=none &&
    printf '\x55\xaa' | dd of="$image" bs=1 seek=510 conv=notrunc status=none ||
    { echo "cannot make a disk image"; exit 1; }
}

# put_grub IMAGE: the BIOS's GRUB, which reads /boot/grub/grub.cfg of the partition. The boot sector loads what follows
# it, as both images expect where nothing else was written into them.
put_grub() {
  grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$dir/grub" \
    biosdisk part_msdos ext2 normal configfile serial terminal linux halt &&
    dd if=/usr/lib/grub/i386-pc/boot.img of="$1" bs=440 count=1 conv=notrunc status=none &&
    dd if="$dir/grub" of="$1" bs=512 seek=1 conv=notrunc status=none ||
    { echo "cannot install GRUB in the image"; exit 1; }
}
