"""prefill-opt: fast prompt processing (prefill) for transformer models in ONNX.

    import prefill_opt

    prefill_opt.compile("model.onnx", "out", sparsify="vertical-slash")
    session = prefill_opt.session("out", intra_op_num_threads=2)

* `compile` runs the compiler as a process and raises `CompileError` with its one-line message.
* `inspect` returns what the compiler found in a model, as a dictionary.
* `session` gives an ``onnxruntime.InferenceSession`` for a folder the compiler wrote.
* `pack` puts several prompts into one sequence, `run_packed` runs them (models compiled with ``-pack``).
* `run_chunked` runs a prompt chunk by chunk, `HybridBatch` several beside what they generate (``-chunk``).
* `parallel_encode` reads contexts that were encoded independently, `ContextStore` keeps them
  (``-parallel-encode``).
* `run_quickprefill` runs a prompt group by group and keeps a part of each group's keys (``-prune=quickprefill``).
* `LazyLLM` is a context whose steps compute the rows they attend to most (``-prune=lazyllm:aux=on``).
* `Library` calls the kernels of such a folder with NumPy arrays, without ONNX Runtime.
"""

from .artifacts import LoadError
from .chunking import HybridBatch, run_chunked
from .compiler import CompileError, compile, find_compiler, inspect, run_compiler
from .hosting import attention_statistics, session
from .lazyllm import LazyLLM
from .library import KernelError, Library
from .packing import pack, run_packed
from .parallel import ContextStore, ParallelPrompt, parallel_encode
from .quickprefill import run_quickprefill
from .schedule import Scheduler

__all__ = [
    "CompileError",
    "ContextStore",
    "HybridBatch",
    "KernelError",
    "LazyLLM",
    "Library",
    "LoadError",
    "ParallelPrompt",
    "Scheduler",
    "attention_statistics",
    "compile",
    "find_compiler",
    "inspect",
    "pack",
    "parallel_encode",
    "run_chunked",
    "run_compiler",
    "run_packed",
    "run_quickprefill",
    "session",
]
