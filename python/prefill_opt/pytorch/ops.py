"""The operator ``torch.ops.prefill.sparse_attention``."""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch

from .kernels import TYPES, Spec, kernel

logger = logging.getLogger("prefill_opt")

#: GPUs that prefill-opt has targets for, by compute capability; later ones run the newest.
_GPUS = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90a"}

#: Patterns that run sparse on GPUs.
_SPARSE_ON_GPUS = ("a-shape", "streaming", "tri-shape", "strided", "vertical-slash")
_SPARSE_ON_GPUS += ("block-topk", "block-sparse", "block-topp", "xattention", "flexprefill")
_SPARSE_ON_GPUS += ("infllm-v2", "sampled", "sale", "auto")

#: Patterns that differ from layer to layer: these need `layer` and `layers`.
BY_LAYER = ("config", "duo", "trianglemix", "longgen")


def gpu_target(capability: tuple[int, int]) -> str | None:
    """The ``-target`` for GPUs of a compute capability; None: there is none."""
    if capability > (9, 0):
        return "sm_90"  # as PTX
    known = [c for c in _GPUS if c[0] == capability[0] and c <= capability]
    return _GPUS[max(known)] if known else None


@lru_cache
def _target(device: torch.device) -> str | None:
    return gpu_target(torch.cuda.get_device_capability(device))


@lru_cache
def _say_dense(sparsify: str) -> None:
    logger.warning("prefill_opt: sparsify=%r is dense, and exact, on GPUs", sparsify)


def unsupported(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str:
    """Why there is no kernel for these tensors; empty if there is one."""
    if query.device.type not in ("cpu", "cuda"):
        return f"device {query.device.type} (kernels are for CPUs and NVIDIA GPUs)"
    if not query.device == key.device == value.device:
        return "query, key and value on different devices"
    if query.device.type == "cuda":
        if query.dtype not in (torch.float16, torch.bfloat16):
            return f"element type {query.dtype} on a GPU (kernels there are for float16, bfloat16)"
        if _target(query.device) is None:
            return f"{torch.cuda.get_device_name(query.device)} (kernels are for sm_80 and later)"
    if query.dtype not in TYPES:
        return f"element type {query.dtype} (kernels are for float32, float16, bfloat16)"
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value of different types"
    if not query.dim() == key.dim() == value.dim() == 4:
        return "tensors that do not have four dimensions [batch, heads, rows, head dim]"
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        return f"{query.shape[1]} query heads over {key.shape[1]} and {value.shape[1]} key and value heads"
    if query.shape[3] == 0 or value.shape[3] == 0:
        return "an empty head dimension"
    return ""


@torch.library.custom_op("prefill::sparse_attention", mutates_args=())
def sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    sparsify: str = "auto",
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    q_offset: int | None = None,
    layer: int = 0,
    layers: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention by a generated kernel, dense or sparse. No gradients.

    On the CPU and on NVIDIA GPUs: those launch on PyTorch's current stream and take float16 and
    bfloat16, head dimensions that are multiples of 16 up to 256. Patterns that GPUs do not know
    ("grid" is one) are dense there.

    Args:
        query: [b, hq, s, d], float32, float16 or bfloat16; any strides with adjacent elements.
        key, value: [b, hk, t, d] and [b, hk, t, e]; hk divides hq.
        key_mask: [b, t], bool or integer; 0: the key is invisible.
        sinks: [hq], an extra logit a head that joins the denominator.
        sparsify: a pattern as prefill-opt's ``-sparsify`` takes it; "dense" is exact.
        causal: row i sees keys up to i + q_offset.
        scale: of the products; None: 1 / sqrt(d).
        window: keys a row sees at most, its own included; needs `causal`.
        softcap: c of ``c * tanh(x / c)``.
        q_offset: key position of row 0; None: t - s.
        layer, layers: which one of how many attentions this is, for patterns by layer.

    Returns the result [b, hq, s, e] (rows of all heads adjacent in memory) and the rows'
    log-sum-exp [b, hq, s], float32. Rows that see no key are 0.

    Raises ValueError for tensors that no kernel takes, `CompileError` for a pattern or sizes
    that prefill-opt refuses, `KernelError` for what the kernel refuses.
    """
    if why := unsupported(query, key, value):
        raise ValueError(f"prefill.sparse_attention: {why}")
    if window is not None and not (causal and window > 0):
        raise ValueError("prefill.sparse_attention: a window needs causal=True and must be positive")
    if not 0 <= layer < layers:
        raise ValueError(f"prefill.sparse_attention: layer {layer} of {layers}")
    on_gpu = query.device.type == "cuda"
    query, key, value = (t if _readable(t, on_gpu) else t.contiguous() for t in (query, key, value))
    if on_gpu and sparsify.partition(":")[0].replace("_", "-") not in ("dense", *_SPARSE_ON_GPUS):
        _say_dense(sparsify)
        sparsify = "dense"
    spec = Spec(
        dtype=TYPES[query.dtype][0],
        q_heads=query.shape[1],
        kv_heads=key.shape[1],
        head_dim=query.shape[3],
        v_head_dim=value.shape[3],
        scale=1 / math.sqrt(query.shape[3]) if scale is None else float(scale),
        causal=causal,
        window=window,
        softcap=softcap or None,
        key_mask=key_mask is not None,
        sinks=sinks is not None,
        sparsify=sparsify if causal else "dense",
        layers=layers if sparsify.partition(":")[0] in BY_LAYER else 1,
        gpu=_target(query.device) if on_gpu else None,
    )
    if key_mask is not None:
        key_mask = key_mask.to(torch.bool).contiguous()
    if sinks is not None:
        sinks = sinks.to(torch.float32 if on_gpu else query.dtype).contiguous()
    offset = torch.tensor(key.shape[2] - query.shape[2] if q_offset is None else q_offset)
    result, lse = _results(query, value)
    inputs = [query, key, value, None, key_mask, None, sinks, None, None, offset]
    kernel(spec).run(layer if spec.layers > 1 else 0, inputs, [result, lse])
    return result.transpose(1, 2), lse


def _readable(tensor: torch.Tensor, on_gpu: bool) -> bool:
    """Whether kernels can read the rows where they are: GPUs do so in pieces of 16 bytes."""
    if tensor.stride(-1) != 1:
        return False
    strides = [step for size, step in zip(tensor.shape[:-1], tensor.stride()) if size > 1]
    return not on_gpu or (tensor.data_ptr() % 16 == 0 and all(step % 8 == 0 for step in strides))


def _results(query: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, rows, _ = query.shape
    result = query.new_empty(batch, rows, heads, value.shape[3])
    return result, query.new_empty(batch, heads, rows, dtype=torch.float32)


@sparse_attention.register_fake
def _(query, key, value, *unused, **options):
    result, lse = _results(query, value)
    return result.transpose(1, 2), lse


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_lse: bool = False,
    **options,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`torch.ops.prefill.sparse_attention` with its options by name; see there.

    Returns the result [b, hq, s, e], with `return_lse` also the log-sum-exp [b, hq, s].
    """
    result, lse = torch.ops.prefill.sparse_attention(query, key, value, **options)
    return (result, lse) if return_lse else result
