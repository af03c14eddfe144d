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

# Each test on a machine of its own: where TCG takes what it should refuse, the guest does not get to its next test.
second_opinion() {
  local name agrees=0 differs=0
  for name in $(sed -n 's/^BARE_TEST(\([a-z0-9_]*\), \([a-z0-9_]*\).*/\1.\2/p' "$(dirname "$0")"/bare/*.cpp); do
    timeout -s KILL 10 qemu-system-x86_64 -accel tcg -cpu max -M pc -m 256 -smp "$cpus" -nodefaults -display none -no-reboot \
      -serial stdio -kernel "$guest" -append "cpus=$cpus only=$name $options" </dev/null >"$dir/console" 2>"$dir/messages"
    if console_has '^bare: 1 tests, 0 failed'; then
      agrees=$((agrees + 1))
      continue
    fi
    differs=$((differs + 1))
    console_has '^bare: ' || echo "NO END $name"
    tr -d '\r' <"$dir/console" | grep -a '^FAILED' | head -3
  done
  echo "$agrees tests pass under TCG, $differs do not"
}

if [ "${ENGINE:-anykvm}" = tcg ]; then
  second_opinion
  exit
fi
"$anykvm" run --accel anykvm --kernel "$guest" --append "cpus=$cpus $options" --cpus "$cpus" --memory 256M --timeout 60 \
  </dev/null >"$dir/console" 2>"$dir/messages"
code=$?
expect "the engine was anykvm" grep -q "$ending .*(engine anykvm, $cpus vCPU" "$dir/messages"
expect "exit code 0, not $code" [ $code = 0 ]
expect "its last line, without failures" console_has '^bare: [1-9][0-9]* tests, 0 failed'
expect "no failed check" console_lacks '^FAILED'

tr -d '\r' <"$dir/console" | grep -av '^ok '
cat "$dir/messages"
[ $failures = 0 ]
