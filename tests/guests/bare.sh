#!/bin/bash
# Boots our bare-metal guest and looks at what its tests said. Usage: bare.sh ANYKVM BARE_GUEST CPUS ["only=PREFIX end=triple"]
# ENGINE=tcg asks QEMU's emulator instead, for a second opinion (docs/conformance.md lists where it differs).
set -u
anykvm=$1 guest=$2 cpus=$3 options=${4:-}
ending="the guest reset after"
case "$options" in *end=triple*) ending="the guest reset by a triple fault after" ;; esac
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
. "$(dirname "$0")/../expect.sh"

if [ "${ENGINE:-anykvm}" = tcg ]; then
  timeout -s KILL 170 qemu-system-x86_64 -accel tcg -cpu max -M pc -m 256 -smp "$cpus" -nodefaults -display none -no-reboot \
    -serial stdio -kernel "$guest" -append "cpus=$cpus $options" </dev/null >"$dir/console" 2>"$dir/messages"
  code=$?
else
  "$anykvm" run --accel anykvm --kernel "$guest" --append "cpus=$cpus $options" --cpus "$cpus" --memory 256M --timeout 60 \
    </dev/null >"$dir/console" 2>"$dir/messages"
  code=$?
  expect "the engine was anykvm" grep -q "$ending .*(engine anykvm, $cpus vCPU" "$dir/messages"
fi
expect "exit code 0, not $code" [ $code = 0 ]
expect "its last line, without failures" console_has '^bare: [1-9][0-9]* tests, 0 failed'
expect "no failed check" console_lacks '^FAILED'

tr -d '\r' <"$dir/console" | grep -av '^ok '
cat "$dir/messages"
[ $failures = 0 ]
