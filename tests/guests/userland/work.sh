# The work that is done in the guest and on the host. Usage: busybox sh work.sh ROOT DIR; ROOT holds the programs.
root=$1
cd "$2" || exit 1
busybox=$root/bin/busybox
run() { # run PROGRAM ARGUMENT...: with the libraries under ROOT, not those of the system
  program=$1
  shift
  "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib" "$root/bin/$program" "$@"
}
openssl() { run openssl "$@"; }
export OPENSSL_CONF=/dev/null OPENSSL_MODULES=$root/lib LC_ALL=C PYTHONHOME=$root/usr PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=1

echo "== program"
"$root/bin/program" || echo "exit code $?"

echo "== openssl"
"$busybox" yes 'all work and no play' | "$busybox" head -c 1000003 >text
for digest in md5 sha1 sha224 sha256 sha512 sha3-256 blake2b512 sm3; do
  openssl dgst -r -$digest text
done
key=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff iv=0123456789abcdef0123456789abcdef
for cipher in aes-128-cbc aes-256-ctr aes-256-cbc chacha20 camellia-256-cbc; do
  length=64
  [ $cipher = aes-128-cbc ] && length=32
  openssl enc -$cipher -K "$("$busybox" printf "%.${length}s" $key)" -iv $iv -in text -out coded
  openssl dgst -r -sha256 coded
  openssl enc -d -$cipher -K "$("$busybox" printf "%.${length}s" $key)" -iv $iv -in coded | "$busybox" cmp - text && echo "$cipher comes back"
done
openssl kdf -keylen 24 -kdfopt digest:SHA256 -kdfopt pass:secret -kdfopt salt:pepper -kdfopt iter:20000 PBKDF2
for kind in "RSA -pkeyopt rsa_keygen_bits:1024" "EC -pkeyopt ec_paramgen_curve:P-256" "EC -pkeyopt ec_paramgen_curve:secp521r1"; do
  openssl genpkey -algorithm $kind -out key 2>/dev/null
  openssl pkey -in key -pubout -out public
  openssl dgst -sha256 -sign key -out signature text
  openssl dgst -sha256 -verify public -signature signature text
  echo changed >other
  openssl dgst -sha256 -verify public -signature signature other 2>/dev/null
done
openssl genpkey -algorithm ed25519 -out key
openssl pkey -in key -pubout -out public
openssl pkeyutl -sign -rawin -inkey key -in text -out signature
openssl pkeyutl -verify -rawin -pubin -inkey public -sigfile signature -in text
# A fixed key's RSA signature has only one value.
openssl dgst -sha512 -sign "$root/share/rsa.pem" text | openssl dgst -r -sha256
openssl speed -seconds 1 -evp aes-128-gcm -bytes 8192 >speed 2>&1 && echo "speed $("$busybox" grep -c AES-128-GCM speed)"

echo "== python"
run python3 -B -s "$root/share/check.py" "$busybox" || echo "exit code $?"

echo "== busybox"
"$busybox" sha512sum text | "$busybox" cut -c 1-128
"$busybox" gzip -c text | "$busybox" gunzip | "$busybox" md5sum
"$busybox" seq 1 3000 | "$busybox" sort -r | "$busybox" awk '{s += $1 * NR; t += $1 / NR} END {printf "%d %.9f\n", s, t}'
"$busybox" rm -f text coded key public signature other speed
