"""Import and export without change: the copy must be the same protobuf message."""

from __future__ import annotations

import exotic
import numpy as np
import onnx
import pytest
from support import SHARED_MODELS

import prefill_opt

MODELS = sorted(path.stem for path in SHARED_MODELS.glob("*.onnx"))
EXOTIC = exotic.all_models()


def difference(copy, original, path: str = "model") -> str:
    """Where two messages first differ; empty if they are equal."""
    if copy.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True):
        return ""
    for field in original.DESCRIPTOR.fields:
        mine, theirs = getattr(copy, field.name), getattr(original, field.name)
        if not field.is_repeated:
            if field.has_presence and copy.HasField(field.name) != original.HasField(field.name):
                where = "copy" if copy.HasField(field.name) else "original"
                return f"{path}.{field.name}: present in {where} only"
            if field.message_type is not None and field.has_presence:
                if original.HasField(field.name):
                    found = difference(mine, theirs, f"{path}.{field.name}")
                    if found:
                        return found
            elif repr(mine) != repr(theirs):
                return f"{path}.{field.name}: {mine!r} instead of {theirs!r}"[:400]
            continue
        if len(mine) != len(theirs):
            return f"{path}.{field.name}: {len(mine)} entries instead of {len(theirs)}"
        for i, (one, two) in enumerate(zip(mine, theirs, strict=True)):
            if field.message_type is not None:
                found = difference(one, two, f"{path}.{field.name}[{i}]")
                if found:
                    return found
            elif repr(one) != repr(two):
                return f"{path}.{field.name}[{i}]: {one!r} instead of {two!r}"
    return f"{path}: messages differ in unknown fields"


def load(path) -> onnx.ModelProto:
    """Parses a file as it is, external data left alone."""
    message = onnx.ModelProto()
    message.ParseFromString(path.read_bytes())
    return message


def copy_of(path, tmp_path) -> onnx.ModelProto:
    """The model after ``-emit=onnx``."""
    out = tmp_path / "copy" / "copy.onnx"
    out.parent.mkdir()
    prefill_opt.run_compiler([path, "-emit=onnx", "-o", out], timeout=60)
    return load(out)


@pytest.mark.parametrize("name", MODELS)
def test_shared_model(name, compiler, tmp_path):
    path = SHARED_MODELS / f"{name}.onnx"
    assert difference(copy_of(path, tmp_path), load(path)) == ""


@pytest.mark.parametrize("name", sorted(EXOTIC))
def test_exotic_model(name, compiler, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(EXOTIC[name].SerializeToString())
    assert difference(copy_of(path, tmp_path), EXOTIC[name]) == ""


@pytest.mark.parametrize("mode", ["reference", "copy", "link"])
def test_external_data(mode, compiler, tmp_path):
    """A compiled copy elsewhere still finds its weights, whatever -external-data says."""
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    model = exotic.model(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [exotic.info("x", exotic.FLOAT, ["n", 64])],
        [exotic.info("y", exotic.FLOAT, ["n", 64])],
        initialisers=[onnx.numpy_helper.from_array(weight, "w")],
    )
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(
        model,
        str(source / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    out = prefill_opt.compile(source / "model.onnx", tmp_path / "out", external_data=mode, timeout=60)
    session = prefill_opt.session(out)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert np.allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-5)


HOSTILE_OFFSETS = {
    "past the end": {"offset": "4096", "length": "16384"},
    "negative": {"offset": "-1", "length": "16"},
    "overflowing": {"offset": "18446744073709551600", "length": "32"},
    "not a number": {"offset": "many", "length": "16"},
    "wrong size": {"offset": "0", "length": "12"},
}


@pytest.mark.parametrize("what", [*HOSTILE_OFFSETS, "outside", "absolute", "missing"])
def test_hostile_external_data(what, compiler, tmp_path):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[64, 64], data_location=1)
    location = {"outside": "../secret.bin", "absolute": "/etc/hostname", "missing": "no.bin"}
    facts = {"location": location.get(what, "w.bin"), **HOSTILE_OFFSETS.get(what, {})}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)
    model = exotic.model(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [exotic.info("x", exotic.FLOAT, ["n", 64])],
        [exotic.info("y", exotic.FLOAT, ["n", 64])],
        initialisers=[tensor],
    )
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "w.bin").write_bytes(bytes(64 * 64 * 4))
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    one_line_refusal(folder / "model.onnx", tmp_path / "out")


