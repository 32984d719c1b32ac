"""Folders that are not what the compiler wrote: one clear error each, and no crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from adversarial_variants import text_of, variant
from onnx.external_data_helper import convert_model_to_external_data
from onnx.parser import parse_model
from support import save_model

import prefill_opt

MODEL, LIBRARY, MANIFEST = "model.onnx", "libprefill_model.so", "manifest.json"


@pytest.fixture(scope="module")
def folders(compiler, tmp_path_factory) -> tuple[Path, Path]:
    """Two models, whose attentions differ in nothing but the scale, compiled."""
    root = tmp_path_factory.mktemp("models")
    plain = save_model(parse_model(text_of(variant())), root / "plain.onnx")
    scale = "factor = Constant<value_float=0.5>()\n scaled = Mul(raw, factor)"
    scaled = save_model(parse_model(text_of(variant(scale=scale))), root / "scaled.onnx")
    return tuple(prefill_opt.compile(path, root / path.stem, timeout=60) for path in (plain, scaled))


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    """A copy of a compiled model's folder, to be damaged."""
    return Path(shutil.copytree(folders[0], tmp_path / "out"))


def refusal(folder: Path, **options) -> str:
    """What `session` says; one line that names the folder or a file in it."""
    with pytest.raises(prefill_opt.LoadError) as caught:
        prefill_opt.session(folder, log_severity_level=4, **options)
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text, text
    return text


def cut(path: Path, keep: float) -> None:
    """Leaves the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def test_whole(folder):
    prefill_opt.session(folder)
    (folder / MANIFEST).unlink()  # says nothing that a session needs
    prefill_opt.session(folder)


def test_no_folder(folder):
    assert "does not exist" in refusal(folder / "none")
    assert "is a file: give the folder" in refusal(folder / MODEL)
    (folder / "link").symlink_to(folder / "gone")
    assert "does not exist" in refusal(folder / "link")


@pytest.mark.parametrize("name", (MODEL, LIBRARY, MANIFEST))
def test_damaged_file(name, folder):
    path = folder / name
    for keep in (0.99, 0.5, 0):
        cut(path, keep)
        text = refusal(folder)
        assert str(path) in text and "compile the model again" in text, (keep, text)
        assert not name == MODEL or str(path) in refusal(folder, statistics=True)
    path.unlink()
    path.mkdir()
    assert f"{path} is not a file" in refusal(folder)
    path.rmdir()
    path.symlink_to(path)
    assert f"{path} " in refusal(folder)
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    assert f"{path} is not a file" in refusal(folder)
    path.unlink()
    path.write_text("not what it should be\n" * 10)
    assert str(path) in refusal(folder)


def test_missing_file(folder):
    (folder / LIBRARY).unlink()
    assert f"{folder / LIBRARY} is missing: compile the model again" in refusal(folder)
    (folder / MANIFEST).unlink()
    assert f"{folder / LIBRARY} is missing" in refusal(folder)
    (folder / MODEL).unlink()
    assert "no model.onnx" in refusal(folder)


def test_library_of_another_model(folder, folders):
    """Kernels have the same names in all libraries."""
    shutil.copy(folders[1] / LIBRARY, folder / LIBRARY)
    assert "kernel 'prefill_attention_0' of this library is not the one" in refusal(folder)
    # By other programs' means, too: the library itself refuses.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(folder / LIBRARY))
    with pytest.raises(Exception, match="must come from the same run of prefill-opt"):
        onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])


def test_foreign_library(folder, compiler):
    shutil.copy(compiler.resolve().parent.parent / "lib" / "libprefill_host.so", folder / LIBRARY)
    assert f"{folder / LIBRARY} cannot be loaded" in refusal(folder)
    with pytest.raises(prefill_opt.LoadError, match="was not written by prefill-opt"):
        prefill_opt.Library(folder)


def test_library_without_a_session(folder):
    (folder / LIBRARY).rename(folder / "whole")
    with pytest.raises(prefill_opt.LoadError, match="is missing"):
        prefill_opt.Library(folder)
    shutil.copy(folder / "whole", folder / LIBRARY)
    cut(folder / LIBRARY, 0.7)
    for load in (prefill_opt.Library, prefill_opt.Scheduler):
        with pytest.raises(prefill_opt.LoadError, match="is truncated"):
            load(folder)


def test_later_format(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 2, "compiler": "prefill-opt 9.0"}))
    assert "has format 2, this package reads 1: use the package of prefill-opt 9.0" in refusal(folder)


def test_external_data(compiler, tmp_path):
    model = parse_model(text_of(variant(apply="o0 = MatMul(pg, v)\n o = Mul(o0, w)")))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(16, dtype=np.float32), "w"))
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0, convert_attribute=False)
    onnx.save(model, tmp_path / "model.onnx")
    folder = prefill_opt.compile(tmp_path / "model.onnx", tmp_path / "out", external_data="copy", timeout=60)
    prefill_opt.session(folder)
    (folder / "weights.bin").write_bytes(b"")
    assert f"{folder / 'weights.bin'} is truncated" in refusal(folder)
    (folder / "weights.bin").unlink()
    assert f"{folder / 'weights.bin'} is missing" in refusal(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place")
def test_permissions(folder):
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        copy = Path(shutil.copytree(folder, Path(root) / "out"))
        os.chmod(copy, 0o755)
        for path in (copy / MODEL, copy / LIBRARY, copy / MANIFEST, copy):
            mode = path.stat().st_mode
            os.chmod(path, 0)
            os.seteuid(65534)
            try:
                text = refusal(copy)
            finally:
                os.seteuid(0)
            os.chmod(path, mode)
            assert f"{path} cannot be read (Permission denied)" in text


@pytest.mark.parametrize("name", (LIBRARY, "prefill_model.h", MANIFEST, MODEL))
def test_old_output_stays_whole(name, folder, folders):
    """A file that cannot be written, a folder in its place: none of the others changes."""
    (folder / name).unlink()
    (folder / name).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run(
        [prefill_opt.find_compiler(), folders[1].parent / "scaled.onnx", "-o", folder],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"cannot write '{folder / name}': it is a folder" in done.stderr
    assert {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()} == before
