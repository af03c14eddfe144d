#!/bin/bash
# Linux in Linux: a hypervisor (L1, Debian's kernel with KVM and anykvm's VMM) boots the demo guest (L2: Python, OpenSSL, a few programs), in QEMU on
# anykvm and by QEMU's own translator, in turns. Usage: bench/nested.sh [ROUNDS] [ANYKVM] [GUEST_DIR] (after scripts/check); prints
# seconds, the best of the rounds: until L1's first program, and from there until L2 has powered off.
set -u
cd "$(dirname "$0")/.." || exit 1
rounds=${1:-3} anykvm=$(realpath "${2:-build/anykvm}") guest_dir=$(realpath "${3:-build/guest}")
. tests/clients/lib.sh
. tests/clients/nested.sh
need qemu-system-x86_64
need_guest "$guest_dir"
make_hypervisor_guest "$guest_dir" "$kernel" "$initrd"
machine=(-cpu "EPYC,+svm,vendor=AuthenticAMD" -M q35 -smp 1 -m 1024 -nodefaults -no-user-config -display none -serial stdio -no-reboot
  -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 quiet panic=-1 cpus=1 words=demo=check")

seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'; }

once() { # once NAME COMMAND...
  local name=$1 start=$EPOCHREALTIME first= line
  while IFS= read -r line; do
    case $line in
      'hypervisor: '*CPUs*) echo "$name L1 $(seconds_since "$start")" && first=$EPOCHREALTIME ;;
      'hypervisor: its guest ended with 0'*) echo "$name L2 $(seconds_since "$first")" ;;
    esac
  done < <(timeout -s KILL 200 "${@:2}" "${machine[@]}" </dev/null 2>"$dir/messages" | tee "$dir/console")
}

for ((round = 0; round < rounds; ++round)); do
  once anykvm "$anykvm" exec -- qemu-system-x86_64 -accel kvm
  once tcg qemu-system-x86_64 -accel tcg
done | tee /dev/stderr | awk '
  !($1 $2 in best) || $3 < best[$1 $2] { best[$1 $2] = $3 }
  END {
    if (!("anykvmL2" in best) || !("tcgL2" in best)) { print "a guest did not get to its end"; exit 1 }
    for (level = 1; level <= 2; ++level)
      printf "L%d  anykvm %6.2f s  tcg %6.2f s  ratio %.1f\n", level, best["anykvmL" level], best["tcgL" level], best["tcgL" level] / best["anykvmL" level]
  }'