def one_line_refusal(path, out) -> None:
    """The compiler must refuse with exit status 1 and one line, and write nothing."""
    with pytest.raises(prefill_opt.CompileError) as caught:
        prefill_opt.run_compiler([path, "-o", out], timeout=60)
    assert caught.value.returncode == 1, caught.value.stderr[-500:]
    lines = [line for line in caught.value.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, "\n".join(lines[:8])
    assert not out.exists() or not any(out.iterdir())


def test_truncated_files(compiler, tmp_path):
    whole = EXOTIC["holes_and_names"].SerializeToString()
    for share in (0.1, 0.5, 0.9, 0.999):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[: int(len(whole) * share)])
        one_line_refusal(path, tmp_path / "out")


def broken_models() -> dict[str, onnx.ModelProto]:
    """Models that no tool can run: the importer must say why."""
    node, info = onnx.helper.make_node, exotic.info
    x = [info("x", exotic.FLOAT, [1])]
    wrong_size = onnx.TensorProto(name="w", data_type=1, dims=[4], raw_data=b"\0" * 7)
    huge = onnx.TensorProto(name="w", data_type=1, dims=[2**62, 8], raw_data=b"\0" * 4)
    negative = onnx.TensorProto(name="w", data_type=1, dims=[-1], raw_data=b"\0" * 4)
    models = {
        "cycle": exotic.model([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])], x, [info("a")]),
        "missing input": exotic.model([node("Neg", ["nowhere"], ["y"])], x, [info("y")]),
        "missing output": exotic.model([node("Neg", ["x"], ["y"])], x, [info("other")]),
        "duplicate name": exotic.model(
            [node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])], x, [info("y")]
        ),
        "duplicate input": exotic.model([node("Neg", ["x"], ["y"])], x + x, [info("y")]),
        "wrong size": exotic.model([node("Neg", ["w"], ["y"])], x, [info("y")], initialisers=[wrong_size]),
        "huge": exotic.model([node("Neg", ["w"], ["y"])], x, [info("y")], initialisers=[huge]),
        "negative": exotic.model([node("Neg", ["w"], ["y"])], x, [info("y")], initialisers=[negative]),
        "no graph": onnx.ModelProto(ir_version=8),
    }
    return models


def deep_leaf() -> onnx.GraphProto:
    """A small branch."""
    leaf = [onnx.helper.make_node("Abs", ["x"], ["l"])]
    return onnx.helper.make_graph(leaf, "leaf", [], [exotic.info("l")])


BROKEN = broken_models()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_model(name, compiler, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(BROKEN[name].SerializeToString())
    one_line_refusal(path, tmp_path / "out")


def test_deep_nesting(compiler, tmp_path):
    """A thousand levels of subgraphs: refused in one line or copied, never a crash."""
    node, info = onnx.helper.make_node, exotic.info
    # Built as bytes from inside out: the Python objects would overflow the stack.
    graph = deep_leaf().SerializeToString()

    def field(number: int, payload: bytes) -> bytes:
        size, head = len(payload), []
        while True:
            head.append(size & 127 | (128 if size > 127 else 0))
            size >>= 7
            if not size:
                return bytes([number << 3 | 2, *head]) + payload

    for _ in range(1000):
        attribute = field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 255 | 128, 1, 5])
        body = field(1, b"c") + field(2, b"l") + field(4, b"If") + field(5, attribute)
        graph = field(1, body) + field(2, b"g") + field(12, info("l").SerializeToString())
    model = exotic.model([node("Neg", ["x"], ["l"])], [info("x")], [info("l")])
    head = onnx.ModelProto(ir_version=8)
    head.opset_import.extend(model.opset_import)
    path = tmp_path / "deep.onnx"
    path.write_bytes(head.SerializeToString() + field(7, graph))
    one_line_refusal(path, tmp_path / "out")


def test_not_a_model(compiler, tmp_path):
    for text in (b"", b"hello world, this is no model", b"\x00" * 64):
        path = tmp_path / "text.onnx"
        path.write_bytes(text)
        one_line_refusal(path, tmp_path / "out")
    one_line_refusal(tmp_path / "absent.onnx", tmp_path / "out")
