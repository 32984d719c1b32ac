"""FlowCut in vision towers with a projector, as vision-language models export them.

transformers' own modules, exported, against what test_vision.py computes in NumPy float64.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from support import plain_session
from test_vision import flowcut
from vision import SIZES, TEXT, Tower, close, export, images, project, run, torch, tower, tower_weights, transformers

import prefill_opt


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """CLIP of 6 layers; features of the second-last one without the class token, as LLaVA-1.5 has it."""
    return tower(tmp_path_factory.mktemp("llava"), "CLIP", 6, -2, "default")


@pytest.fixture(scope="module")
def llava_siglip(tmp_path_factory):
    """SigLIP of 5 layers, no class token; features of the second-last one."""
    return tower(tmp_path_factory.mktemp("siglip"), "Siglip", 5, -2, "full")


def attentions(path):
    """Softmax nodes of a file."""
    return sum(node.op_type == "Softmax" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("target, count", [(9, 1), (1, 3), (30, 2)])
def test_clip_and_projector_are_what_numpy_gives(llava, compiled, target, count):
    path, weights = llava
    assert attentions(path) == 5, "the exporter is to leave the last layer out"
    folder = compiled(path, prune=f"flowcut:target={target}")
    pixels = images(target + 50, count)
    stages, rows, tight = flowcut(tower_weights(weights, 5), pixels, target, True)
    assert tight > 1e-4, "the images decide nothing clearly"
    found = run(folder, {"pixel_values": pixels})
    assert list(stages) == [2, 4]
    for layer, expected in stages.items():
        np.testing.assert_array_equal(found[f"prefill.rows.{layer}"], expected)
    assert found["image_features"].shape == (count, target, TEXT)
    close(found["image_features"], project(weights, rows[:, 1:]))


@pytest.mark.parametrize("target, count", [(7, 1), (20, 2)])
def test_siglip_and_projector_are_what_numpy_gives(llava_siglip, compiled, target, count):
    """Without a class token, all rows go through the projector."""
    path, weights = llava_siglip
    assert attentions(path) == 4
    folder = compiled(path, prune=f"flowcut:target={target}")
    pixels = images(target + 9, count)
    stages, rows, tight = flowcut(tower_weights(weights, 4), pixels, target, False, final_norm=False)
    assert tight > 1e-4, "the images decide nothing clearly"
    found = run(folder, {"pixel_values": pixels})
    for layer, expected in stages.items():
        np.testing.assert_array_equal(found[f"prefill.rows.{layer}"], expected)
    assert found["image_features"].shape == (count, target, TEXT)
    close(found["image_features"], project(weights, rows))


def test_a_target_of_all_patches_is_the_model_itself(llava, compiled):
    kept = compiled(llava[0], prune="flowcut:target=36")
    assert (kept / "model.onnx").read_bytes() == (compiled(llava[0]) / "model.onnx").read_bytes()


def with_unread_layer(path, out):
    """The file with another layer's nodes, of the last layer's weights, that nothing reads."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    first = next(i for i, n in enumerate(nodes) if "layers.4" in n.name.replace("/", "."))
    last = max(i for i, n in enumerate(nodes) if "layers.4" in n.name.replace("/", "."))
    made = {o for n in nodes[first : last + 1] for o in n.output}
    copies = []
    for node in nodes[first : last + 1]:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name += "_unread"
        copy.output[:] = [f"{o}_unread" for o in node.output]
        copy.input[:] = [f"{i}_unread" if i in made else i for i in node.input]
        copies.append(copy)
    # Reads what the layer gives, as a next layer would.
    source = nodes[last].output[0]
    start = nodes[first].input[0]
    for copy in copies:
        copy.input[:] = [source if i == start else i for i in copy.input]
    model.graph.node.extend(copies)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def test_a_layer_that_nothing_reads_is_no_layer(llava, compiled, tmp_path):
    """The last layer is dead where features are those of the one before it: same stages, same result."""
    path, _ = llava
    with_unread_layer(path, tmp_path / "unread.onnx")
    assert attentions(tmp_path / "unread.onnx") == 6
    pixels = {"pixel_values": images(4, 2)}
    plain = run(compiled(path, prune="flowcut:target=9"), pixels)
    found = run(compiled(tmp_path / "unread.onnx", prune="flowcut:target=9"), pixels)
    assert list(found) == list(plain)
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value)


