"""Runs a compiled model in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

MODEL = "model.onnx"
LIBRARY = "libprefill_model.so"
DOMAIN = "prefill.opt"
# Output slots of the attention op (prefill_attention_output in prefill/prefill.h).
SLOT_DENSITY = 2
SLOT_BLOCK_MAP = 3
_DENSITY = "prefill.density."
_BLOCK_MAP = "prefill.block_map."


class LoadError(RuntimeError):
    """A folder is not what the compiler writes; the text is one line."""


def _with_statistics(path: Path) -> bytes:
    """The model with the density and block map of every attention as further outputs."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    ops = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == "Attention"]
    for number, node in enumerate(ops):
        slots = ((SLOT_DENSITY, _DENSITY, 3), (SLOT_BLOCK_MAP, _BLOCK_MAP, 4))
        for slot, prefix, rank in slots:
            while len(node.output) <= slot:
                node.output.append("")
            node.output[slot] = f"{prefix}{number}"
            kind = onnx.TensorProto.FLOAT if slot == SLOT_DENSITY else onnx.TensorProto.UINT8
            shape = [None] * (2 if slot == SLOT_DENSITY else rank)
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[slot], kind, shape))
    return model.SerializeToString()


def session(
    directory: str | os.PathLike,
    session_options: onnxruntime.SessionOptions | None = None,
    providers: list | None = None,
    statistics: bool = False,
    **options,
) -> onnxruntime.InferenceSession:
    """A ready ``onnxruntime.InferenceSession`` for a folder written by the compiler.

    Args:
        directory: holds ``model.onnx`` and ``libprefill_model.so``.
        session_options: changed in place (the library is registered on it); None: new ones.
        providers: execution providers; None: the CPU.
        statistics: adds outputs ``prefill.density.N`` (float32 [batch, q_heads], visited
            share of the causal blocks) and ``prefill.block_map.N`` (uint8 [batch, q_heads,
            query blocks, key blocks]; 0 skipped, 1 visited, 2 visited as single columns) for
            the N-th attention of the main graph (not of branches); see `attention_statistics`.
            Costs time and memory.
        options: attributes of SessionOptions, e.g. ``intra_op_num_threads=2``.

    Raises `LoadError` if the folder lacks the model, and AttributeError for an unknown option.
    A model in which nothing was replaced needs no library and loads without one.
    """
    import onnxruntime

    folder = Path(directory)
    model = folder / MODEL
    library = folder / LIBRARY
    if not model.is_file():
        raise LoadError(f"no {MODEL} in {folder}: is it a folder that prefill-opt wrote?")
    if session_options is None:
        session_options = onnxruntime.SessionOptions()
    for name, value in options.items():
        if not hasattr(session_options, name):
            raise AttributeError(f"onnxruntime.SessionOptions has no '{name}'")
        setattr(session_options, name, value)
    if library.is_file():
        session_options.register_custom_ops_library(str(library.resolve()))
    providers = providers or ["CPUExecutionProvider"]
    if not statistics:
        return onnxruntime.InferenceSession(str(model), session_options, providers=providers)
    session_options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    return onnxruntime.InferenceSession(_with_statistics(model), session_options, providers=providers)


def attention_statistics(
    ready: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Runs a session made with ``statistics=True`` and returns what each attention visited.

    Returns one dictionary an attention, in graph order: ``density`` float32 [batch, q_heads]
    and ``block_map`` uint8 [batch, q_heads, query blocks, key blocks] as in `session`.
    """
    names = [output.name for output in ready.get_outputs()]
    count = sum(name.startswith(_DENSITY) for name in names)
    wanted = [f"{prefix}{i}" for i in range(count) for prefix in (_DENSITY, _BLOCK_MAP)]
    if not wanted:
        return []
    values = ready.run(wanted, feeds)
    return [{"density": values[2 * i], "block_map": values[2 * i + 1]} for i in range(count)]
