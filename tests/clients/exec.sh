#!/bin/bash
# anykvm exec with commands that need no guest. Usage: exec.sh ANYKVM DOORS DOORS_FORTIFIED HOST_KVM [DOORS_STATIC]
set -u
anykvm=$1 doors=$2 doors_fortified=$3 host_kvm=$4 doors_static=${5-}
. "$(dirname "$0")/lib.sh"
: >"$dir/console" >"$dir/messages"

# --- what cannot be started ---

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
sentence 1 'exec --prefer-hardwear: no such option' --prefer-hardwear true
sentence 1 'exec -x: no such option' -x
sentence 127 'no-such-command: no such command' no-such-command
sentence 127 '/no/such/command: no such command' /no/such/command
echo 'just text' >"$dir/text"
sentence 126 'text: Permission denied' "$dir/text"
if [ "$doors_static" ]; then
  printf '#!%s\n' "$doors_static" >"$dir/script"
  chmod +x "$dir/script"
  sentence 1 'is a script for .*statically linked' "$dir/script"
  printf '#! %s\n' "$dir/script" >"$dir/script2"
  chmod +x "$dir/script2"
  sentence 1 'is a script for .*is a script for .*statically linked' "$dir/script2"
fi
if [ "$(id -u)" = 0 ] && install -m 4755 -o nobody "$(type -P true)" "$dir/setuid" 2>/dev/null; then
  sentence 1 'setuid changes the user or group' "$dir/setuid"
  install -m 2755 -g nogroup "$(type -P true)" "$dir/setgid" && sentence 1 'setgid changes the user or group' "$dir/setgid"
fi

