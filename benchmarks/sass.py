"""Instructions of a kernel's main loop in machine code, where nvdisasm is at hand.

nvdisasm comes with the CUDA toolkit or from PyPI (`pip install nvidia-cuda-nvdisasm`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

#: Opcodes by what they are counted as; cuda_static.py's names.
KINDS = {
    "HGMMA": "wgmma",
    "MUFU": "exp2",
    "F2FP": "convert",
    "SHFL": "shuffle",
    "FADD": "float",
    "FMUL": "float",
    "FFMA": "float",
    "FMNMX": "float",
    "FSEL": "float",
    "FSETP": "float",
}


def find_nvdisasm() -> str | None:
    """Of the PATH, or of PyPI's package in this Python; None: there is none."""
    if path := shutil.which("nvdisasm"):
        return path
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return next((str(path) for path in sorted(packages.glob("*/bin/nvdisasm"))), None)


def loops(text: str) -> list[Counter[str]]:
    """Opcodes between each branch back and its label, in nvdisasm's text."""
    lines, labels, found = text.splitlines(), {}, []
    for number, line in enumerate(lines):
        if match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = number
    for number, line in enumerate(lines):
        target = re.search(r"BRA\S* `\((\.L_x_\d+)\)", line)
        if not target or labels.get(target[1], number) >= number:
            continue
        body = lines[labels[target[1]] : number + 1]
        opcodes = (re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", x) for x in body)
        found.append(Counter(match[1] for match in opcodes if match))
    return found


def main_loop(ptx: str, nvdisasm: str, arch: str = "sm_90a") -> Counter[str]:
    """Counts, by kind, of the shortest loop with products and exponentials and the fewest selects.

    Raises:
        RuntimeError: ptxas or nvdisasm fails, or there is no such loop.
    """
    with tempfile.TemporaryDirectory() as folder:
        code, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        code.write_text(ptx)
        text = ""
        for command in (
            ["ptxas", "-O3", f"-arch={arch}", str(code), "-o", str(cubin)],
            [nvdisasm, "-c", str(cubin)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
            text = done.stdout
    found = [loop for loop in loops(text) if loop["HGMMA"] and loop["MUFU"] > 8]
    if not found:
        raise RuntimeError("no loop with HGMMA and MUFU: sass.py does not know the code's form")
    best = min(found, key=lambda loop: (loop["FSEL"], sum(loop.values())))
    counts: Counter[str] = Counter()
    for opcode, number in best.items():
        if opcode in KINDS:
            counts[KINDS[opcode]] += number
    return counts
