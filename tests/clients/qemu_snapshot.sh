#!/bin/bash
# Pause and resume, savevm and loadvm while the guest computes; then the snapshot is loaded by a QEMU that starts with
# it. Usage: qemu_snapshot.sh ANYKVM GUEST_DIR CPUS QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2 cpus=$3
shift 3
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/compute.sh"
need qemu-system-x86_64 qemu-img
make_compute_guest "$guest_dir"
qemu-img create -q -f qcow2 "$dir/snapshots" 64M || exit 1
options=("$@" -smp "$cpus" -m 256 -drive "if=none,id=snapshots,file=$dir/snapshots,format=qcow2")

start_qemu first "$dir/console1" "${options[@]}"
expect "the guest computes" wait_for "$dir/console1" 'chain 0: round'
for _ in 1 2 3; do
  tell first stop
  expect "it pauses" ask first 'info status' 'VM status: paused'
  sleep 0.3  # for what is still in the console's pipe
  paused_at=$(last_round "$dir/console1")
  sleep 0.5
  expect "a paused guest stands still" [ "$(last_round "$dir/console1")" = "$paused_at" ]
  tell first cont
  expect "it resumes" ask first 'info status' 'VM status: running'
done
tell first 'savevm middle'
expect "the snapshot is there" ask first 'info snapshots' '(--|[0-9]) +middle +[0-9]'
saved_at=$(last_round "$dir/console1")
sleep 1
tell first 'loadvm middle'
expect "it runs again" ask first 'info status' 'VM status: running'
enough first "$dir/console1"
end_qemu first
expect "exit code 0, not $code" [ $code = 0 ]
expect "saved in the middle (round $saved_at)" [ "${saved_at:-0}" -gt 0 ]
expect_served_by_anykvm
expect_computed "$cpus" "$dir/console1"

start_qemu second "$dir/console2" "${options[@]}" -loadvm middle
expect "the guest goes on" wait_for "$dir/console2" 'chain 0: round'
enough second "$dir/console2"
end_qemu second
expect "exit code 0, not $code" [ $code = 0 ]
expect_computed "$cpus" "$dir/console2"
finish