help_says() { "$anykvm" exec --help | tr -s ' \n' ' ' | grep -q "$1"; }
expect "help on --prefer-hardware" help_says "prefer-hardware use the machine's own /dev/kvm if a virtual CPU can be made there, else anykvm"
"$anykvm" exec -- bash -c 'exit 7'
expect "the command's exit code" [ $? = 7 ]
expect "the command's own options" [ "$("$anykvm" exec echo -- --help)" = "-- --help" ]
expect "other preload libraries stay" [ "$(LD_PRELOAD=libm.so.6 "$anykvm" exec bash -c 'echo "${LD_PRELOAD##*:}"')" = libm.so.6 ]

# --- the doors ---

expect "the device is there, for children too" "$anykvm" exec bash -c 'bash -c "test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm"'
expect "the device is not executable" [ "$("$anykvm" exec bash -c 'test -x /dev/kvm || echo no')" = no ]
expect "it can be opened relative to /dev" "$anykvm" exec bash -c 'cd /dev && exec 9<>kvm && readlink /proc/self/fd/9 | grep -q memfd:anykvm'

# walk WHAT COMMAND...: prints nothing and succeeds.
walk() {
  local what=$1 code
  shift
  timeout 60 "$@" >"$dir/console" 2>"$dir/messages"
  code=$?
  expect "$what: exit code $code" [ $code = 0 ]
  [ ! -s "$dir/console" ] || { echo "$what:"; cat "$dir/console"; failures=$((failures + 1)); }
}
walk "the doors on this machine" "$anykvm" exec "$doors"
walk "the doors, fortified" "$anykvm" exec "$doors_fortified"

if [ "$doors_static" ]; then
  walk "the doors, linked statically" "$anykvm" exec "$doors_static"
  static_child() { expect "a static child of $1" [ "$("$anykvm" exec "${@:2}")" = anykvm ]; }
  static_child "a shell" bash -c "'$doors_static' which"
  static_child "one that clears the environment" env -i "$doors_static" which
  static_child "one that searches for it" env PATH="$(dirname "$doors_static")" "$(basename "$doors_static")" which
  static_child "anykvm" "$anykvm" exec "$doors_static" which
  expect "the name that a static program is called by" [ "$("$anykvm" exec --argv0=which "$doors_static" which)" = anykvm ]
fi

expect "anykvm within anykvm" [ "$("$anykvm" exec "$anykvm" exec "$doors" which)" = anykvm ]

# Whatever the machine's own /dev/kvm is: nothing about it may reach the kernel, and everybody gets the same.
which() { "$host_kvm" "$1" "$dir/log" "$anykvm" exec $2 "$doors" which; }
"$host_kvm" absent "$dir/log" true
if [ $? = 77 ]; then
  echo "seccomp_unotify(2) is not allowed here: not looked at what gets past the library"
else
  expect "without anykvm there is no device" [ "$("$host_kvm" absent "$dir/log" "$doors" which)" = nobody ]
  expect "without anykvm the kernel answers" [ "$("$host_kvm" works "$dir/log" "$doors" which)" = kernel ]
  for host in absent works; do
    walk "the doors where KVM is $host" "$host_kvm" $host "$dir/log" "$anykvm" exec "$doors"
    expect "nothing gets past ($host)" [ ! -s "$dir/log" ]
    [ ! -s "$dir/log" ] || sort "$dir/log" | uniq -c
    expect "anykvm answers ($host)" [ "$(which $host '')" = anykvm ]
  done
  expect "hardware that works is preferred" [ "$(which works --prefer-hardware)" = kernel ]
  expect "hardware without virtual CPUs is not" [ "$(which broken --prefer-hardware)" = anykvm ]
  expect "neither is no hardware" [ "$(which absent --prefer-hardware)" = anykvm ]
  expect "also in children" \
    [ "$("$host_kvm" works "$dir/log" "$anykvm" exec --prefer-hardware bash -c "'$doors' which")" = kernel ]
  expect "also in children without an environment" \
    [ "$("$host_kvm" works "$dir/log" "$anykvm" exec --prefer-hardware env -i "$doors" which)" = kernel ]
  expect "a child may do without" [ "$("$host_kvm" absent "$dir/log" "$anykvm" exec env LD_PRELOAD= "$doors" which)" = nobody ]
fi

# --- programs that do not use KVM ---

# same WHAT COMMAND...: with and without anykvm.
same() {
  local what=$1
  shift
  "$@" >"$dir/without" 2>&1
  echo "exit code $?" >>"$dir/without"
  "$anykvm" exec "$@" >"$dir/with" 2>&1
  echo "exit code $?" >>"$dir/with"
  expect "$what: the same as without anykvm" diff "$dir/without" "$dir/with"
}
same "descriptors, forks, threads" "$doors" plain
same "the CPU, but for virtualization" "$doors" cpu
if [ "$doors_static" ]; then
  same "descriptors, forks, threads, linked statically" "$doors_static" plain
  same "the CPU, linked statically" "$doors_static" cpu
fi
cpu_information() { "$@" grep -v MHz /proc/cpuinfo | sed -E 's/^(flags.*) (vmx|svm)$/\1/'; }
expect "/proc/cpuinfo is the machine's, but for virtualization" \
  [ "$(cpu_information "$anykvm" exec)" = "$(cpu_information env)" ]
same "a directory" ls -la /usr/lib
same "a pipeline" bash -c 'find /usr/share/doc -type f | sort | sha256sum; exit 3'
same "a compressor" bash -c 'tar -C /usr/share -c doc/bash 2>/dev/null | gzip -n | sha256sum'
same "a shell's jobs and signals" bash -c 'trap "echo got it" USR1; (kill -USR1 $$) & wait; sleep 0; echo $-'
same "no such file" cat /no/such/file
if type -P python3 >/dev/null; then
  same "Python closes everything, forks and waits" python3 -c '
import os, subprocess, threading
os.closerange(3, 4096)
threads = [threading.Thread(target=lambda: subprocess.run(["true"], close_fds=True, check=True)) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(sorted(os.listdir("/proc/self/fd")), os.stat("/dev/null").st_rdev, os.path.exists("/dev/nothing"))'
fi
finish
