"""Runs a compiled model in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .artifacts import (
    AGAIN,
    LIBRARY,
    MODEL,
    LoadError,
    check_external_data,
    check_folder,
    check_library,
    check_readable,
    one_line,
    read_manifest,
)

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

DOMAIN = "prefill.opt"
# Output slots of the attention op (prefill_attention_output in prefill/prefill.h).
SLOT_DENSITY = 2
SLOT_BLOCK_MAP = 3
_DENSITY = "prefill.density."
_BLOCK_MAP = "prefill.block_map."


def _with_statistics(path: Path) -> bytes:
    """The model with the density and block map of every attention as further outputs."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        raise LoadError(f"{path} is damaged: {AGAIN}") from None
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


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for files; errors of Python's types are about arguments."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


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

    Raises `LoadError`, naming the file, if the folder lacks a file or one is damaged, cannot be
    read or is of another model, and AttributeError for an unknown option.
    A model in which nothing was replaced needs no library and loads without one.
    """
    import onnxruntime

    folder = Path(directory)
    check_folder(folder)
    model = folder / MODEL
    library = folder / LIBRARY
    check_readable(model)
    manifest = read_manifest(folder)
    if (manifest and manifest["kernels"]) or library.exists() or library.is_symlink():
        check_library(library)
    if session_options is None:
        session_options = onnxruntime.SessionOptions()
    for name, value in options.items():
        if not hasattr(session_options, name):
            raise AttributeError(f"onnxruntime.SessionOptions has no '{name}'")
        setattr(session_options, name, value)
    runtime_errors = _runtime_errors()
    try:
        if library.exists():
            session_options.register_custom_ops_library(str(library.resolve()))
    except runtime_errors as error:
        raise LoadError(f"{library} cannot be loaded ({one_line(error)}): {AGAIN}") from error
    providers = providers or ["CPUExecutionProvider"]
    what: str | bytes = str(model)
    if statistics:
        session_options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
        what = _with_statistics(model)
    try:
        return onnxruntime.InferenceSession(what, session_options, providers=providers)
    except runtime_errors as error:
        if not library.exists() and DOMAIN in str(error):
            raise LoadError(f"{library} is missing: {AGAIN}") from error
        check_external_data(model)
        raise LoadError(f"{model} cannot be loaded ({one_line(error)}): {AGAIN}") from error


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
