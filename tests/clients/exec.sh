#!/bin/bash
# anykvm exec with commands that need no guest. Usage: exec.sh ANYKVM
set -u
anykvm=$1
. "$(dirname "$0")/lib.sh"

# sentence CODE PATTERN COMMAND...: the exit code, and one line on standard error.
sentence() {
  local want=$1 pattern=$2 code
  shift 2
  "$anykvm" exec "$@" >"$dir/console" 2>"$dir/messages"
  code=$?
  expect "$*: exit code $want, not $code" [ $code = "$want" ]
  expect "$*: one line like '$pattern'" grep -qE "$pattern" "$dir/messages"
  expect "$*: no more than one line" [ "$(wc -l <"$dir/messages")" = 1 ]
}

sentence 1 'needs a command'
sentence 127 'no-such-command: no such command' no-such-command
if busybox=$(type -P busybox) && ! readelf -l "$busybox" 2>/dev/null | grep -q INTERP; then
  sentence 1 'statically linked' "$busybox" true
  printf '#!%s sh\n' "$busybox" >"$dir/script"
  chmod +x "$dir/script"
  sentence 1 'is a script for .*statically linked' "$dir/script"
fi

"$anykvm" exec -- bash -c 'exit 7'
expect "the command's exit code" [ $? = 7 ]
expect "the command's own options" [ "$("$anykvm" exec echo -- --help)" = "-- --help" ]
expect "the device is there, for children too" "$anykvm" exec bash -c 'bash -c "test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm"'
expect "the device is not executable" [ "$("$anykvm" exec bash -c 'test -x /dev/kvm || echo no')" = no ]
expect "it can be opened relative to /dev" "$anykvm" exec bash -c 'cd /dev && exec 9<>kvm && readlink /proc/self/fd/9 | grep -q memfd:anykvm'
expect "other files are what they were" [ "$("$anykvm" exec cat /proc/sys/kernel/ostype)" = Linux ]
finish
