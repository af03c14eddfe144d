# Runs in the guest and on the host; the two outputs must be the same to the byte.
import hashlib, json, math, queue, re, struct, subprocess, sys, threading, zlib
from decimal import Decimal, getcontext

blob = bytes(i * i % 251 for i in range(200000))
for name in ('md5', 'sha1', 'sha256', 'sha512', 'sha3_256', 'blake2b'):
    print(name, hashlib.new(name, blob).hexdigest())
print('zlib', zlib.crc32(zlib.decompress(zlib.compress(blob, 6))), zlib.adler32(blob))

tree = {'n': [i / 7 for i in range(50)], 's': 'h\u00e9llo \u2603', 'x': {str(i): [None, True, -i] for i in range(20)}}
text = json.dumps(tree, sort_keys=True)
print('json', hashlib.md5(text.encode()).hexdigest(), json.loads(text) == tree)

values = [0.1, 1 / 3, 1e22, 1e23, 5e-324, 1.7976931348623157e308, math.pi, -0.0, 2 ** 0.5, math.nan, -math.inf]
values += [math.sin(i) * 10.0 ** (i * 3 - 60) for i in range(40)]
for value in values:
    print(repr(value), '%.3g %e %a' % (value, value, value) if not math.isfinite(value) else value.hex(), struct.pack('>d', value).hex())
print('math', math.fsum(math.exp(-i) * math.log(i + 1) for i in range(1000)), math.gamma(7.5), math.erf(0.3))
getcontext().prec = 60
print('decimal', Decimal(2).sqrt(), Decimal(1) / Decimal(97))
print('integers', hashlib.md5(str(pow(3, 5000) * math.factorial(300) // 12345678901234567).encode()).hexdigest(), pow(7, 10 ** 40, 10 ** 30))

work, done = queue.Queue(), queue.Queue()


def worker():
    while (item := work.get()) is not None:
        done.put((item, hashlib.sha256(blob[item:]).hexdigest()))


threads = [threading.Thread(target=worker) for _ in range(6)]
for thread in threads:
    thread.start()
for i in range(60):
    work.put(i * 1000)
for _ in threads:
    work.put(None)
for thread in threads:
    thread.join()
results = sorted(done.get() for _ in range(60))
print('threads', len(results), hashlib.md5(repr(results).encode()).hexdigest())

counter, lock = 0, threading.Lock()


def count():
    global counter
    for _ in range(3000):
        with lock:
            counter += 1


threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print('lock', counter)

for i in range(8):
    child = subprocess.run([sys.argv[1], 'sha256sum'], input=blob[i:], capture_output=True)
    print('subprocess', child.returncode, child.stdout.decode().split()[0])
print('failing', subprocess.run([sys.argv[1], 'false']).returncode)
print('regex', len(re.findall(r'(\d+)1(\d*?)2', ''.join(str(b) for b in blob[:20000]))))
