#!/bin/bash
# The kernel's selftests as a test of ours: those that take seconds, two at once. Skipped where they are not built yet.
cd "$(dirname "$0")/../.." || exit 1
if [ ! -e build/selftests/built ]; then
  echo "scripts/selftests --prepare has not been run"
  exit 77
fi
SELFTEST_JOBS=2 exec scripts/selftests --fast
