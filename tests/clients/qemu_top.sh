#!/bin/bash
# `anykvm top` looks at QEMU while its guest computes: counters of two vCPUs that go up, and nothing to see when it is gone.
# Usage: qemu_top.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/compute.sh"
need qemu-system-x86_64
make_compute_guest "$guest_dir"

start_qemu one "$dir/console1" "$@" -smp 2 -m 256
expect "the guest computes" wait_for "$dir/console1" 'chain 1: round'
qemu=$(qemu_process one)
timeout 20 "$anykvm" top "$qemu" --samples 2 --interval 0.5 >"$dir/top" 2>>"$dir/messages"
code=$?
expect "exit code 0 of top, not $code" [ $code = 0 ]
cp "$dir/console1" "$dir/console"
expect "the guest went on meanwhile" console_lacks '^compute guest done'

expect "two tables of two vCPUs" [ "$(grep -cE '^counter +total +a second +2 vCPUs$' "$dir/top")" = 2 ]
total() { awk -v name="$1" -v table="$2" '/^counter/ {++n} $1 == name && n == table {print $2}' "$dir/top"; }
a_second() { awk -v name="$1" '/^counter/ {++n} $1 == name && n == 2 {print $3}' "$dir/top"; }
for counter in runs exits_io exits_mmio halts lookups interrupts exceptions tlb_misses tlb_flushes blocks_translated \
  instructions_translated world_stops; do
  expect "$counter were counted" [ "$(total $counter 1)" -gt 0 ]
  expect "$counter do not go down" [ "$(total $counter 2)" -ge "$(total $counter 1)" ]
done
for counter in lookups interrupts exceptions tlb_misses; do
  expect "$counter go up" [ "$(total $counter 2)" -gt "$(total $counter 1)" ]
  expect "$counter a second" [ "$(a_second $counter)" -gt 0 ]
done
expect "blocks have instructions" [ "$(total instructions_translated 2)" -gt "$(total blocks_translated 2)" ]

tell one quit
end_qemu one
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "nothing to see of a process that is gone" grep -q 'no such process' <<<"$("$anykvm" top "$qemu" 2>&1)"
finish
