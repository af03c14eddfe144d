#!/bin/bash
# A guest fetches a file from a server on the host's loopback and sends one there, through QEMU's user networking.
# Usage: qemu_network.sh ANYKVM GUEST_DIR NETWORK_DEVICE QEMU_OPTION...
set -u
anykvm=$1 guest=$2/devices device=$3
shift 3
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 busybox
need_files "$guest/vmlinuz" "$guest/initrd.gz"

# The server answers what is sent to it with its sum.
mkdir -p "$dir/files/cgi-bin"
head -c 20000003 /dev/urandom >"$dir/files/file"
printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\nsha256sum\n' >"$dir/files/cgi-bin/sum"
chmod +x "$dir/files/cgi-bin/sum"
for _ in 1 2 3 4 5 6 7 8; do
  port=$((20000 + RANDOM % 30000))
  busybox httpd -f -p "127.0.0.1:$port" -h "$dir/files" 2>/dev/null &
  server=$!
  sleep 0.2
  kill -0 $server 2>/dev/null && break
done
companions+=($server)

run_client 120 qemu-system-x86_64 "$@" -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
  -kernel "$guest/vmlinuz" -initrd "$guest/initrd.gz" -append "console=ttyS0 panic=-1 server=$port" \
  -netdev user,id=net -device "$device,netdev=net"

expect "exit code 0, not $code" [ $code = 0 ]
expect_served_by_anykvm
expect "the guest's checks" console_lacks '^FAILED'
expect "what it sent has the right sum" console_has '^passed: sent'
expect "what it fetched too" console_has "^fetched: $(sha256sum <"$dir/files/file" | cut -d ' ' -f 1) "
expect "the last line of the guest" console_has '^device check done'
expect_calm_kernel
finish
