"""Kernels for GPUs from Python, without a GPU.

A driver of ours (unittests/Codegen/CUDA/FakeDriver.c) takes the launches. What they compute is
tested where an emulator runs them (PrefillCudaHostTests); here, what reaches the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from prefill_opt.library import KernelError  # noqa: E402
from prefill_opt.pytorch import kernels, ops  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiler")


class Launch(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_char_p),
        ("code", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("params", ctypes.POINTER(ctypes.c_void_p)),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Launch))


class State(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("device", ctypes.c_int),
        ("context", ctypes.c_ulonglong),
        ("failing", ctypes.c_char_p),
        ("code", ctypes.c_int),
        ("loads", ctypes.c_int),
        ("launches", ctypes.c_int),
        ("shared_limit", ctypes.c_int),
        ("pool_live", ctypes.c_int),
        ("pool", ctypes.c_void_p * 16),
        ("pool_bytes", ctypes.c_size_t * 16),
        ("pool_count", ctypes.c_int),
        ("launch", CALLBACK),
        ("user", ctypes.c_void_p),
    ]


class OnGpu(torch.Tensor):
    """A tensor in the host's memory that says it is on GPU 0."""

    device = property(lambda self: torch.device("cuda", 0))


class Driver:
    def __init__(self, state: State):
        self.state = state
        self.launches: list[dict] = []
        self._callback = CALLBACK(self._launch)
        state.launch = self._callback

    def _launch(self, user, pointer) -> int:
        launch = pointer.contents
        self.launches.append(
            {
                "function": launch.function.decode(),
                "grid": tuple(launch.grid),
                "block": tuple(launch.block),
                "stream": launch.stream,
                "pointers": [launch.params[i] for i in range(5)],  # q, k, v, o, lse
            }
        )
        return 0


@pytest.fixture
def driver(compiler, monkeypatch, tmp_path):
    fake = compiler.parent.parent / "lib" / "libfake_cuda.so"
    if not fake.exists():
        pytest.skip(f"{fake} is not built (ninja PrefillFakeDriver)")
    reset = ctypes.CDLL(str(fake), mode=ctypes.RTLD_GLOBAL).fake_cuda_reset
    reset.restype = ctypes.POINTER(State)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0x5000})
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    ops._target.cache_clear()
    ops._say_dense.cache_clear()
    yield Driver(reset().contents)
    ops._target.cache_clear()


def operands(dtype=torch.float16, d=64, s=200):
    return [torch.randn(2, heads, s, d).to(dtype).as_subclass(OnGpu) for heads in (4, 2, 2)]


def call(*arguments, **options):
    """The operator's own function: PyTorch's dispatcher would ask for a real GPU."""
    return ops.sparse_attention._init_fn(*arguments, **options)


def test_launch(driver, caplog):
    q, k, v = operands()
    with caplog.at_level(logging.WARNING, "prefill_opt"):
        result, lse = call(q, k, v)
        call(q, k, v)
    assert not caplog.records  # "auto" is sparse on GPUs, from 1,024 keys on
    assert len(driver.launches) == 2 and driver.state.loads == 1
    launch = driver.launches[0]
    assert launch["function"].startswith("prefill_attention_f16_d64") and "sm_80" in launch["function"]
    assert launch["grid"] == (2, 4, 2) and launch["block"] == (128, 1, 1)
    assert launch["stream"] == 0x5000
    assert launch["pointers"] == [x.data_ptr() for x in (q, k, v, result, lse)]
    assert result.shape == (2, 4, 200, 64) and lse.shape == (2, 4, 200)


def test_patterns_that_gpus_do_not_know_are_dense(driver, caplog):
    with caplog.at_level(logging.WARNING, "prefill_opt"):
        for _ in range(2):
            call(*operands(), sparsify="grid:dense-below=100")
    assert [r.message for r in caplog.records] == [
        "prefill_opt: sparsify='grid:dense-below=100' is dense, and exact, on GPUs"
    ]
    assert len(driver.launches) == 2


def test_sparse(driver, caplog):
    with caplog.at_level(logging.WARNING, "prefill_opt"):
        call(*operands(), sparsify="a-shape:init=64,local=64,dense-below=100")
    assert not caplog.records
    functions = [launch["function"] for launch in driver.launches]
    assert functions[0] == "prefill_index_prepare" and functions[-1].endswith("_lists")
    assert driver.state.pool_live == 0 or driver.state.pool_count == 2  # the plan stays


def test_rows_that_gpus_cannot_read_in_place_are_copied(driver):
    q, k, v = operands()
    wide = torch.zeros(2, 4, 200, 68, dtype=torch.float16).as_subclass(OnGpu)
    call(wide[..., :64], k, v)
    assert driver.launches[0]["pointers"][0] != wide.data_ptr()
    assert driver.launches[0]["pointers"][1] == k.data_ptr()


def test_driver_errors_name_the_kernel(driver):
    driver.state.failing, driver.state.code = b"cuLaunchKernel", 2
    with pytest.raises(KernelError, match="kernel 'prefill_attention_0': cuLaunchKernel: CUDA_ERROR_OUT_OF"):
        call(*operands())
    driver.state.failing = None
    call(*operands())
    assert len(driver.launches) == 1


def test_what_gpus_do_not_take(driver):
    q, k, v = operands(torch.float32)
    assert "float32 on a GPU" in ops.unsupported(q, k, v)
    with pytest.raises(ValueError, match="float32 on a GPU"):
        call(q, k, v)
    q, k, v = operands()
    assert "different devices" in ops.unsupported(q, torch.zeros(2, 2, 200, 64, dtype=torch.float16), v)
    with pytest.raises(kernels.CompileError, match="no kernel for sm_80: head dimension 72"):
        call(*operands(d=72))
    assert not driver.launches


@pytest.mark.parametrize(
    "capability, target",
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_90"),
        ((12, 1), "sm_90"),
    ],
)
def test_targets(capability, target):
    assert ops.gpu_target(capability) == target


def test_no_driver(tmp_path):
    """Without libcuda.so.1: one clear line, from a process that has loaded no driver."""
    program = """
import torch, test_cuda
from prefill_opt.pytorch import ops
torch.cuda.get_device_capability = lambda device: (8, 0)
torch.cuda.device = lambda device: __import__("contextlib").nullcontext()
torch.cuda.current_stream = lambda device: type("Stream", (), {"cuda_stream": 0})
try:
    test_cuda.call(*test_cuda.operands(), sparsify="dense")
except test_cuda.KernelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    if "cuCtxGetCurrent" in done.stdout or "no CUDA context" in done.stdout:
        pytest.skip("this machine has a driver")
    assert "device error: kernel 'prefill_attention_0': no NVIDIA driver: libcuda.so.1 cannot be" in done.stdout, (
        done.stdout + done.stderr
    )
