"""What sm_90a's kernels should reach on an H100, by a model: no GPU is needed or used.

    build/venv/bin/python benchmarks/cuda_estimate.py [--tool build/bin/prefill-cuda-kernel]

Of each kernel: clocks a tile of products, of the softmax (exponentials; other instructions, as
cuda_static.py counts them in PTX) and of memory, and from these the share of the peak at several
lengths, one thread block a tile of query rows and persistent; then what the estimates of sparse
patterns cost beside dense attention. Nothing is timed.

The model. A multiprocessor and clock: 2,048 multiply-adds of 16 bits, 16 exponentials, 128 other
instructions of a thread, 38.8 bytes from the L2 cache (5,120 for all 132). A tile takes the longer
of products and softmax and EXPOSED of the shorter, or its bytes' time. A tile of query rows takes
FIRST more for its first products, last ones and stores, and where it is a thread block of its own
START more: launch, barriers, the wait for Q and the first K. EXPOSED and FIRST are chosen so that
the model comes near what FlashAttention-3 publishes for its own tiles (printed; fp16, hidden size
2,048, 16,384 tokens; the figure in its README). START is a guess. Blocks without persistence go to
whatever multiprocessor is free first, in the order of the grid.
"""

from __future__ import annotations

import argparse
import heapq
from pathlib import Path

from common import Target, commit, finish
from cuda_static import ROOT, expected, measure
from prefill_opt.demo.suite import table

PROCESSORS = 132
PRODUCTS, EXPONENTIALS, INSTRUCTIONS, BYTES = 2048, 16, 128, 38.8
EXPOSED = 0.62
FIRST, START = 2500, 1500
#: Compares and selects a score of a masked tile.
MASKED = 2
#: FlashAttention-3: head dimension -> rows, keys (causal, full), computing threads. Its blocks are
#: persistent and take tiles dynamically.
PEER_TILES = {64: (192, 128, 192, 384), 128: (128, 128, 176, 256), 256: (128, 80, 80, 256)}
#: TFLOP/s at 1K to 16K of its kernels: (head dimension, causal) -> numbers.
PUBLISHED = {
    (64, False): (392, 460, 476, 496, 497),
    (64, True): (265, 371, 420, 460, 473),
    (128, False): (565, 625, 638, 646, 648),
    (128, True): (423, 521, 579, 602, 616),
    (256, False): (639, 707, 736, 746, 756),
}
#: Of an H100 SXM, bf16, dense.
PEAK_TFLOPS = 989.4
LENGTHS = (1024, 2048, 4096, 8192, 16384, 65536)


