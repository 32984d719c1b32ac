"""What sm_90a's kernels consist of, beside FlashAttention-3's: no GPU is needed or used.

    build/venv/bin/python benchmarks/cuda_static.py [--tool build/bin/prefill-cuda-kernel]

Compiles causal bf16 kernels, dense with copies by cp.async and by TMA, the same with persistent
thread blocks, and sparse, and counts instructions of the loop over
tiles without a mask, per tile and thread, in the PTX that ptxas gets, and, where nvdisasm is at
hand (sass.py), in the machine code that it makes. Registers, spills and shared memory are ptxas's,
seconds those of a CPU from tile IR to cubin. Nothing is timed on a GPU.

FlashAttention-3's numbers: for 128x128 tiles of head dimension 128, 16 wgmma, 66 exponentials,
266 floating-point operations and 32 conversions, read in the machine code of its own kernel
built with nvcc 13.0 (268 in a hand-written copy). Other tiles by what these are made of, n keys
and d columns: d/16 + n/16 products, n/2 + 2 exponentials, n/4 conversions, and 3 n/2 (scale and
difference, maximum, sum) + d/2 (rescaling) + 10 operations.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
from collections import Counter
from pathlib import Path

import sass
from common import Target, commit, finish
from prefill_opt.demo.suite import table

ROOT = Path(__file__).resolve().parent.parent
#: PTX opcodes (first parts) by what is counted.
KINDS = {
    "wgmma.mma_async": "wgmma",
    "ex2.approx": "exp2",
    "cvt.rn.bf16x2": "convert",
    "cvt.rn.f16x2": "convert",
    "shfl.sync": "shuffle",
    "setp.": "compare",
    "selp.": "select",
}
FLOAT = re.compile(r"(add|sub|mul|fma|max|min|setp|selp)\b.*\.f32$")


def blocks(ptx: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Basic blocks of a kernel's PTX and their successors, by label.

    Loops inside of inline assembly (waits for barriers) are part of their block.
    """
    body: dict[str, list[str]] = {"": []}
    follow: dict[str, list[str]] = {"": []}
    label, ended = "", False
    for line in ptx.splitlines():
        text = line.split("//")[0].strip()
        if match := re.match(r"(\$L__BB\w+):$", text):
            if not ended:
                follow[label].append(match[1])
            label, ended = match[1], False
            body[label], follow[label] = [], []
        elif match := re.match(r"(@!?%\w+\s+)?bra(\.uni)?\s+(\$L__BB\w+);", text):
            follow[label].append(match[3])
            if not match[1]:
                ended = True
        elif text in ("ret;", "exit;"):
            ended = True
        elif text:
            body[label].append(text)
    return body, follow


def loops(follow: dict[str, list[str]]) -> list[set[str]]:
    """Natural loops: for every edge back to a block on the way, the blocks between."""
    back, done, path = [], set(), []

    def visit(label: str) -> None:
        done.add(label)
        path.append(label)
        for target in follow[label]:
            if target in path:
                back.append((label, target))
            elif target not in done:
                visit(target)
        path.pop()

    visit("")
    before: dict[str, list[str]] = {label: [] for label in follow}
    for label, targets in follow.items():
        for target in targets:
            before[target].append(label)
    found: dict[str, set[str]] = {}
    for latch, head in back:
        inside = found.setdefault(head, {head})
        todo = [latch]
        while todo:
            label = todo.pop()
            if label not in inside:
                inside.add(label)
                todo += before[label]
    return list(found.values())


def count(lines: list[str]) -> Counter[str]:
    """Instructions of some PTX by kind; ``float`` holds fp32 arithmetic, compares, selects."""
    counts: Counter[str] = Counter()
    for line in lines:
        opcode = re.sub(r"^@!?%?\w+\s+", "", line).split(" ")[0].split("\t")[0].rstrip(";")
        for start, kind in KINDS.items():
            if opcode.startswith(start):
                counts[kind] += 1
        if FLOAT.match(opcode):
            counts["float"] += 1
    return counts


def main_loop(ptx: str) -> Counter[str]:
    """The counts of the loop over tiles that has the fewest compares and selects."""
    body, follow = blocks(ptx)
    found = []
    for inside in loops(follow):
        counts = count([line for label in inside for line in body[label]])
        if counts["wgmma"]:
            found.append((counts["compare"] + counts["select"], sum(counts.values()), counts))
    if not found:
        raise SystemExit("no loop with wgmma in the PTX: this script does not know its form")
    return min(found, key=lambda entry: entry[:2])[2]


