#!/bin/bash
# Bad input to the command line: exit code 1 and exactly one line on standard error, none on standard output.
# Usage: command_line.sh ANYKVM
set -u
anykvm=$1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failures=0

refuses() { # refuses TEXT ARGUMENT...: the sentence must contain TEXT
  local text=$1 code
  shift
  timeout 20 "$anykvm" "$@" </dev/null >"$dir/out" 2>"$dir/err"
  code=$?
  if [ $code != 1 ] || [ "$(wc -l <"$dir/err")" != 1 ] || [ -s "$dir/out" ] || ! grep -qF -- "$text" "$dir/err"; then
    echo "FAILED: anykvm $*: exit code $code, expected 1 and '$text'"
    cat "$dir/err" "$dir/out"
    failures=$((failures + 1))
  fi
}

# The first 4 KiB of a bzImage whose header promises 1 MiB (boot protocol, offsets from 1F1H).
make_kernel() {
  head -c 4096 /dev/zero >"$dir/kernel"
  patch_kernel 0x1f1 '\x01' && patch_kernel 0x1f4 '\x00\x00\x01\x00' && patch_kernel 0x1fe '\x55\xaa'
  patch_kernel 0x202 'HdrS\x0f\x02' && patch_kernel 0x211 '\x01' && patch_kernel 0x236 '\x01'
}
patch_kernel() { printf "$2" | dd of="$dir/kernel" bs=1 seek=$(($1)) conv=notrunc status=none; }

make_kernel
: >"$dir/empty"
echo 'just text' >"$dir/text"

refuses 'subcommand'
refuses '--kernel is required' run
refuses 'No such file' run --kernel "$dir/none"
refuses 'is a directory' run --kernel "$dir"
refuses 'is empty' run --kernel "$dir/empty"
refuses 'neither a bzImage nor an ELF' run --kernel "$dir/text"
refuses 'truncated' run --kernel "$dir/kernel"
refuses 'No such file' run --kernel "$dir/kernel" --initrd "$dir/none"
refuses '--memory 1K' run --kernel "$dir/kernel" --memory 1K
refuses '--memory lots' run --kernel "$dir/kernel" --memory lots
refuses 'cannot get' run --kernel "$dir/kernel" --memory 60T
refuses '--cpus 0' run --kernel "$dir/kernel" --cpus 0
refuses '--cpus 10000' run --kernel "$dir/kernel" --cpus 10000
refuses '--cpus -1' run --kernel "$dir/kernel" --cpus=-1
refuses '--accel tcg' run --kernel "$dir/kernel" --accel tcg
refuses '--timeout -3' run --kernel "$dir/kernel" --timeout=-3
refuses '--frobnicate' run --kernel "$dir/kernel" --frobnicate
if [ "$(id -u)" != 0 ]; then
  chmod 000 "$dir/text"
  refuses 'Permission denied' run --kernel "$dir/text"
fi

timeout 20 "$anykvm" --version | grep -qE '^anykvm [0-9]+\.[0-9]+\.[0-9]+$' || { echo "FAILED: --version"; failures=1; }
timeout 20 "$anykvm" doctor --json | grep -q '"usable": true' || { echo "FAILED: doctor --json"; failures=1; }

[ $failures = 0 ] && echo "the command line refuses bad input as it should"
exit $((failures != 0))