def test_features_that_are_what_rows_leave(tmp_path, compiled):
    """With the pooled output the last layer counts, and rows leave the very value that is projected."""
    path, weights = tower(tmp_path, "CLIP", 4, -2, "default", pooled=True)
    folder = compiled(path, prune="flowcut:target=5")
    pixels = images(21, 2)
    stages, _, tight = flowcut(tower_weights(weights, 4), pixels, 5, True)
    assert tight > 1e-4 and list(stages) == [1, 3]
    found = run(folder, {"pixel_values": pixels})
    np.testing.assert_array_equal(found["prefill.rows.3"], stages[3])
    assert found["image_features"].shape == (2, 5, TEXT)
    # The rows that are left in the end are those that the second-last layer gives.
    before = flowcut_rows(weights, pixels, stages)
    close(found["image_features"], project(weights, before))
    entry = json.loads((folder / "manifest.json").read_text())
    assert entry["prune"]["layers"] == [1, 3]


def flowcut_rows(weights, pixels, stages):
    """Of the third layer's result, rows chosen after the first as in stages[1], those of stages[3]."""
    three = tower_weights(weights, 3)
    _, rows, _ = flowcut(three, pixels, 36, True, forced={1: stages[1]})
    place = np.array([np.searchsorted(a, b) for a, b in zip(stages[1], stages[3], strict=True)])
    return np.take_along_axis(rows, place[..., None], 1)[:, 1:]


def edited(path, out, edit):
    """The file with `edit(graph)` applied; `edit` returns the new name of the features."""
    model = onnx.load(path)
    output = model.graph.output[0]
    name = edit(model.graph, output.name)
    new = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    model.graph.output.remove(output)
    model.graph.output.insert(0, new)
    onnx.save(model, out)
    plain_session(out)  # ONNX Runtime takes it
    return out


def add_node(graph, op, inputs, **attributes):
    name = f"added_{len(graph.node)}"
    graph.node.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
    return name


def add_constant(graph, array):
    name = f"constant_{len(graph.initializer)}"
    graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return name


def test_reshapes_behind_the_slice(llava, compiled, tmp_path):
    """The projector's rows merged with the batch and taken apart, and features in front: rows stay rows."""

    def edit(graph, name):
        flat = add_node(graph, "Reshape", [name, add_constant(graph, np.array([-1, TEXT]))])
        whole = add_node(graph, "Reshape", [flat, add_constant(graph, np.array([-1, 36, TEXT]))])
        return add_node(graph, "Transpose", [whole], perm=[0, 2, 1])

    path = edited(llava[0], tmp_path / "reshaped.onnx", edit)
    pixels = {"pixel_values": images(3, 2)}
    expected = run(compiled(llava[0], prune="flowcut:target=9"), pixels)["image_features"]
    found = next(iter(run(compiled(path, prune="flowcut:target=9"), pixels).values()))
    np.testing.assert_array_equal(found, expected.transpose(0, 2, 1))


def mean_of_rows(graph, name):
    return add_node(graph, "ReduceMean", [name], axes=[1])


def with_a_table(graph, name):
    return add_node(graph, "Add", [name, add_constant(graph, np.ones((36, TEXT), np.float32))])


def first_nine(graph, name):
    bounds = [add_constant(graph, np.array([i])) for i in (0, 9, 1)]
    return add_node(graph, "Slice", [name, *bounds])


def as_a_grid(graph, name):
    return add_node(graph, "Reshape", [name, add_constant(graph, np.array([-1, 6, 6, TEXT]))])


@pytest.mark.parametrize(
    "edit, message",
    [
        (mean_of_rows, "ReduceMean 'added_"),
        (with_a_table, "an operand of it has a row for every patch"),
        (first_nine, "it mixes rows"),
        (as_a_grid, "it mixes rows"),
    ],
)
def test_what_is_refused_behind_the_slice(llava, compiler, tmp_path, edit, message):
    path = edited(llava[0], tmp_path / "edited.onnx", edit)
    with pytest.raises(prefill_opt.CompileError) as error:
        prefill_opt.compile(path, tmp_path / "out", prune="flowcut:target=9")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_features_of_several_layers_are_refused(tmp_path, compiler):
    class Several(Tower):
        def forward(self, pixel_values):
            states = self.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
            return torch.cat([states[i][:, 1:] for i in (-1, -4)], -1)

    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(num_hidden_layers=6, **SIZES)
    holder = torch.nn.Module()
    holder.vision_tower = transformers.CLIPVisionModel(config)
    path = tmp_path / "several.onnx"
    export(Several(holder, 0, ""), (torch.randn(2, 3, 36, 36),), path, ["pixel_values"], ["rows"],
           {n: {0: "b"} for n in ("pixel_values", "rows")})  # fmt: skip
    with pytest.raises(prefill_opt.CompileError, match="an earlier layer left out|before the last layer"):
        prefill_opt.compile(path, tmp_path / "out", prune="flowcut:target=9")
