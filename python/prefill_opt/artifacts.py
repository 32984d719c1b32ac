"""Looks at the files of a compiled model before they are loaded."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import struct
from pathlib import Path

MODEL = "model.onnx"
LIBRARY = "libprefill_model.so"
MANIFEST = "manifest.json"
#: The manifest's "format" that this package knows.
FORMAT = 1
AGAIN = "compile the model again"


class LoadError(RuntimeError):
    """What the compiler wrote is not there, or not whole; the text is one line and names the file."""


def check_readable(path: Path, advice: str = AGAIN) -> bytes:
    """Returns the first 64 bytes of a file. Raises `LoadError` if it is none or cannot be read."""
    try:
        # Not opened yet: a named pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise LoadError(f"{path} is not a file: {advice}")
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise LoadError(f"{path} is missing: {advice}") from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}): change that, or {advice}") from None


def check_folder(folder: Path) -> None:
    """Raises `LoadError` unless `folder` is one that may have been written by the compiler."""
    advice = "give the folder that prefill-opt wrote (-o)"
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise LoadError(f"{folder} is a file: {advice}")
        os.scandir(folder).close()
        if not (folder / MODEL).exists() and not (folder / MODEL).is_symlink():
            raise LoadError(f"no {MODEL} in {folder}: is it a folder that prefill-opt wrote?")
    except FileNotFoundError:
        raise LoadError(f"{folder} does not exist: {advice}") from None
    except OSError as error:
        raise LoadError(f"{folder} cannot be read ({error.strerror}): {advice}") from None


def check_library(path: Path) -> None:
    """Raises `LoadError` unless `path` is a whole shared library.

    The loader maps a truncated one and ends the process where it touches what is not there.
    """
    header = check_readable(path)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        raise LoadError(f"{path} is no shared library of this machine: {AGAIN}")
    # The table of sections is the last thing that the linker writes.
    (begin,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<2H", header, 58)
    if begin + size * count > path.stat().st_size:
        raise LoadError(f"{path} is truncated: {AGAIN}")


def load_library(path: Path) -> ctypes.CDLL:
    """A compiled model's library, loaded. Raises `LoadError`."""
    check_library(path)
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise LoadError(f"{path} cannot be loaded ({one_line(error)}): {AGAIN}") from None
    if not hasattr(library, "prefill_run"):
        raise LoadError(f"{path} was not written by prefill-opt: {AGAIN}")
    return library


def read_manifest(folder: Path) -> dict | None:
    """What the manifest says, or None if there is no manifest.

    Raises `LoadError` if it is damaged or of a later version of the compiler.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    check_readable(path)
    try:
        manifest = json.loads(path.read_bytes())
        version, _ = manifest["format"], manifest["kernels"]
    except (ValueError, KeyError, TypeError):
        raise LoadError(f"{path} is damaged: {AGAIN}") from None
    if version != FORMAT:
        raise LoadError(
            f"{path} has format {version}, this package reads {FORMAT}: use the package of "
            f"{manifest.get('compiler', 'that compiler')}, or {AGAIN}"
        )
    return manifest


def check_external_data(model: Path) -> None:
    """Raises `LoadError` for a file of weights beside `model` that is missing or too short.

    Finds nothing where the onnx package is not installed, or cannot read the model.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.external_data_helper import uses_external_data
    except ImportError:
        return
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except DecodeError:
        return
    for tensor in filter(uses_external_data, proto.graph.initializer):
        entry = {item.key: item.value for item in tensor.external_data}
        path = model.parent / entry.get("location", "")
        check_readable(path)
        end = int(entry.get("offset") or 0) + int(entry.get("length") or 0)
        if path.stat().st_size < end:
            raise LoadError(f"{path} is truncated: {AGAIN}")


def one_line(error: Exception) -> str:
    """The first line of an error's text, without what ONNX Runtime puts before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].strip()
    if text.startswith("[ONNXRuntimeError] : "):
        text = text.split(" : ", 3)[-1]
    return text.rstrip(".")