class Kernel:
    """Clocks of one kernel's tiles.

    Attributes:
        q, k, d: query rows and keys of a tile, head dimension.
        products, softmax, memory: clocks of a multiprocessor for one tile of keys.
    """

    def __init__(self, q: int, k: int, d: int, threads: int, counts: dict[str, int]):
        self.q, self.k, self.d = q, k, d
        self.products = 2 * q * k * d / PRODUCTS
        others = sum(counts.get(kind, 0) for kind in ("float", "convert", "shuffle"))
        self.softmax = threads * (counts["exp2"] / EXPONENTIALS + others / INSTRUCTIONS)
        self.memory = 4 * k * d / BYTES
        self.masking = MASKED * q * k / INSTRUCTIONS

    @property
    def tile(self) -> float:
        """Clocks of one tile of keys."""
        busy = max(self.products, self.softmax) + EXPOSED * min(self.products, self.softmax)
        return max(busy, self.memory)

    def rows(self, tokens: int, causal: bool) -> list[float]:
        """Clocks of each tile of query rows of a head, from the first rows on."""
        result = []
        for first in range(0, tokens, self.q):
            last = min(first + self.q, tokens) if causal else tokens
            masked = -(-last // self.k) - first // self.k if causal else 0
            result.append(FIRST + -(-last // self.k) * self.tile + masked * self.masking)
        return result

    def share(self, tokens: int, heads: int, causal: bool, order: str) -> float:
        """The share of the peak of `heads` heads (of all batch entries).

        order: "tile", a thread block a tile of query rows; "persistent", ours; "dynamic",
        persistent blocks that take the next tile when they have done one.
        """
        cost = self.rows(tokens, causal)[::-1]  # the last rows first
        if order == "persistent":
            clocks = max(loads(group_heads(cost, heads, 0)))
        else:
            free = [0.0] * PROCESSORS
            groups = [cost] * heads if order == "tile" else group_heads(cost, heads, 4 * tokens * self.d)
            for work in (clocks for group in groups for clocks in group):
                heapq.heapreplace(free, free[0] + work + (START if order == "tile" else 0))
            clocks = max(free)
        work = 2 * tokens * tokens * self.d * heads / (2 if causal else 1)
        return work / PRODUCTS / PROCESSORS / clocks


def group_heads(cost: list[float], heads: int, bytes_of_head: int) -> list[list[float]]:
    """Clocks of tiles in the order of persistent kernels (cuda_abi.h), by groups of heads.

    bytes_of_head: of K and V, of which a group has no more than 32 MiB; 0: one group, as the
    runtime's launches have it.
    """
    together = max(1, min(heads, (32 << 20) // bytes_of_head)) if bytes_of_head else heads
    widths = [min(together, heads - head) for head in range(0, heads, together)]
    groups = []
    for width in widths:
        groups.append([clocks for clocks in cost for _ in range(width)])
    return groups


def loads(groups: list[list[float]]) -> list[float]:
    """Clocks of each persistent block."""
    order = [clocks for group in groups for clocks in group]
    blocks = [float(START)] * min(PROCESSORS, len(order))
    count = len(blocks)
    for number, clocks in enumerate(order):
        turn, place = divmod(number, count)
        blocks[count - 1 - place if turn % 2 else place] += clocks
    return blocks


def check_model() -> tuple[list[list[str]], float]:
    """FlashAttention-3's published numbers beside the model's; the largest deviation."""
    rows, worst = [], 0.0
    for (d, causal), numbers in PUBLISHED.items():
        q, few, many, threads = PEER_TILES[d]
        k = few if causal else many
        kernel = Kernel(q, k, d, threads, expected(k, d))
        for tokens, published in zip(LENGTHS, numbers):
            heads = 2048 // d * (16384 // tokens)
            share = kernel.share(tokens, heads, causal, "dynamic")
            off = share * PEAK_TFLOPS / published - 1
            worst = max(worst, abs(off))
            what = f"{d} {'causal' if causal else 'full'}"
            rows.append([what, str(tokens), str(published), f"{share * PEAK_TFLOPS:.0f}", f"{off:+.0%}"])
    return rows, worst


def index_cost(name: str, tokens: int, d: int) -> float:
    """Clocks a head of a multiprocessor for a pattern's estimate, from its counts (docs/Warp.md).

    Selection and the building of lists, which depend on tiles and not on d, are not in it.
    mma.sync gets half of the rate of wgmma, with bytes all of it.
    """
    pairs = tokens * tokens / 2
    if name == "vertical-slash":  # 64 rows against all keys, twice
        return 2 * 64 * tokens * (d / (PRODUCTS / 2) + 1 / EXPONENTIALS + 4 / INSTRUCTIONS)
    if name == "block-sparse":  # means of 128 rows and 64 keys
        return 2 * tokens * d / INSTRUCTIONS + pairs / (128 * 64) * d / INSTRUCTIONS
    if name == "sale":  # every 4th row in bytes, exponentials, mean values
        scores = pairs / 4
        return scores * (d / PRODUCTS + 1 / EXPONENTIALS + 4 / INSTRUCTIONS + 2 * d / 64 / INSTRUCTIONS)
    scores = pairs / 8**2  # xattention with stride 8
    return scores * (8 * d / PRODUCTS + 1 / EXPONENTIALS + 4 / INSTRUCTIONS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=str(ROOT / "build" / "bin" / "prefill-cuda-kernel"))
    parser.add_argument("--heads", type=int, default=32, help="heads of all batch entries together")
    arguments = parser.parse_args()
    tool, heads = str(Path(arguments.tool)), arguments.heads
    rows, worst = check_model()
    print("FlashAttention-3, TFLOP/s:\n")
    print(table(["head dimension", "tokens", "published", "model", ""], rows))

    kernels, clocks, shares, cost, balance = [], [], [], [], []
    for d in (64, 96, 128, 192, 256):
        for causal in (True, False):
            options = [f"--head-dim={d}", "--tma"] + ["--causal"] * causal
            found = {}
            for persistent in (False, True):
                k = measure(tool, options + ["--persistent"] * persistent)
                found[persistent] = Kernel(k["q"], k["k"], d, 32 * k["warps"], k["counts"])
            what = f"{d} {'causal' if causal else 'full'}"
            plain, ours = found[False], found[True]
            clocks.append([what, f"{plain.q}x{plain.k}"])
            clocks[-1] += [f"{x:.0f}" for x in (plain.products, plain.softmax, plain.memory, plain.tile)]
            row = {"kernel": what, "tile": [plain.q, plain.k], "persistent_tile": [ours.q, ours.k]}
            row["share"] = {t: plain.share(t, heads, causal, "tile") for t in LENGTHS}
            row["persistent_share"] = {t: ours.share(t, heads, causal, "persistent") for t in LENGTHS}
            kernels.append(row)
            pairs = zip(row["share"].values(), row["persistent_share"].values())
            shares.append([what] + [f"{100 * a:.0f} / {100 * b:.0f} ({b / a - 1:+.1%})" for a, b in pairs])
            if causal and d in (64, 128):
                for name, size in (("groups that fit the L2 cache", 4 * d), ("all heads", 0)):
                    groups = [group_heads(ours.rows(t, True)[::-1], heads, t * size) for t in LENGTHS]
                    parts = [max(loads(g)) * PROCESSORS / sum(map(sum, g)) for g in groups]
                    balance.append([f"{d}, {name}"] + [f"{part:.3f}" for part in parts])
                for name in ("vertical-slash", "block-sparse", "sale", "xattention"):
                    parts = [index_cost(name, t, d) / sum(plain.rows(t, causal)) for t in LENGTHS]
                    cost.append([f"{d} {name}"] + [f"{100 * part:.1f}" for part in parts])
    lengths = [str(t) for t in LENGTHS]
    print("\nClocks of a tile, with TMA:\n")
    print(table(["kernel", "tile", "products", "softmax", "memory", "predicted"], clocks))
    print(f"\n% of the peak with {heads} heads, a block a tile / persistent, by tokens:\n")
    print(table(["kernel", *lengths], shares))
    print("\nClocks of the busiest persistent block over the mean:\n")
    print(table(["order", *lengths], balance))
    print("\nEstimates of sparse patterns, % of dense attention, by tokens:\n")
    print(table(["pattern", *lengths], cost))
    targets = [Target("model / FlashAttention-3's numbers, largest deviation", worst, 0.2, False)]
    return finish("cuda_estimate", {"commit": commit(), "heads": heads, "kernels": kernels}, targets)


if __name__ == "__main__":
    raise SystemExit(main())
