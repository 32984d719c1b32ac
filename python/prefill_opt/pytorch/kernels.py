"""Kernels for PyTorch tensors, compiled when they are first needed and kept on disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ..calibrate.state import digest
from ..compiler import CompileError, find_compiler, run_compiler
from ..library import CPU, CUDA, DLTensor, Library, dl_tensor

#: Element types of kernels: name in MLIR, DLPack's type code.
TYPES = {torch.float32: ("f32", 2), torch.float16: ("f16", 2), torch.bfloat16: ("bf16", 4)}
_CODES = {**{kind: code for kind, (_, code) in TYPES.items()}, torch.bool: 6, torch.int64: 0}


@dataclass(frozen=True)
class Spec:
    """What is compiled into a kernel; lengths and batch are free.

    Attributes:
        dtype: element type as MLIR calls it.
        q_heads, kv_heads, head_dim, v_head_dim: of query, keys and values.
        scale: of the products.
        causal: row i sees keys up to position i.
        window: number of keys that a row sees at most, its own included; None: all.
        softcap: c of ``c * tanh(x / c)``; None: none.
        key_mask, sinks: whether these operands are given.
        sparsify: what prefill-opt's ``-sparsify`` takes.
        layers: attentions that a pattern by layer is spread over.
        gpu: the GPU whose kernel is wanted, as prefill-opt's ``-target`` calls it; None: the CPU's.
    """

    dtype: str
    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    key_mask: bool
    sinks: bool
    sparsify: str
    layers: int = 1
    gpu: str | None = None

    def ir(self) -> str:
        """The graph that prefill-opt compiles: `layers` attentions in the ``prefill`` dialect."""

        def tensor(shape: str, dims: str, kind: str = self.dtype) -> str:
            return f"tensor<{shape}x{kind}, #onnx.dims<{dims}>>"

        q = tensor(f"?x{self.q_heads}x?x{self.head_dim}", '"b", "", "s", ""')
        k = tensor(f"?x{self.kv_heads}x?x{self.head_dim}", '"b", "", "t", ""')
        v = tensor(f"?x{self.kv_heads}x?x{self.v_head_dim}", '"b", "", "t", ""')
        o = tensor(f"?x?x{self.q_heads}x{self.v_head_dim}", '"b", "s", "", ""')
        lse = tensor(f"?x{self.q_heads}x?", '"b", "", "s"', "f32")
        arguments = {"q": q, "k": k, "v": v}
        operands = ""
        if self.key_mask:
            arguments["key_mask"] = tensor("?x?", '"b", "t"', "i1")
            operands += f" key_mask(%key_mask : {arguments['key_mask']})"
        if self.sinks:
            arguments["sinks"] = f"tensor<{self.q_heads}x{self.dtype}>"
            operands += f" sinks(%sinks : {arguments['sinks']})"
        arguments["q_offset"] = "tensor<i64>"
        operands += " q_offset(%q_offset : tensor<i64>)"
        facts = ["causal"] if self.causal else []
        facts += [f"{name} = {getattr(self, name)} : i64" for name in ("q_heads", "kv_heads")]
        facts += [f"{name} = {getattr(self, name)} : i64" for name in ("head_dim", "v_head_dim")]
        facts += [f"scale = {self.scale:.9e} : f32", "alignment = #prefill<align operand>"]
        facts += ["o_layout = #prefill<layout bshd>"]
        if self.window is not None:
            facts.append(f"window_left = {self.window - 1} : i64")
        if self.softcap is not None:
            facts.append(f"softcap = {self.softcap:.9e} : f32")
        given = ", ".join(f"%{name}: {kind}" for name, kind in arguments.items())
        names = ", ".join(f'"{name}"' for name in arguments)
        lines = ['module attributes {onnx.ir_version = 10 : i64, onnx.opset_imports = [#onnx.opset<"", 23>]} {']
        lines.append(f"onnx.graph @attention({given}) attributes {{inputs = [{names}]}} {{")
        for i in range(self.layers):
            lines.append(
                f"%o{i}, %l{i} = prefill.attention %q, %k, %v{operands} "
                f'{{{", ".join(facts)}, layer = "{i}"}} : {q}, {k}, {v} -> {o}, {lse}'
            )
        results = [f"{kind}{i}" for i in range(self.layers) for kind in "ol"]
        values, kinds = ", ".join(f"%{name}" for name in results), ", ".join([o, lse] * self.layers)
        outputs = ", ".join(f'"{name}"' for name in results)
        lines.append(f"onnx.return {values} : {kinds} {{output_names = [{outputs}]}}")
        return "\n".join([*lines, "}", "}"])


def _cache() -> Path:
    base = os.environ.get("PREFILL_CACHE")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefill-opt"
    return Path(base) / "pytorch"


def _folder(spec: Spec) -> Path:
    """The folder of the compiled library, made if it is missing. Raises `CompileError`."""
    compiler = find_compiler()
    parts = [asdict(spec), str(compiler), compiler.stat().st_mtime_ns]
    # A configuration file counts with its content.
    named = spec.sparsify.partition(":")[2]
    if spec.sparsify.startswith("config:") and Path(named).is_file():
        parts.append(Path(named))
    folder = _cache() / digest(*parts)
    if (folder / "manifest.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source = Path(work) / "attention.mlir"
        source.write_text(spec.ir())
        target = ["-target=cpu," + spec.gpu] if spec.gpu else []
        run_compiler([source, f"-sparsify={spec.sparsify}", *target, "-o", Path(work) / "out"])
        try:
            (Path(work) / "out").rename(folder)
        except OSError:  # another process was first
            if not (folder / "manifest.json").is_file():
                raise
            shutil.rmtree(Path(work) / "out")
    return folder


def check(sparsify: str) -> None:
    """Raises `CompileError` for a pattern that prefill-opt does not know.

    Whether one by layer fits a model is only known with the model.
    """
    if sparsify.partition(":")[0] in ("config", "duo"):
        return
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "attention.mlir"
        source.write_text(Spec("f32", 1, 1, 64, 64, 1.0, True, None, None, False, False, sparsify).ir())
        run_compiler([source, f"-sparsify={sparsify}", "-emit=sparse", "-o", Path(work) / "out"])


class Kernel:
    """The compiled kernels of a `Spec`, one a layer. Raises `CompileError`."""

    def __init__(self, spec: Spec):
        folder = _folder(spec)
        manifest = json.loads((folder / "manifest.json").read_text())
        for site in manifest["kernels"] if spec.gpu else []:
            if not site["cuda"]["images"]:
                reason = site["cuda"]["declined"][0]["reason"]
                raise CompileError(f"no kernel for {spec.gpu}: {reason}", [], 0, "")
        self.spec = spec
        self.names = [site["kernel"] for site in manifest["attention"]]
        self._folder = folder
        self._library: Library | None = None
        self._lock = threading.Lock()

    def run(
        self, layer: int, inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor | None]
    ) -> None:
        """Runs a layer's kernel on tensors by slot (`library.INPUTS`, `library.OUTPUTS`).

        Uses as many threads as PyTorch does; on a GPU, PyTorch's current stream. Raises
        `KernelError`.
        """
        keep: list = []
        ins, outs = ([_describe(t, keep) for t in tensors] for tensors in (inputs, outputs))
        if self.spec.gpu:
            device = inputs[0].device
            with torch.cuda.device(device):
                self._load(1).run_tensors(
                    self.names[layer], ins, outs, stream=torch.cuda.current_stream(device).cuda_stream
                )
            return
        with self._lock:  # a thread pool serves one call at a time
            self._load(torch.get_num_threads()).run_tensors(self.names[layer], ins, outs)

    def _load(self, threads: int) -> Library:
        if self._library is None or self._library.threads != threads:
            if self._library is not None:
                self._library.close()
            self._library = Library(self._folder, threads)
        return self._library


def _describe(tensor: torch.Tensor | None, keep: list) -> DLTensor | None:
    if tensor is None:
        return None
    bits = 8 * tensor.element_size()
    device = (CUDA, tensor.device.index or 0) if tensor.device.type == "cuda" else (CPU, 0)
    return dl_tensor(
        tensor.data_ptr(), tensor.shape, tensor.stride(), _CODES[tensor.dtype], bits, keep, device
    )


@lru_cache(maxsize=256)
def _made(spec: Spec) -> Kernel | CompileError:
    try:
        return Kernel(spec)
    except CompileError as error:
        return error


def kernel(spec: Spec) -> Kernel:
    """The kernel of a spec, compiled or loaded once a process, and refused once: a model asks
    again in every layer. Raises `CompileError`."""
    made = _made(spec)
    if isinstance(made, CompileError):
        raise made
    return made
