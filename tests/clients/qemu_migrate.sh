#!/bin/bash
# Live migration to a second QEMU on this host while the guest computes. Usage: qemu_migrate.sh ANYKVM GUEST_DIR CPUS
# QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2 cpus=$3
shift 3
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/compute.sh"
need qemu-system-x86_64
make_compute_guest "$guest_dir"
options=("$@" -smp "$cpus" -m 256)

start_qemu target "$dir/console2" "${options[@]}" -incoming "unix:$dir/socket"
start_qemu source "$dir/console1" "${options[@]}"
expect "the guest computes" wait_for "$dir/console1" 'chain 0: round' 60
expect "the target waits" ask target 'info status' 'inmigrate'
tell source 'migrate_set_parameter max-bandwidth 1G'
tell source "migrate -d unix:$dir/socket"
expect "the migration completes" ask source 'info migrate' 'Migration status: completed'
moved_at=$(last_round "$dir/console1")
expect "the source has stopped" ask source 'info status' 'postmigrate'
tell source quit
end_qemu source
expect "the target goes on" wait_for "$dir/console2" 'chain 0: round'
enough target "$dir/console2"
end_qemu target
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "it moved in the middle (round $moved_at)" [ "${moved_at:-0}" -gt 0 ]
expect_computed "$cpus" "$dir/console1" "$dir/console2"
[ $failures = 0 ] || tail -5 "$dir/source.out" "$dir/target.out"
finish
