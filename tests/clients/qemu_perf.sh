#!/bin/bash
# Linux finds performance counters and counts with them: tests/guests/perf. Usage: qemu_perf.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 gcc cpio gzip
need_guest "$guest_dir"
mkdir "$dir/overlay"
gcc -static -O1 -o "$dir/overlay/init" "$(dirname "$0")/../guests/perf/perf.c" || exit 1
(cd "$dir/overlay" && echo init | cpio --create --format=newc --quiet | gzip -1) | cat "$initrd" - >"$dir/initrd.gz"

run_client 60 qemu-system-x86_64 "$@" -m 256 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -kernel "$kernel" -initrd "$dir/initrd.gz" -append "console=ttyS0 panic=-1"
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "Linux's driver" console_has 'Performance Events: .* PMU driver'
expect "nothing wrong" console_has '^perf guest done, 0 failures'
expect_calm_kernel
finish
