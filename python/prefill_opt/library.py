"""Calls the kernels of a compiled library with NumPy arrays, through its C ABI and ctypes.

The interface is ``runtime/include/prefill/prefill.h``; tensors are DLPack ``DLTensor``s.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .artifacts import LIBRARY, load_library
from .compiler import CompileError, find_compiler

STATUS = (
    "ok",
    "invalid argument",
    "invalid shape",
    "invalid type",
    "out of memory",
    "unsupported",
    "not found",
    "device error",
)
#: Names of the operand slots, in order (prefill_attention_input).
INPUTS = (
    "q",
    "k",
    "v",
    "bias",
    "key_mask",
    "kv_lengths",
    "sinks",
    "q_segment",
    "k_segment",
    "q_offset",
    "cos",
    "sin",
    "q_positions",
    "segment_starts",
    "modality",
    "past_k",
    "past_v",
    "cache_slots",
    "score_rows",
    "context_slots",
)
#: Names of the result slots, in order (prefill_attention_output).
OUTPUTS = ("o", "lse", "density", "block_map")
#: Values for `isa_limit`.
ISA_X86_64_V2, ISA_X86_64_V3, ISA_X86_64_V4 = 2, 3, 4

#: DLPack's types of device.
CPU, CUDA = 1, 2
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4


class KernelError(RuntimeError):
    """A kernel refused its arguments or failed. `status` is the number of prefill_status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class DLTensor(ctypes.Structure):
    """A tensor as DLPack describes it (``dlpack.h``)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Context(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("isa_limit", ctypes.c_uint32),
        ("host", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
        ("alloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("message", ctypes.c_char * 256),
        ("stream", ctypes.c_void_p),
        ("device_alloc", ctypes.c_void_p),
        ("device_free", ctypes.c_void_p),
    ]


@functools.cache
def host_library() -> ctypes.CDLL:
    """The functions that need no model, from the library beside the compiler (``../lib``).

    Raises `CompileError` if it is not there.
    """
    path = find_compiler().resolve().parent.parent / "lib" / "libprefill_host.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"{path} cannot be loaded ({error}): run 'make build'", [], 127, "") from None


def call_host(name: str, *arguments) -> None:
    """Calls a function of `host_library` with a context and `arguments` (structures by reference).

    Raises `KernelError` with the library's message.
    """
    function = getattr(host_library(), name)
    function.restype = ctypes.c_int
    context = _Context(struct_size=ctypes.sizeof(_Context))
    given = [
        ctypes.byref(a)
        if isinstance(a, ctypes.Structure)
        else ctypes.c_size_t(a)
        if isinstance(a, int)
        else a
        for a in arguments
    ]
    status = function(ctypes.byref(context), *given)
    if status != 0:
        raise KernelError(context.message.decode(), status)


def dl_tensor(
    data: int,
    shape: Sequence[int],
    strides: Sequence[int],
    code: int,
    bits: int,
    keep: list,
    device: tuple[int, int] = (CPU, 0),
) -> DLTensor:
    """A descriptor of memory; `keep` gets what must outlive its use.

    Args:
        data: address of the first element.
        shape, strides: in elements.
        code: DLPack's type code (2: float, 4: bfloat, 0: signed, 1: unsigned, 6: bool).
        bits: of an element.
        device: its type (`CPU`, `CUDA`) and number.
    """
    extents = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*strides)
    keep += [extents, steps]
    pointer = ctypes.POINTER(ctypes.c_int64)
    return DLTensor(
        data, *device, len(shape), code, bits, 1, ctypes.cast(extents, pointer), ctypes.cast(steps, pointer), 0
    )


def _dlpack(array: np.ndarray, keep: list) -> DLTensor:
    """A view of `array`; `keep` gets what must outlive the call."""
    code = _BFLOAT if array.dtype.name == "bfloat16" else _TYPE_CODES.get(array.dtype.kind)
    if code is None:
        raise TypeError(f"a kernel takes no array of type {array.dtype}")
    keep.append(array)
    strides = [step // array.itemsize for step in array.strides]
    return dl_tensor(array.ctypes.data, array.shape, strides, code, array.itemsize * 8, keep)


def _array_of_pointers(tensors: Sequence[DLTensor | None]):
    pointers = [ctypes.pointer(t) if t is not None else None for t in tensors]
    kind = ctypes.POINTER(DLTensor) * max(len(tensors), 1)
    result = kind()
    for i, pointer in enumerate(pointers):
        if pointer is not None:
            result[i] = pointer
    return result


class Library:
    """The kernels of one compiled library.

    Args:
        path: ``libprefill_model.so`` or the folder that holds it.
        threads: size of the thread pool that runs the kernels, the caller included.

    Raises `LoadError` if the library cannot be loaded. Use one `Library` per calling thread.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        path = Path(path)
        if path.is_dir():
            path = path / LIBRARY
        self._pool = None
        self._c = load_library(path)
        self._c.prefill_kernel_count.restype = ctypes.c_size_t
        self._c.prefill_kernel_name.restype = ctypes.c_char_p
        self._c.prefill_kernel_name.argtypes = [ctypes.c_size_t]
        self._c.prefill_run.restype = ctypes.c_int
        self._c.prefill_run.argtypes = [
            ctypes.POINTER(_Context),
            ctypes.c_char_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
        ]
        self._c.prefill_pool_create.restype = ctypes.c_void_p
        self._c.prefill_pool_create.argtypes = [ctypes.c_size_t]
        self._c.prefill_pool_destroy.argtypes = [ctypes.c_void_p]
        self._c.prefill_pool_destroy.restype = None
        self.threads = threads
        if threads > 1:
            self._pool = self._c.prefill_pool_create(threads)
            if not self._pool:
                raise MemoryError("prefill_pool_create failed")

    def close(self) -> None:
        """Ends the thread pool; the library itself stays loaded."""
        if self._pool:
            self._c.prefill_pool_destroy(self._pool)
            self._pool = None

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_pool", None):
            self.close()

    @property
    def kernels(self) -> list[str]:
        """The names of the kernels, in order of compilation."""
        return [self._c.prefill_kernel_name(i).decode() for i in range(self._c.prefill_kernel_count())]

    def run(
        self,
        kernel: str,
        inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray | None],
        outputs: Mapping[str, np.ndarray] | Sequence[np.ndarray | None],
        isa_limit: int = 0,
    ) -> None:
        """Runs one kernel; results are written into the arrays of `outputs`.

        Args:
            kernel: one of `kernels`.
            inputs: arrays by slot name (`INPUTS`) or position; shapes as prefill.h says.
            outputs: writable arrays by slot name (`OUTPUTS`) or position.
            isa_limit: highest instruction set to use (`ISA_X86_64_V2` ...); 0: the best.

        Raises `KernelError` with the library's message, KeyError for an unknown slot name.
        """
        keep: list = []

        def slots(arrays, names):
            if isinstance(arrays, Mapping):
                unknown = set(arrays) - set(names)
                if unknown:
                    raise KeyError(f"no slot '{min(unknown)}': choose from {', '.join(names)}")
                arrays = [arrays.get(name) for name in names]
                while arrays and arrays[-1] is None:
                    arrays.pop()
            return [None if a is None else _dlpack(a, keep) for a in arrays]

        self.run_tensors(kernel, slots(inputs, INPUTS), slots(outputs, OUTPUTS), isa_limit)

    def run_tensors(
        self,
        kernel: str,
        ins: Sequence[DLTensor | None],
        outs: Sequence[DLTensor | None],
        isa_limit: int = 0,
        stream: int = 0,
    ) -> None:
        """As `run`, with tensor descriptors by position (`dl_tensor`).

        Kernels on GPUs are launched on `stream` (a CUDA stream's address; 0: the default one)
        and may run on after this returns.
        """
        context = _Context(struct_size=ctypes.sizeof(_Context), isa_limit=isa_limit, stream=stream)
        if self._pool:
            context.host = self._pool
            context.parallel_for = ctypes.cast(self._c.prefill_pool_parallel_for, ctypes.c_void_p).value
        in_pointers, out_pointers = _array_of_pointers(ins), _array_of_pointers(outs)
        status = self._c.prefill_run(
            ctypes.byref(context), kernel.encode(), in_pointers, len(ins), out_pointers, len(outs)
        )
        if status != 0:
            kind = STATUS[status] if status < len(STATUS) else f"status {status}"
            raise KernelError(f"{kernel}: {kind}: {context.message.decode()}", status)
