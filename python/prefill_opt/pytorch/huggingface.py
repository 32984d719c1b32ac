"""``attn_implementation="prefill_opt"`` for models of transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..compiler import CompileError
from .kernels import check
from .ops import BY_LAYER, unsupported

logger = logging.getLogger("prefill_opt")
#: Where `mask` leaves on a tensor [batch, keys] what it found out.
_FOUND = "_prefill_opt_mask"
#: Rows of a mask that are compared at a time.
_CHUNK = 512


@dataclass(frozen=True)
class Mask:
    """What a mask was proven to be, but for invisible keys.

    Attributes:
        causal: row i sees keys up to its position.
        window: and at most so many of them; None: all.
        offset: key position of query row 0.
        all_visible: no key is invisible.
    """

    causal: bool
    window: int | None
    offset: int
    all_visible: bool


class _Reasons:
    """Says each reason for a fallback once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("prefill_opt: PyTorch's attention is used instead: %s", reason)


_reasons = _Reasons()


def _is(function: Callable, expected: Callable, q: torch.Tensor, kv: torch.Tensor, batch: torch.Tensor) -> bool:
    """Whether a mask function agrees with `expected` for every row and key."""
    head = torch.zeros(1, dtype=torch.long, device=q.device)[None, :, None, None]
    keys = kv[None, None, None, :]
    for first in range(0, len(q), _CHUNK):
        rows = q[None, None, first : first + _CHUNK, None]
        found = function(batch[:, None, None, None], head, rows, keys)
        if not bool((found == expected(rows, keys)).all()):
            return False
    return True


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **options,
) -> torch.Tensor | None:
    """The mask function that `register` gives to transformers' ``AttentionMaskInterface``.

    Proves, by evaluating `mask_function` for every row and key, that a mask is causal, causal
    with a window of `local_size`, or nothing; then returns the visible keys, bool [batch,
    keys], marked with a `Mask`. For others (packed sequences, chunks, blocks of images) it
    returns the mask that "sdpa" gets, [batch, 1, rows, keys].
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    function = mask_function or causal_mask_function
    where = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    where |= {"q_offset": q_offset, "kv_offset": kv_offset, "use_vmap": use_vmap}
    # Of all tokens so far, or one that this function made: generate() calls it twice.
    seen = attention_mask.shape[1] if attention_mask is not None else None
    first = int(kv_offset) if seen == int(q_offset) + q_length else 0
    known = seen in (None, int(q_offset) + q_length, kv_length)
    found: Mask | None = None
    device = torch.device(options.get("device") or "cpu")
    covered = device.type in ("cpu", "cuda")
    if covered and known and not (use_vmap or torch.compiler.is_compiling() or torch.jit.is_tracing()):
        q = torch.arange(q_length, device=device) + int(q_offset)
        kv = torch.arange(kv_length, device=device) + int(kv_offset)
        kinds: list[tuple[Callable, bool, int | None]] = []
        kinds.append((lambda i, j: j <= i, True, None))
        if local_size:
            kinds.append((lambda i, j: (j <= i) & (j > i - local_size), True, local_size))
        kinds.append((lambda i, j: torch.ones_like(i * j, dtype=torch.bool), False, None))
        for expected, causal, window in kinds:
            plain = causal and window is None and function is causal_mask_function
            if plain or _is(function, expected, q, kv, torch.arange(batch_size, device=device)):
                found = Mask(causal, window, int(q_offset) - int(kv_offset), True)
                break
    if found is None:
        options.pop("allow_is_causal_skip", None)
        return sdpa_mask(
            **where,
            mask_function=function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            **options,
        )
    visible = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    if attention_mask is not None:
        given = attention_mask.to(torch.bool)[:, first : first + kv_length]
        visible[:, : given.shape[1]] = given
        visible[:, given.shape[1] :] = False  # room for keys that are not there yet
    setattr(visible, _FOUND, Mask(found.causal, found.window, found.offset, bool(visible.all())))
    return visible


def _fallback(module, query, key, value, attention_mask, options) -> tuple[torch.Tensor, None]:
    """PyTorch's attention under the same mask, with softcap and sinks, which SDPA has not."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    found: Mask | None = getattr(attention_mask, _FOUND, None)
    if found is not None:
        attention_mask = _dense_mask(found, attention_mask, query.shape[2])
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    if softcap is None and sinks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = query.shape[1] // key.shape[1]
    scale = options.get("scaling") or query.shape[3] ** -0.5
    scores = (query @ repeat_kv(key, groups).transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    scores = scores.float()
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        shares = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        shares = scores.softmax(-1)
    shares = torch.nn.functional.dropout(shares.to(query.dtype), options.get("dropout", 0.0))
    return (shares @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


def _dense_mask(found: Mask, visible: torch.Tensor, rows: int) -> torch.Tensor:
    """A proven mask as bool [batch, 1, rows, keys]."""
    i = torch.arange(rows, device=visible.device)[:, None] + found.offset
    j = torch.arange(visible.shape[1], device=visible.device)[None]
    seen = torch.ones(rows, visible.shape[1], dtype=torch.bool, device=visible.device)
    if found.causal:
        seen &= j <= i
    if found.window is not None:
        seen &= j > i - found.window
    return seen[None, None] & visible[:, None, None]


def _why_not(query, key, value, attention_mask, options) -> str:
    """Why the kernels cannot take a call; empty if they can."""
    if why := unsupported(query, key, value):
        return why
    if attention_mask is not None and not hasattr(attention_mask, _FOUND):
        return "a mask that is not causal, windowed or of keys only"
    if options.get("dropout"):
        return "dropout"
    for name, what in (("position_bias", "a position bias"), ("cache", "a paged cache")):
        if options.get(name) is not None:
            return what
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        return "gradients are wanted (run under torch.no_grad())"
    return ""


def forward(
    sparsify: str, module, query, key, value, attention_mask, **options
) -> tuple[torch.Tensor, None]:
    """The attention that `register` gives to transformers' ``AttentionInterface``.

    query [b, hq, s, d], key [b, hk, t, d], value [b, hk, t, e]; returns ([b, s, hq, e], None).
    """
    why = _why_not(query, key, value, attention_mask, options)
    if why:
        _reasons.say(why)
        return _fallback(module, query, key, value, attention_mask, options)
    found: Mask | None = getattr(attention_mask, _FOUND, None)
    if found is None:  # no mask at all: what SDPA does then
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        found = Mask(bool(causal) and query.shape[2] > 1, None, 0, True)
    place = {}
    if sparsify.partition(":")[0] in BY_LAYER:
        place = {"layer": module.layer_idx, "layers": module.config.num_hidden_layers}
    try:
        result, _ = torch.ops.prefill.sparse_attention(
            query,
            key,
            value,
            None if found.all_visible else attention_mask,
            options.get("s_aux"),
            sparsify,
            found.causal,
            options.get("scaling"),
            found.window,
            options.get("softcap"),
            found.offset,
            **place,
        )
    except CompileError as error:
        _reasons.say(str(error))
        return _fallback(module, query, key, value, attention_mask, options)
    return result.transpose(1, 2), None


def register(sparsify: str = "auto", name: str = "prefill_opt") -> None:
    """Makes ``attn_implementation=name`` known to transformers (5 or newer).

    Args:
        sparsify: a pattern as prefill-opt's ``-sparsify`` takes it; "dense" is exact.
        name: under which models ask for it; several patterns can have names of their own.

    Calls that the kernels do not cover (training, masks by position, other devices) run with
    PyTorch's attention, and the reason is logged once as a warning. Raises ImportError without
    transformers, `CompileError` for a pattern that prefill-opt refuses.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    check(sparsify)

    def call(module, query, key, value, attention_mask, **options):
        return forward(sparsify, module, query, key, value, attention_mask, **options)

    AttentionInterface.register(name, call)
    AttentionMaskInterface.register(name, mask)
