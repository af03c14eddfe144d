#!/bin/bash
# The guest reboots itself, QEMU's monitor looks at it, stops it and lets it go on, and the second time the guest switches
# the power off by ACPI. Usage: qemu_power.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64
need_guest "$guest_dir"

client_input=$dir/keyboard
mkfifo "$dir/keyboard" "$dir/monitor.in" "$dir/monitor.out" && : >"$dir/console" || exit 1
count() { grep -acE "$1" "$dir/console"; }
wait_for() { until [ "$(count "$2")" -ge "$1" ]; do sleep 0.1; done; } # wait_for TIMES PATTERN
answered() { grep -aqE "$1" "$dir/answers"; }
(
  exec 3>"$dir/keyboard" 4>"$dir/monitor.in"
  cat "$dir/monitor.out" >"$dir/answers" &
  wait_for 1 'A shell in the guest'
  printf 'reboot -f\n' >&3
  wait_for 2 'A shell in the guest'
  printf '%s\n' 'stop' 'info status' 'info registers' 'cont' 'info status' >&4
  until answered '^VM status: running'; do sleep 0.1; done
  printf 'echo sum-$((40 + 2))\n' >&3
  wait_for 1 '^sum-42'
  printf 'poweroff -f\n' >&3
  wait
) &
companions+=($!)

run_client 60 qemu-system-x86_64 "$@" -m 256 -nodefaults -no-user-config -display none -serial stdio \
  -chardev "pipe,id=monitor,path=$dir/monitor" -mon chardev=monitor -kernel "$kernel" -initrd "$initrd" \
  -append "console=ttyS0 panic=-1 demo=shell"

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "two boots" [ "$(count '^\[ *0\.0+\] Linux version')" = 2 ]
expect "reboot" console_has 'reboot: Restarting system'
expect "power-off" console_has 'reboot: Power down'
expect "paused" answered '^VM status: paused'
expect "running again" answered '^VM status: running'
# In the kernel, most likely; the shell may still be about something.
expect "registers of a 64-bit CPU" answered '^RIP=(ffffffff[0-9a-f]{8}|0000[0-9a-f]{12}) RFL='
expect "its code segment" answered '^CS =00(10|33) .* CS64 '
expect "its control registers" answered '^CR0=80050033 '
expect_calm_kernel
[ $failures = 0 ] || { echo "--- monitor"; tail -60 "$dir/answers"; }
finish
