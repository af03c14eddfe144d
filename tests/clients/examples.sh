#!/bin/bash
# The programs of examples/ do on anykvm what they say. Usage: examples.sh ANYKVM EXAMPLES_DIR
# ANYKVM_TEST_ACCEL=kvm: on the machine's own KVM instead.
set -u
anykvm=$1 examples=$2
. "$(dirname "$0")/lib.sh"
: >"$dir/messages"

arguments=()
# run NAME [WRAPPER...]: with $arguments; its output in $dir/console; on anykvm, the trace says so.
run() {
  local name=$1
  shift
  if [ "${ANYKVM_TEST_ACCEL:-anykvm}" = kvm ]; then
    timeout 20 "$examples/example_$name" "${arguments[@]}" >"$dir/console" 2>"$dir/messages"
  else
    ANYKVM_TRACE=memory timeout 20 "$@" "$examples/example_$name" "${arguments[@]}" >"$dir/console" 2>"$dir/messages"
    code=$?
    expect_served_by_anykvm
    (exit $code)
  fi
  code=$?
  expect "$name: exit code 0, not $code" [ $code = 0 ]
}
says() { diff - "$dir/console"; }

run tiny_vm "$anykvm" exec
expect "tiny_vm" says <<<"Hello from the guest!"
interrupt_says() {
  says <<END
the guest waits
$(printf 'interrupt %d\n' 1 2 3 4 5)
done
END
}
run interrupt "$anykvm" exec
expect "interrupt" interrupt_says
if [ -x "$examples/example_tiny_vm_static" ]; then
  run tiny_vm_static "$anykvm" exec
  expect "tiny_vm, linked statically" says <<<"Hello from the guest!"
  run interrupt_static "$anykvm" exec
  expect "interrupt, linked statically" interrupt_says
fi
# ioregion_server HOW: what it is to say.
ioregion_server() {
  run ioregion_server "$anykvm" exec
  expect "ioregion_server $*" says <<END
$(printf 'the guest read %d\n' 1 4 9 16 25)
$* accesses forwarded
END
}
if [ "${ANYKVM_TEST_ACCEL:-anykvm}" = kvm ]; then ioregion_server "by exits, 10"; else ioregion_server "by ioregionfd, 0"; fi
arguments=(by-exits)
ioregion_server "by exits, 10"
arguments=()
if [ "${ANYKVM_TEST_ACCEL:-anykvm}" != kvm ]; then
  run tiny_vm_linked
  expect "tiny_vm, linked with the library" says <<<"Hello from the guest!"
fi
finish
