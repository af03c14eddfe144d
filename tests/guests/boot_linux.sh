#!/bin/bash
# Boots the demo guest with anykvm and looks at what it said. Usage: boot_linux.sh ANYKVM GUEST_DIR CPUS MEMORY
# KERNEL=FILE chooses another kernel. Exit code 77: the guest has not been made (scripts/check makes it).
set -u
anykvm=$1 guest_dir=$2 cpus=$3 memory=$4
kernel=$guest_dir/vmlinuz
[ -f "${KERNEL:-}" ] && kernel=$KERNEL
for file in "$kernel" "$guest_dir/initrd.gz"; do
  [ -e "$file" ] || { echo "no $file: run scripts/check first"; exit 77; }
done

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
"$anykvm" run --accel anykvm --kernel "$kernel" --initrd "$guest_dir/initrd.gz" --append demo=check \
  --cpus "$cpus" --memory "$memory" --timeout 150 </dev/null >"$dir/console" 2>"$dir/messages"
code=$?

. "$(dirname "$0")/../expect.sh"

# sha256sum of 4,000,000 zero bytes
sum=8dbe5f139fd946d4cd84e8cc612cd9f68cbc87e394457884acc0c5dad56dd8dd
last=$((cpus - 1))
online=0
[ "$last" -gt 0 ] && online=0-$last

expect "exit code 0, not $code" [ $code = 0 ]
expect "the engine was anykvm" grep -q "powered off .*(engine anykvm, $cpus vCPU" "$dir/messages"
expect "the boot timer was stopped" grep -q 'the guest was up after' "$dir/messages"
expect "uname" console_has '^Linux .* x86_64'
expect "all CPUs online" console_has "^cpus online: $online.?\$"
expect "the same sum on every CPU" console_has "^sums: $sum .?\$"
expect "today's date" console_has "^date: $(date -u +%Y-%m-)"
expect "the last line of the guest" console_has '^guest check done'
expect "no complaint of the kernel" console_lacks 'BUG:|WARNING:|Oops|[Cc]all [Tt]race|stall|hung_task|lockup|nobody cared|ACPI.*(Error|Warning)'

if [ $failures != 0 ]; then
  echo "--- console"
  tr -d '\r' <"$dir/console"
  echo "--- messages"
  cat "$dir/messages"
  exit 1
fi
cat "$dir/messages"
