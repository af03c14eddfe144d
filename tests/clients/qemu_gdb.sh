#!/bin/bash
# gdb debugs the guest's kernel through QEMU's stub: software and hardware breakpoints, single steps, watchpoints
# (KVM_SET_GUEST_DEBUG). Usage: qemu_gdb.sh ANYKVM GUEST_DIR QEMU_OPTION...
set -u
anykvm=$1 guest_dir=$2
shift 2
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 gdb
need_guest "$guest_dir"

client_input=$dir/keyboard
mkfifo "$client_input" && : >"$dir/console" || exit 1
address_of() { sed -n "s/^\([0-9a-f]\{16\}\) [a-zA-Z] $1\r*$/0x\1/p" "$dir/console" | head -1; }

# `hostname NAME` calls sethostname(), which writes struct new_utsname's second member, 65 bytes into init_uts_ns;
# `uname -n` reads it.
session() {
  cat <<END
set pagination off
set confirm off
set architecture i386:x86-64
set remotetimeout 20
target remote $dir/gdb

break *$function
shell printf 'hostname one\n' >$client_input
continue
printf "software breakpoint at %#lx\n", \$rip
printf "return address in the kernel: %d\n", *(unsigned long *)\$rsp > 0xffffffff80000000
stepi
stepi
printf "two steps on: %d\n", \$rip > $function && \$rip < $function + 32
delete

hbreak *$function
shell printf 'hostname two\n' >$client_input
continue
printf "hardware breakpoint at %#lx\n", \$rip
delete

watch *(char *)$name
shell printf 'hostname three\n' >$client_input
continue
printf "write watchpoint: %s\n", (char *)$name
delete

rwatch *(char *)$name
shell printf 'uname -n\n' >$client_input
continue
printf "read watchpoint at %#lx\n", \$rip
delete

shell printf 'echo now-\$(hostname); poweroff -f\n' >$client_input
detach
END
}
(
  exec 3>"$client_input"
  until console_has 'A shell in the guest'; do sleep 0.1; done
  printf "grep -E ' (__x64_sys_sethostname|init_uts_ns)\$' /proc/kallsyms; echo kallsyms-\$((1 + 1))\n" >&3
  until console_has '^kallsyms-2'; do sleep 0.1; done
  function=$(address_of __x64_sys_sethostname) name=$(printf '%#x' $(($(address_of init_uts_ns) + 65)))
  session >"$dir/session"
  timeout 60 gdb -nx -batch -x "$dir/session" >"$dir/gdb_output" 2>&1
) &
companions+=($!)

run_client 80 qemu-system-x86_64 "$@" -m 256 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -chardev "socket,id=gdb,path=$dir/gdb,server=on,wait=off" -gdb chardev:gdb -kernel "$kernel" -initrd "$initrd" \
  -append "console=ttyS0 panic=-1 demo=shell"

gdb_said() { grep -qE "$1" "$dir/gdb_output"; }
function=$(address_of __x64_sys_sethostname)
expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the function's address" [ -n "$function" ]
expect "a software breakpoint" gdb_said "^software breakpoint at $function"
expect "single steps" gdb_said '^two steps on: 1'
expect "the guest's memory" gdb_said '^return address in the kernel: 1'
expect "a hardware breakpoint" gdb_said "^hardware breakpoint at $function"
expect "a write watchpoint" gdb_said '^Hardware watchpoint 3: '
expect "which stops after the write" gdb_said '^write watchpoint: t'
expect "a read watchpoint" gdb_said '^Hardware read watchpoint 4: '
expect "which stops in the kernel" gdb_said '^read watchpoint at 0xffffffff'
expect "a guest that went on" console_has '^now-three'
expect_calm_kernel
[ $failures = 0 ] || { echo "--- gdb"; cat "$dir/session" "$dir/gdb_output"; }
finish
