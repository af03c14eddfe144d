# What the tests in shell expect, and how they count what fails. Sourced by bash; the caller sets dir=, in which "console"
# is what the guest said.

failures=0
expect() { # expect WHAT CONDITION...
  local what=$1
  shift
  "$@" || { echo "FAILED: $what"; failures=$((failures + 1)); }
}
console_has() { grep -aqE "$1" "$dir/console"; }
console_lacks() { ! grep -aE "$1" "$dir/console"; }
