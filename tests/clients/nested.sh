# A guest that is a hypervisor, with anykvm and a guest of its own in it. Sourced after lib.sh; the caller has set
# anykvm=PROGRAM.

# make_hypervisor_guest GUEST_DIR NESTED_KERNEL NESTED_INITRD: sets kernel and initrd.
make_hypervisor_guest() {
  local tree=$dir/hypervisor library
  need cpio gzip ldd
  kernel=$1/nested/vmlinuz
  need_files "$kernel" "$1/nested/initrd.gz" "$2" "$3"
  mkdir -p "$tree/bin" "$tree/nested"
  cp "$anykvm" "$tree/bin/anykvm"
  cp -L "$2" "$tree/nested/vmlinuz"
  cp "$3" "$tree/nested/initrd.gz"
  for library in $(ldd "$anykvm" | grep -o '/[^ ]*'); do
    mkdir -p "$tree${library%/*}" && cp -L "$library" "$tree$library"
  done
  initrd=$dir/hypervisor.gz
  (cd "$tree" && find . | cpio --create --format=newc --quiet | gzip -1) | cat "$1/nested/initrd.gz" - >"$initrd"
}

# Its KVM ran the nested guest to the end.
expect_nested_guest() { # expect_nested_guest CPUS
  expect "SVM on every CPU of the hypervisor" console_has "^hypervisor: $1 CPUs, SVM in $1"
  expect "its kernel's KVM ran the guest" console_has "powered off after .*\\(engine kvm, $1 vCPU"
  expect "its guest ended well" console_has '^hypervisor: its guest ended with 0'
}
