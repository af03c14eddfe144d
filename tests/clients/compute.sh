# A guest that computes (tests/guests/compute), and QEMU's monitor. Sourced after lib.sh.

trap '' PIPE  # the monitor of a QEMU that has ended: what is expected of it fails, not the script
numbers=${NUMBERS:-2000000}
guest_words=  # more for the guest's command line

# make_compute_guest GUEST_DIR: sets kernel and initrd, the latter with another /init laid over it.
make_compute_guest() {
  need_guest "$1"
  need cpio gzip
  mkdir "$dir/overlay"
  install -m 755 "$(dirname "$0")/../guests/compute/init" "$dir/overlay/init"
  (cd "$dir/overlay" && echo init | cpio --create --format=newc --quiet | gzip -1) | cat "$initrd" - >"$dir/initrd.gz"
  initrd=$dir/initrd.gz
}

# start_qemu NAME CONSOLE OPTION...: in the background. Its monitor reads $dir/NAME.in and writes $dir/NAME.out, its serial
# line reads $dir/NAME.line.in and writes CONSOLE. The guest computes until enough is called.
start_qemu() {
  local name=$1 console=$2
  shift 2
  mkfifo "$dir/$name.in" "$dir/$name.out.pipe" "$dir/$name.line.in" "$dir/$name.line.out" || exit 1
  cat "$dir/$name.out.pipe" >"$dir/$name.out" &
  companions+=($!)
  cat "$dir/$name.line.out" >"$console" &
  eval "console_$name=$!"
  companions+=($!)
  ANYKVM_TRACE=memory timeout -s KILL 150 "$anykvm" exec -- qemu-system-x86_64 "$@" -nodefaults -no-user-config \
    -display none -no-reboot -chardev "pipe,id=line,path=$dir/$name.line" -serial chardev:line -monitor stdio \
    -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 quiet panic=-1 file=$numbers $guest_words" \
    <"$dir/$name.in" >"$dir/$name.out.pipe" 2>>"$dir/messages" &
  eval "pid_$name=$!"
  exec {monitor}>"$dir/$name.in"
  eval "monitor_$name=$monitor"
}

# qemu_process NAME: its id; the one that is known is timeout's.
qemu_process() {
  local process=pid_$1
  pgrep -P "${!process}"
}

has_ended() { # has_ended NAME
  local process=pid_$1
  ! kill -0 "${!process}" 2>/dev/null
}

# tell NAME COMMAND: to the monitor.
tell() {
  local descriptor=monitor_$1
  echo "$2" 2>/dev/null >&"${!descriptor}"
}

# ask NAME COMMAND PATTERN: until what the monitor says has PATTERN, for SECONDS (60).
ask() {
  local begin=$SECONDS lines
  lines=$(wc -l <"$dir/$1.out")
  until tail -n +$((lines + 1)) "$dir/$1.out" | grep -aqE "$3"; do
    [ $((SECONDS - begin)) -lt "${4:-60}" ] && ! has_ended "$1" || return 1
    tell "$1" "$2"
    sleep 0.2
  done
}

# enough NAME CONSOLE: the guest shall end. Not before its kernel has set the serial line up: QEMU's main loop, which has
# stopped listening to what fills the line's FIFO, is not told when the guest resets that. What is lost is said again.
enough() {
  local begin=$SECONDS line
  wait_for "$2" 'computing|round' || return
  exec {line}<>"$dir/$1.line.in"
  until grep -aq 'chain 0: result' "$2" || has_ended "$1" || [ $((SECONDS - begin)) -ge 120 ]; do
    echo enough >&"$line"
    sleep 0.5
  done
  exec {line}>&-
}

# wait_for FILE PATTERN [SECONDS]
wait_for() {
  local begin=$SECONDS
  until grep -aqE "$2" "$1" 2>/dev/null; do
    [ $((SECONDS - begin)) -lt "${3:-60}" ] || return 1
    sleep 0.1
  done
}

# end_qemu NAME: waits for its end by itself, and for the last of its console; sets code.
end_qemu() {
  local process=pid_$1 console=console_$1 descriptor=monitor_$1
  wait "${!process}"
  code=$?
  wait "${!console}"
  exec {descriptor}>&-
}

last_round() { grep -ao 'chain 0: round [0-9]*' "$1" 2>/dev/null | tail -1 | grep -o '[0-9]*$'; }

# chain_result CPU ROUNDS
chain_result() {
  local hash=$1 i
  for ((i = 1; i <= $2; i++)); do
    hash=$(echo "$hash $i" | sha256sum)
    hash=${hash%% *}
  done
  echo "$hash"
}

# expect_computed CPUS CONSOLE...: the consoles, one after another, have the right results.
expect_computed() {
  local cpus=$1 cpu rounds
  shift
  cat "$@" >"$dir/console"
  for ((cpu = 0; cpu < cpus; cpu++)); do
    rounds=$(grep -ao "^chain $cpu: result after [0-9]*" "$dir/console" | grep -o '[0-9]*$')
    expect "a result of CPU $cpu" [ "${rounds:-0}" -ge 50 ]
    expect "the chain of CPU $cpu" console_has "^chain $cpu: .*rounds: $(chain_result $cpu "${rounds:-0}").?\$"
  done
  expect "the numbers" console_has "^numbers: $(seq 1 "$numbers" | sha256sum | cut -d ' ' -f 1).?\$"
  expect "the last line of the guest" console_has '^compute guest done'
  expect_calm_kernel
}
