#!/bin/bash
# What profilers and debuggers see of generated code: names of blocks in perf's map, and gdb's way through a thunk and a
# block to whoever called KVM_RUN. Exit code 77 (skipped) if the guest's files are missing.
#   ways_to_see.sh ANYKVM GUEST_DIR
set -u
anykvm=$1 guest=$2
. "$(dirname "$0")/../clients/lib.sh"
need gdb
[ -f "$guest/vmlinuz" ] && [ -f "$guest/initrd.gz" ] || { echo "no guest: run scripts/demo first"; exit 77; }
run=("$anykvm" run --kernel "$guest/vmlinuz" --initrd "$guest/initrd.gz" --append "quiet nokaslr" --timeout 60)

echo "ffffffff81000000 T first_symbol" >"$dir/System.map"
ANYKVM_PERF_MAP=$dir/System.map "${run[@]}" </dev/null >"$dir/console" 2>"$dir/messages" &
map=/tmp/perf-$!.map
expect "the guest powers off" wait $!
mv "$map" "$dir/map"
map_has() { grep -qE "^[0-9a-f]+ [0-9a-f]+ $1\$" "$dir/map"; }
expect "a thunk's name" map_has 'anykvm_thunk_tlb_miss'
expect "a kernel block named after the symbol" map_has 'guest kernel first_symbol\+0x[0-9a-f]+'
expect "a user block" map_has 'guest user 0x[0-9a-f]+'
expect "a real-mode or 32-bit block" map_has 'guest kernel 0x[0-9a-f]+ \((16|32)-bit\)'

# perf itself, where it is installed and may look.
perf_says() { perf report -i "$dir/perf.data" --stdio --sort sym 2>/dev/null | grep -qE "$1"; }
if type -P perf >/dev/null && perf record -q -e cpu-clock -o "$dir/perf.data" true 2>/dev/null; then
  ANYKVM_PERF_MAP=$dir/System.map perf record -q -e cpu-clock -F 999 -o "$dir/perf.data" \
    sh -c 'echo $$ >"$0"; exec "$@"' "$dir/pid" "${run[@]}" </dev/null >"$dir/console" 2>"$dir/messages"
  expect "perf reports kernel blocks by their symbol" perf_says 'guest kernel first_symbol\+0x[0-9a-f]+'
  expect "perf reports thunks" perf_says 'anykvm_thunk_'
  rm -f "/tmp/perf-$(cat "$dir/pid").map"
fi

timeout -s KILL 60 gdb -batch -nx -ex 'set breakpoint pending on' -ex 'break anykvm_tlb_miss' -ex run -ex bt \
  --args "${run[@]}" </dev/null >"$dir/console" 2>"$dir/messages"
grep -qE 'ptrace|Operation not permitted' "$dir/messages" && { echo "no debugger may run here"; exit 77; }
expect "gdb sees the thunk" console_has 'anykvm_thunk_tlb_miss'
expect "gdb sees the block" console_has 'anykvm_guest_code'
expect "gdb sees who runs the vCPU" console_has 'anykvm::core::Vcpu::run'
expect "gdb reaches the thread's first function" console_has 'start_thread|clone'
finish
