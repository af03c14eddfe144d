# What the tests of unmodified clients share. Sourced by bash; the caller has set anykvm=PROGRAM.

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failures=0

need() { # need COMMAND...: exit code 77 (skipped) if one is missing
  local command
  for command in "$@"; do
    type -P "$command" >/dev/null || { echo "no $command: scripts/check installs it"; exit 77; }
  done
}

# run_client SECONDS COMMAND...: under anykvm exec, its output in $dir/console, ours in $dir/messages; sets code.
run_client() {
  local limit=$1
  shift
  ANYKVM_TRACE=memory timeout -s KILL "$limit" "$anykvm" exec -- "$@" </dev/null >"$dir/console" 2>"$dir/messages"
  code=$?
}

expect() { # expect WHAT CONDITION...
  local what=$1
  shift
  "$@" || { echo "FAILED: $what"; failures=$((failures + 1)); }
}
console_has() { grep -aqE "$1" "$dir/console"; }
console_lacks() { ! grep -aE "$1" "$dir/console"; }

# Nobody but the engine writes such a line.
expect_served_by_anykvm() { expect "anykvm's trace" grep -aqE 'anykvm [0-9.]+ [0-9]+ memory: slot' "$dir/messages"; }
expect_calm_kernel() {
  expect "no complaint of the kernel" \
    console_lacks 'BUG:|WARNING:|Oops|[Cc]all [Tt]race|stall|hung_task|lockup|nobody cared|ACPI.*(Error|Warning)'
}

finish() {
  [ $failures = 0 ] && exit 0
  echo "--- console (end)"
  tail -c 6000 "$dir/console" | tr -d '\r'
  echo "--- messages (end)"
  tail -20 "$dir/messages"
  exit 1
}
