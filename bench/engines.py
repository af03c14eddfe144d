"""How the guest benchmark is started natively, under anykvm and under QEMU, and how its output becomes numbers."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

import report

TIME_LIMIT = 300  # seconds for one run of the program
CLOCK_TOLERANCE = 0.05  # how far the guest's clock may be from the host's over a whole run...
CLOCK_SLACK = 0.1  # ... and how many seconds the console may be late


class RunFailed(Exception):
    """The program did not finish, or computed something wrong."""


@dataclass
class Files:
    """What every engine runs."""

    guest_bench: str
    kernel: str
    initrd: str
    memory_mib: int = 512


@dataclass
class Outcome:
    boot: float | None = None  # seconds until the guest's first program
    memory: float | None = None  # MiB of the VMM's process at the end, without the guest's RAM
    times: dict = field(default_factory=dict)  # workload -> ns, the best in this run
    values: dict = field(default_factory=dict)  # workload -> what it computed
    operations: dict = field(default_factory=dict)


@dataclass
class Engine:
    """NAME, NAME:PROGRAM (another anykvm or QEMU) or NAME:VARIABLE=VALUE (the same with that in its environment)."""

    label: str
    kind: str
    program: str
    variables: dict

    @staticmethod
    def parse(text, programs):
        kind, _, variant = text.partition(":")
        if kind not in KINDS:
            raise ValueError(f"{kind}: no such engine; there are {', '.join(KINDS)}")
        program, variables = programs.get(kind, ""), {}
        if "=" in variant:
            name, _, value = variant.partition("=")
            variables[name] = value
        elif variant:
            program = os.path.abspath(variant)
        return Engine(text, kind, program, variables)

    def run(self, files, workloads, cpus, best_of):
        words = [f"bench_only={','.join(workloads)}", f"bench_best={best_of}"]
        arguments = KINDS[self.kind](self.program, files, cpus, words)
        environment = dict(os.environ, **self.variables)
        if self.kind == "native":
            environment.update(word.split("=", 1) for word in words)
            environment["bench_folder"] = "/dev/shm"
        return watch(arguments, environment, None if self.kind == "native" else files.memory_mib)


def native(_program, files, cpus, _words):
    # A guest with one CPU has its threads on one CPU.
    pin = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if cpus == 1 else []
    return pin + [files.guest_bench]


def command_line(words):
    return " ".join(["console=ttyS0 reboot=t panic=-1 quiet rdinit=/bench", *words])


def anykvm(program, files, cpus, words):
    return [program, "run", "--kernel", files.kernel, "--initrd", files.initrd, "--memory", f"{files.memory_mib}M",
            "--cpus", str(cpus), "--append", " ".join(["quiet rdinit=/bench", *words])]


def qemu(files, cpus, words):
    return ["-smp", str(cpus), "-m", f"{files.memory_mib}M", "-kernel", files.kernel, "-initrd", files.initrd,
            "-append", command_line(words), "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]


def qemu_anykvm(program, files, cpus, words):
    return [program, "exec", "--", "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", *qemu(files, cpus, words)]


# Guest RAM as QEMU has it for vhost-user and virtiofs: other processes could write to it.
def qemu_anykvm_shared(program, files, cpus, words):
    backend = f"memory-backend-memfd,id=ram,size={files.memory_mib}M,share=on"
    return [*qemu_anykvm(program, files, cpus, words), "-object", backend, "-machine", "memory-backend=ram"]


def qemu_tcg(program, files, cpus, words):
    return [program, "-accel", "tcg,thread=multi", "-cpu", "max", *qemu(files, cpus, words)]


KINDS = {"native": native, "anykvm": anykvm, "qemu-anykvm": qemu_anykvm, "qemu-anykvm-shared": qemu_anykvm_shared,
         "tcg": qemu_tcg}


def watch(arguments, environment, guest_mib):
    """Runs the program and reads its lines as they come. `guest_mib`: the guest's RAM; None if there is no guest."""
    started = time.monotonic()
    process = report.start_first(arguments, env=environment, stderr=subprocess.STDOUT)
    limit = threading.Timer(TIME_LIMIT, lambda: os.killpg(process.pid, signal.SIGKILL))
    limit.start()
    outcome, lines, begin, end = Outcome(), [], None, None
    try:
        for raw in process.stdout:
            arrived = time.monotonic()
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            at = line.find("BENCH ")
            if at < 0:
                continue
            match line[at:].split():
                case ["BENCH", "begin", clock]:
                    begin = (arrived, int(clock))
                    outcome.boot = arrived - started if guest_mib else None
                case ["BENCH", "result", name, best, operations, value]:
                    outcome.times[name] = int(best)
                    outcome.operations[name] = int(operations)
                    outcome.values[name] = value
                case ["BENCH", "failed", *what]:
                    raise RunFailed(" ".join(what))
                case ["BENCH", "end", clock]:
                    end = (arrived, int(clock))
                    if guest_mib:
                        outcome.memory = memory_beyond_ram(process.pid, guest_mib)
        process.wait()
    finally:
        limit.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if begin is None or end is None:
        raise RunFailed("did not finish; its last lines:\n" + "\n".join(lines[-15:]))
    check_clock(end[0] - begin[0], (end[1] - begin[1]) / 1e9)
    return outcome


def memory_beyond_ram(pid, guest_mib):
    """MiB that the process has for itself: all mappings but the one that is the guest's RAM. None: it has ended already."""
    mappings = []
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key == "Size":
                    mappings.append([int(value.split()[0]) / 1024, 0.0])
                elif key == "Pss":
                    mappings[-1][1] = int(value.split()[0]) / 1024
    except OSError:
        return None
    ram = min((m for m in mappings if m[0] >= guest_mib), default=None)
    return sum(m[1] for m in mappings if m is not ram) if ram else None


def check_clock(host_seconds, guest_seconds):
    """Times are those of the guest's clock, so it must be right."""
    if abs(host_seconds - guest_seconds) > CLOCK_SLACK + CLOCK_TOLERANCE * host_seconds:
        raise RunFailed(f"its clock says {guest_seconds:.2f} s where the host's says {host_seconds:.2f} s")
