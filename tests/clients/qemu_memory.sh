#!/bin/bash
# Kinds of memory under the guest, and a second VM beside the first. Usage: qemu_memory.sh ANYKVM GUEST_DIR
# memfd|hugepages|mem-lock|two QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2 kind=$3
shift 3
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/compute.sh"
need qemu-system-x86_64
numbers=300000
make_compute_guest "$guest_dir"
options=("$@" -smp 2 -m 256)

# Huge pages for the time of the test, if the host has them to give.
reserve_huge_pages() { # reserve_huge_pages COUNT
  local setting=/proc/sys/vm/nr_hugepages
  huge_before=$(cat $setting)
  trap 'echo "$huge_before" >/proc/sys/vm/nr_hugepages; clean_up' EXIT
  { echo $((huge_before + $1)) >$setting; } 2>/dev/null
  [ "$(awk '/HugePages_Free/ {print $2}' /proc/meminfo)" -ge "$1" ]
}

case $kind in
  memfd) options+=(-object memory-backend-memfd,id=ram,size=256M -machine memory-backend=ram) ;;
  hugepages)
    reserve_huge_pages 128 || { echo "no 128 huge pages of 2 MiB to be had: needs root and free memory"; exit 77; }
    options+=(-object memory-backend-memfd,id=ram,size=256M,hugetlb=on,hugetlbsize=2M -machine memory-backend=ram)
    ;;
  mem-lock)
    ulimit -l unlimited 2>/dev/null
    [ "$(ulimit -l)" = unlimited ] || [ "$(id -u)" = 0 ] || { echo "memory may not be locked: needs root"; exit 77; }
    options+=(-overcommit mem-lock=on)
    ;;
  two) ;;
  *) echo "what is $kind?"; exit 1 ;;
esac

start_qemu one "$dir/console1" "${options[@]}"
[ $kind != two ] || start_qemu other "$dir/console2" "${options[@]}"
if [ $kind = mem-lock ]; then
  expect "the guest computes" wait_for "$dir/console1" 'computing'
  expect "QEMU's memory is locked" [ "$(awk '/VmLck/ {print $2}' "/proc/$(qemu_process one)/status")" -ge 262144 ]
fi
enough one "$dir/console1"
[ $kind != two ] || enough other "$dir/console2"
end_qemu one
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect_computed 2 "$dir/console1"
if [ $kind = two ]; then
  end_qemu other
  expect "exit code 0, not $code" [ $code = 0 ]
  expect_computed 2 "$dir/console2"
fi
finish