def expected(n: int, d: int) -> dict[str, int]:
    """FlashAttention-3's counts for tiles of n keys, head dimension d."""
    return {
        "wgmma": d // 16 + n // 16,
        "exp2": n // 2 + 2,
        "float": 3 * n // 2 + d // 2 + 10,
        "convert": n // 4,
    }


def measure(tool: str, options: list[str]) -> dict:
    """Compiles one kernel; its report, CPU seconds and its main loop's counts."""

    def run(level: str) -> str:
        command = [tool, "--arch=90a", *options, f"--level={level}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = run("report")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    match = re.search(
        r"^(?P<name>\w+): (?P<q>\d+)x(?P<k>\d+), (?P<warps>\d+) warps, (?P<stages>\d+) stages, "
        r"(?P<shared>\d+) bytes shared, (?P<registers>\d+) registers, (?P<spilled>\d+) bytes",
        report,
    )
    if not match:
        raise SystemExit(f"{tool} reports what this script does not know: {report}")
    result = {key: int(text) for key, text in match.groupdict().items() if key != "name"}
    result["seconds"] = seconds
    ptx = run("ptx")
    budgets = re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", ptx)
    result |= {"name": match["name"], "counts": dict(main_loop(ptx))}
    if nvdisasm := sass.find_nvdisasm():
        result["sass"] = dict(sass.main_loop(ptx, nvdisasm))
    result["copy_registers"], result["compute_registers"] = sorted(map(int, budgets))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=str(ROOT / "build" / "bin" / "prefill-cuda-kernel"))
    tool = parser.parse_args().tool
    version = subprocess.run(["ptxas", "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release [\d.]+, V[\d.]+", version.stdout)
    kernels, rows, targets = [], [], []
    for dim in (64, 96, 128, 192, 256):
        for kind in ("", "tma", "persistent", "persistent tma", "lists"):
            options = ["--causal", f"--head-dim={dim}"] + [f"--{word}" for word in kind.split()]
            kernel = measure(tool, options)
            want = expected(kernel["k"], dim)
            kernels.append({"head_dim": dim, "kind": kind, "flash_attention_3": want, **kernel})
            counts = kernel["counts"]
            rows.append(
                [
                    f"{dim} {kind}",
                    f"{kernel['q']}x{kernel['k']}",
                    f"{kernel['warps'] // 4}+1",
                    f"{kernel['compute_registers']}/{kernel['copy_registers']}",
                    str(kernel["stages"]),
                    str(kernel["shared"]),
                    str(kernel["spilled"]),
                ]
                + [f"{counts.get(what, 0)} / {number}" for what, number in want.items()]
                + [str(counts.get("shuffle", 0))]
                + [" ".join(str(kernel.get("sass", {}).get(what, "-")) for what in want)]
                + [f"{kernel['seconds']:.1f}"]
            )
            if "persistent" in kind:
                targets.append(Target(f"{dim} {kind}: bytes spilled", kernel["spilled"], 0, False))
            if dim in (64, 128, 256) and not kind:
                targets.append(Target(f"{dim}: bytes spilled", kernel["spilled"], 0, False))
                for what, number in want.items():
                    share = counts.get(what, 0) / number
                    name = f"{dim}: {what} / FlashAttention-3's"
                    targets.append(Target(name, share, 1.05, False))
                    if "sass" in kernel:
                        share = kernel["sass"].get(what, 0) / number
                        targets.append(Target(f"{name}, machine code", share, 1.05, False))
    slowest = max(kernel["seconds"] for kernel in kernels)
    targets.append(Target("slowest kernel, from tile IR to cubin: CPU s", slowest, 3, False))
    head = "d,tile,warpgroups,registers,stages,shared,spilled,wgmma,exp2,float,convert,shuffles"
    head += ",in machine code,s"
    print("Instructions a tile and thread, ours / FlashAttention-3's:\n")
    print(table(head.split(","), rows))
    record = {"commit": commit(), "ptxas": release[0] if release else "", "kernels": kernels}
    return finish("cuda_static", record, targets)


if __name__ == "__main__":
    raise SystemExit(main())
