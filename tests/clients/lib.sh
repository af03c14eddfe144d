# What the tests of unmodified clients share. Sourced by bash; the caller has set anykvm=PROGRAM.

PATH=$PATH:/usr/sbin:/sbin
dir=$(mktemp -d) || exit 1
trap 'clean_up' EXIT
. "$(dirname "${BASH_SOURCE[0]}")/../expect.sh"
client_input=/dev/null
companions=()  # processes to end with the test

clean_up() {
  [ ${#companions[@]} = 0 ] || kill "${companions[@]}" 2>/dev/null
  rm -rf "$dir"
}

need() { # need COMMAND...: exit code 77 (skipped) if one is missing
  local command
  for command in "$@"; do
    type -P "$command" >/dev/null || { echo "no $command: scripts/check installs it"; exit 77; }
  done
}

# The files that the guest is made from: sets kernel and initrd.
need_guest() { # need_guest GUEST_DIR
  kernel=$1/vmlinuz initrd=$1/initrd.gz
  [ -f "${KERNEL:-}" ] && kernel=$KERNEL
  need_files "$kernel" "$initrd"
}

need_files() { # need_files FILE...: what scripts/check makes or installs
  local file
  for file in "$@"; do
    [ -e "$file" ] || { echo "no $file: run scripts/check first"; exit 77; }
  done
}

# will_type PATTERN KEYS [PATTERN KEYS]...: the next client's standard input is a keyboard: once the console shows a
# pattern, the keys are sent (printf's escapes). Patterns are looked for in the whole console, one after another.
will_type() {
  client_input=$dir/keyboard
  rm -f "$client_input" && mkfifo "$client_input" && : >"$dir/console" || exit 1
  (
    exec 3>"$client_input"
    while [ $# -gt 0 ]; do
      until console_has "$1"; do sleep 0.1; done
      printf "$2" >&3
      shift 2
    done
  ) &
  companions+=($!)
}

# run_client SECONDS COMMAND...: under anykvm exec, its output in $dir/console, ours in $dir/messages; sets code.
run_client() {
  local limit=$1
  shift
  ANYKVM_TRACE=memory timeout -s KILL "$limit" "$anykvm" exec -- "$@" <"$client_input" >"$dir/console" 2>"$dir/messages"
  code=$?
}

# The demo guest's kernel, started by QEMU itself; the guest's own checks must pass.
boot_demo_guest() { # boot_demo_guest GUEST_DIR CPUS QEMU_OPTION...
  local guest_dir=$1 cpus=$2
  shift 2
  need qemu-system-x86_64
  need_guest "$guest_dir"
  run_client 60 qemu-system-x86_64 "$@" -smp "$cpus" -m 512 -nodefaults -no-user-config -display none -serial stdio \
    -no-reboot -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 panic=-1 demo=check"
  # With kernel-irqchip=off; QEMU's own sentence since version 8.
  if grep -q 'KVM does not support userspace APIC' "$dir/messages"; then
    echo "this QEMU leaves the APIC to KVM" && exit 77
  fi
  expect "exit code 0, not $code" [ $code = 0 ]
  expect_served_by_anykvm
  expect_guest_check "$cpus"
}

# Nobody but the engine writes such a line.
expect_served_by_anykvm() { expect "anykvm's trace" grep -aqE 'anykvm [0-9.]+ [0-9]+ memory: slot' "$dir/messages"; }
# What a kernel says of the CPU model's weaknesses is no complaint.
kernel_is_calm() {
  ! grep -aE 'BUG:|WARNING:|Oops|[Cc]all [Tt]race|[- ]stall|hung_task|lockup|nobody cared|ACPI.*(Error|Warning)' \
    "$dir/console" | grep -av 'admin-guide/hw-vuln'
}
expect_calm_kernel() { expect "no complaint of the kernel" kernel_is_calm; }

# What the demo guest says with demo=check; the sum is that of 4,000,000 zero bytes.
expect_guest_check() { # expect_guest_check CPUS
  local online=0 sum=8dbe5f139fd946d4cd84e8cc612cd9f68cbc87e394457884acc0c5dad56dd8dd
  [ "$1" = 1 ] || online=0-$(($1 - 1))
  expect "all CPUs online" console_has "^cpus online: $online.?\$"
  expect "the same sum on every CPU" console_has "^sums: $sum .?\$"
  expect "the last line of the guest" console_has '^guest check done'
  expect_calm_kernel
}

finish() {
  [ $failures = 0 ] && exit 0
  echo "--- console (end)"
  tail -c 6000 "$dir/console" | tr -d '\r'
  echo "--- messages (end)"
  tail -20 "$dir/messages"
  exit 1
}
