#!/bin/bash
# What CI machines do all day, in the Debian guest that scripts/debian-guest makes: compilers, shells, interpreters, archives, packages.
# Natively (in a chroot, so as root), in QEMU on anykvm, and by QEMU's own translator, in turns.
# Usage: bench/debian.sh [ROUNDS] [ANYKVM] [GUEST_DIR]; prints seconds, the best of the rounds, and the whole from start to power-off.
set -u
cd "$(dirname "$0")/.." || exit 1
rounds=${1:-1} anykvm=$(realpath "${2:-build/anykvm}") guest=$(realpath "${3:-build/guest}")/debian
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

cat >"$dir/jobs" <<'JOBS'
work=$(mktemp -d /dev/shm/jobs.XXXXXX) || exit 1
cd "$work" || exit 1
job() {
  name=$1
  shift
  before=$(date +%s%N)
  "$@" >/dev/null 2>&1 || echo "job $name failed"
  after=$(date +%s%N)
  echo "job $name $(((after - before) / 1000000)) ms"
}
compile() { for i in 1 2 3 4; do gcc -O2 -c big.c -o big$i.o || return 1; done && gcc big1.o -shared -o big.so; }
shells() { i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done; }
interpreters() { for i in 1 2 3 4 5 6 7 8 9 10; do perl -MPOSIX -e '%h=(); $h{$_ % 977} .= $_ for 1..20000; print scalar %h'; done; }
archive() { tar cf - /usr/include /usr/share/perl* | gzip -6 >a.gz && gzip -dc a.gz | tar tf - ; }
pipes() { for i in 1 2 3 4 5 6 7 8 9 10; do find /usr/share -type f | sed 's,.*/,,' | sort | uniq -c | sort -rn | head -5; done; }
packages() { for i in 1 2 3 4 5; do dpkg -l; dpkg -L libc6; dpkg-query -W -f '${Package} ${Installed-Size}\n'; done; }
digest() { head -c 64M /dev/zero | sha256sum; }
awk 'BEGIN { for (i = 0; i < 400; i++) printf "int f%d(int *a, int n) { int s = %d; for (int i = 0; i < n; i++) { if (a[i] > s) s += a[i] * %d; else a[i] ^= s >> 3; } return s; }\n", i, i, i + 3 }' >big.c
shells # once uncounted: what it reads is in memory then
for name in compile shells interpreters archive pipes packages digest; do job $name $name; done
cd /
rm -rf "$work"
echo "jobs done"
JOBS
{ cat "$dir/jobs"; echo exit; yes '#' | head -c 4096; } >"$dir/jobs.disk"
truncate -s 16384 "$dir/jobs.disk"

in_guest() { # in_guest ENGINE COMMAND...
  "${@:2}" -M q35 -smp 1 -m 2048 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
    -kernel "$guest/vmlinuz" -initrd "$guest/initrd.img" \
    -append 'console=ttyS0 panic=-1 root=/dev/vda systemd.run="/bin/sh /dev/vdb" systemd.run_success_action=poweroff-force' \
    -drive "file=$guest/disk,format=raw,if=virtio,snapshot=on" -drive "file=$dir/jobs.disk,format=raw,if=virtio,readonly=on" </dev/null
}
run() {
  case $1 in
    native) mount --bind /dev/shm "$guest/tree/dev/shm" 2>/dev/null; chroot "$guest/tree" /bin/sh <"$dir/jobs" ;;
    anykvm) in_guest "$1" "$anykvm" exec -- qemu-system-x86_64 -accel kvm -cpu host ;;
    tcg) in_guest "$1" qemu-system-x86_64 -accel tcg -cpu max ;;
  esac
}
for round in $(seq "$rounds"); do
  for engine in native anykvm tcg; do
    began=$(date +%s%N)
    timeout 900 bash -c "$(declare -f run in_guest); dir=$dir guest=$guest anykvm=$anykvm; run $engine" 2>/dev/null | tr -d '\r' |
      sed -n 's/.*\(job[s]* .*\)/\1/p' >"$dir/$engine.$round"
    grep -q '^jobs done' "$dir/$engine.$round" || echo "$engine: did not get to its end" >&2
    grep 'failed' "$dir/$engine.$round" >&2
    echo "job all $((($(date +%s%N) - began) / 1000000)) ms" >>"$dir/$engine.$round"
  done
done
umount "$guest/tree/dev/shm" 2>/dev/null
printf '%-14s %10s %10s %10s %8s\n' '' 'native s' 'anykvm s' 'tcg s' 'tcg/anykvm'
for name in compile shells interpreters archive pipes packages digest all; do
  for engine in native anykvm tcg; do
    awk -v name=$name '$1 == "job" && $2 == name && $4 == "ms" && (!best || $3 < best) { best = $3 } END { print best / 1000 }' "$dir/$engine".*
  done | paste -s | awk -v name=$name '{ printf "%-14s %10.2f %10.2f %10.2f %8.1f\n", name, $1, $2, $3, ($2 ? $3 / $2 : 0) }'
done
