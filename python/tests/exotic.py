"""Small ONNX models with unusual parts, for round trips and as seeds of the fuzzer.

Each function returns a ModelProto; `all_models` gives them by name. They are valid as
protobuf messages, not all of them are runnable.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def info(name: str, kind: int = FLOAT, shape=None):
    """A value_info with the given element type and shape (None: no shape at all)."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, opset: int = 18, initialisers=(), domains=(), **extra):
    """A model of one graph; `domains` are further (domain, version) opset imports."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initialisers))
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(*d) for d in domains]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **extra)


def scalars(name: str, values, kind=np.int64) -> TensorProto:
    """A constant tensor."""
    return numpy_helper.from_array(np.array(values, kind), name)


def if_subgraph() -> onnx.ModelProto:
    """If with a value captured from outside and nested inside another If."""
    inner_then = helper.make_graph([helper.make_node("Neg", ["x"], ["a"])], "t2", [], [info("a")])
    inner_else = helper.make_graph([helper.make_node("Abs", ["y"], ["b"])], "e2", [], [info("b")])
    then = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("If", ["c"], ["z"], then_branch=inner_then, else_branch=inner_else),
        ],
        "then",
        [],
        [info("z")],
    )
    other = helper.make_graph([helper.make_node("Exp", ["x"], ["w"])], "else", [], [info("w")])
    node = helper.make_node("If", ["c"], ["out"], "the if", then_branch=then, else_branch=other)
    return model([node], [info("c", TensorProto.BOOL, []), info("x", FLOAT, ["n"])], [info("out")])


def loop_subgraph() -> onnx.ModelProto:
    """Loop with a carried value, a scan output and an omitted trip count."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "step"], ["v2"]),
            helper.make_node("Identity", ["cond"], ["cond2"]),
            helper.make_node("Identity", ["v2"], ["each"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("cond", TensorProto.BOOL, []), info("v")],
        [info("cond2", TensorProto.BOOL, []), info("v2"), info("each")],
    )
    node = helper.make_node("Loop", ["", "go", "start"], ["last", "all"], body=body)
    return model(
        [node],
        [info("go", TensorProto.BOOL, []), info("start", FLOAT, [1]), info("step", FLOAT, [1])],
        [info("last"), info("all")],
    )


def scan_subgraph() -> onnx.ModelProto:
    """Scan over one input with one state."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "item"], ["next"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "scan body",
        [info("state", FLOAT, [2]), info("item", FLOAT, [2])],
        [info("next", FLOAT, [2]), info("seen", FLOAT, [2])],
    )
    node = helper.make_node("Scan", ["s0", "xs"], ["s1", "ys"], body=body, num_scan_inputs=1)
    return model(
        [node],
        [info("s0", FLOAT, [2]), info("xs", FLOAT, ["n", 2])],
        [info("s1", FLOAT, [2]), info("ys", FLOAT, ["n", 2])],
    )


def local_functions() -> onnx.ModelProto:
    """Two model-local functions, one calling the other, with attribute references."""
    scale = helper.make_node("Mul", ["x", "k"], ["y"])
    constant = helper.make_node("Constant", [], ["k"])
    reference = onnx.AttributeProto(
        name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT
    )
    constant.attribute.append(reference)
    inner = helper.make_function(
        "local", "Scale", ["x"], ["y"], [constant, scale], [helper.make_opsetid("", 18)], ["factor"]
    )
    inner.doc_string = "multiplies"
    inner.metadata_props.add(key="origin", value="hand")
    call = helper.make_node("Scale", ["a"], ["b"], domain="local", factor=2.5)
    outer = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["c"],
        [call, helper.make_node("Scale", ["b"], ["c"], domain="local", factor=0.5)],
        [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
    )
    with_default = helper.make_attribute("axis", 1)
    outer.attribute_proto.append(with_default)
    outer.overload = ""
    node = helper.make_node("Twice", ["in"], ["out"], domain="local")
    made = model([node], [info("in", FLOAT, [3])], [info("out", FLOAT, [3])], domains=[("local", 1)])
    made.functions.extend([inner, outer])
    return made


def tensor_types() -> onnx.ModelProto:
    """An initialiser and an input of every element type, in raw and typed storage."""
    initialisers, nodes, inputs, outputs = [], [], [], []
    for name, kind in sorted(TensorProto.DataType.items()):
        if name == "UNDEFINED":
            continue
        inputs.append(info(f"in_{name}", kind, [2, "d"]))
        outputs.append(info(f"out_{name}", kind, [2, "d"]))
        nodes.append(helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]))
        tensor = TensorProto(name=f"w_{name}", data_type=kind, dims=[2, 2])
        if name == "STRING":
            tensor.string_data.extend([b"a", b"", "ü".encode(), b"\x00\xff"])
        elif name.startswith("COMPLEX"):
            bytes_each = 8 if name.endswith("64") else 16
            tensor.raw_data = bytes(range(4 * bytes_each))
        else:
            try:
                bits = {
                    "INT4": 4,
                    "UINT4": 4,
                    "FLOAT4E2M1": 4,
                    "INT2": 2,
                    "UINT2": 2,
                    "FLOAT6E2M3": 6,
                    "FLOAT6E3M2": 6,
                }.get(name) or helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
            except (KeyError, ValueError):
                bits = 8
            tensor.raw_data = bytes(i % 2 if name == "BOOL" else (17 * i) % 251 for i in range(4 * bits // 8))
        initialisers.append(tensor)
    typed = [
        TensorProto(name="t_float", data_type=FLOAT, dims=[2], float_data=[1.5, float("nan")]),
        TensorProto(name="t_int8", data_type=TensorProto.INT8, dims=[3], int32_data=[-1, 0, 127]),
        TensorProto(name="t_f16", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[15360, 1]),
        TensorProto(name="t_bf16", data_type=TensorProto.BFLOAT16, dims=[1], int32_data=[16256]),
        TensorProto(name="t_int64", data_type=TensorProto.INT64, dims=[2], int64_data=[-5, 2**62]),
        TensorProto(name="t_double", data_type=TensorProto.DOUBLE, dims=[1], double_data=[1e300]),
        TensorProto(name="t_uint64", data_type=TensorProto.UINT64, dims=[1], uint64_data=[2**64 - 1]),
        TensorProto(name="t_bool", data_type=TensorProto.BOOL, dims=[2], int32_data=[1, 0]),
        TensorProto(name="t_c64", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1, -2]),
        TensorProto(name="t_empty", data_type=FLOAT, dims=[0, 3]),
        TensorProto(name="t_scalar", data_type=FLOAT, float_data=[3.0]),
        TensorProto(name="t_doc", data_type=FLOAT, dims=[1], float_data=[1], doc_string="documented"),
    ]
    made = model(nodes, inputs, outputs, 23, initialisers + typed)
    made.graph.initializer[0].metadata_props.add(key="k", value="v")
    return made


def sparse_initialisers() -> onnx.ModelProto:
    """Sparse initialisers and a sparse constant attribute."""
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "sparse_w")
    indices = scalars("sparse_w_idx", [1, 5])
    made = model(
        [helper.make_node("MatMul", ["x", "sparse_w"], ["y"])],
        [info("x", FLOAT, [2, 3])],
        [info("y", FLOAT, [2, 3])],
    )
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 3]))
    again = helper.make_sparse_tensor(values, scalars("i", [0, 2]), [4])
    made.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=again))
    return made


def quantisation() -> onnx.ModelProto:
    """Quantisation annotations and QDQ nodes with 4-bit weights."""
    weight = TensorProto(name="w", data_type=TensorProto.INT4, dims=[2, 3], raw_data=b"\x12\x34\x56")
    made = model(
        [
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"], axis=0, block_size=3),
            helper.make_node("MatMul", ["x", "wf"], ["y"]),
        ],
        [info("x", FLOAT, ["n", 2])],
        [info("y", FLOAT, ["n", 3])],
        21,
        [
            weight,
            numpy_helper.from_array(np.ones((2, 1), np.float32), "scale"),
            TensorProto(name="zero", data_type=TensorProto.INT4, dims=[2, 1], raw_data=b"\x00"),
        ],
    )
    note = made.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    note.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="zero")
    return made


def odd_types() -> onnx.ModelProto:
    """Sequence, optional, map, sparse and opaque types; strings; denotations."""
    tensor = helper.make_tensor_type_proto(FLOAT, ["n", None, 3])
    sequence = helper.make_sequence_type_proto(tensor)
    optional = helper.make_optional_type_proto(sequence)
    mapping = helper.make_map_type_proto(TensorProto.STRING, tensor)
    sparse = helper.make_sparse_tensor_type_proto(FLOAT, [4, 4])
    inputs = [
        helper.make_value_info("seq", sequence),
        helper.make_value_info("opt", optional),
        helper.make_value_info("map", mapping),
        helper.make_value_info("sp", sparse),
        helper.make_value_info("s", helper.make_tensor_type_proto(TensorProto.STRING, [])),
    ]
    made = model(
        [
            helper.make_node("SequenceLength", ["seq"], ["len"]),
            helper.make_node("OptionalHasElement", ["opt"], ["has"]),
        ],
        inputs,
        [info("len", TensorProto.INT64, []), info("has", TensorProto.BOOL, [])],
    )
    made.graph.input[0].doc_string = "a sequence"
    made.graph.input[4].type.denotation = "TEXT"
    picture = made.graph.input.add(name="image")
    picture.type.CopyFrom(helper.make_tensor_type_proto(FLOAT, ["b", 3, 8, 8]))
    for dim, word in zip(picture.type.tensor_type.shape.dim, "NCHW", strict=True):
        dim.denotation = f"DATA_{word}"
    untyped = made.graph.value_info.add(name="len")
    untyped.doc_string = "no type at all"
    return made


def holes_and_names() -> onnx.ModelProto:
    """Omitted optional inputs and outputs, odd names, unknown ops, every attribute kind."""
    node = helper.make_node(
        "Everything",
        ["x", "", 'y/with:odd names\n"quoted"', ""],
        ["", "o1", ""],
        name='name with spaces é \\ "',
        domain="example.unknown",
        i=-(2**63),
        f=0.1,
        s=b"\x00bytes\xff",
        ints=[1, -2, 3],
        floats=[1.0, float("inf"), -0.0],
        strings=[b"a", b""],
        t=scalars("inner", [[1, 2]], np.int32),
        tp=helper.make_tensor_type_proto(FLOAT, [1]),
    )
    node.attribute.append(
        helper.make_attribute("tensors", [scalars("a", [1.0], np.float32), scalars("b", [2], np.int8)])
    )
    node.attribute.append(
        helper.make_attribute(
            "graphs",
            [
                helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "g1", [], [info("n")]),
                helper.make_graph([], "g2", [info("only")], [info("only")]),
            ],
        )
    )
    node.attribute.append(
        onnx.AttributeProto(name="no_ints", type=onnx.AttributeProto.INTS, doc_string="empty")
    )
    node.doc_string = "documented node"
    node.overload = "v2"
    node.metadata_props.add(key="pkg.namespace", value="model/layers.0")
    made = model(
        [node, helper.make_node("Dropout", ["o1"], ["d", ""])],
        [info("x", FLOAT, ["batch", "seq", 4]), info('y/with:odd names\n"quoted"')],
        [info("d"), info("x")],
        domains=[("example.unknown", 7)],
        producer_name="tests",
        producer_version="1.0",
        doc_string="a model",
        model_version=-3,
        domain="example",
    )
    helper.set_model_props(made, {"licence": "none", "empty": ""})
    made.graph.doc_string = "a graph"
    made.graph.metadata_props.add(key="g", value="1")
    made.graph.value_info.append(info("o1", FLOAT, ["batch", None, 4]))
    return made


def duplicate_inputs() -> onnx.ModelProto:
    """Initialisers that are inputs too, unused ones, an input straight to an output."""
    made = model(
        [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Add", ["w", "w"], ["z"])],
        [info("x", FLOAT, [1]), info("w", FLOAT, [1])],
        [info("y"), info("z"), info("x"), info("w")],
        initialisers=[scalars("w", [1.0], np.float32), scalars("unused", [2.0], np.float32)],
    )
    made.graph.name = ""
    return made


def bare() -> onnx.ModelProto:
    """A model that has next to nothing."""
    made = onnx.ModelProto(ir_version=3)
    made.graph.name = "empty"
    return made


def old_model() -> onnx.ModelProto:
    """Opset 7 with ops as attributes were then."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Softmax", ["r"], ["s"], axis=1),
        helper.make_node("Slice", ["s"], ["y"], axes=[0], starts=[0], ends=[1]),
    ]
    made = model(nodes, [info("x", FLOAT, [2, 6])], [info("y")], 7, [scalars("shape", [3, 4])])
    made.ir_version = 4
    return made


def all_models() -> dict[str, onnx.ModelProto]:
    """Every model above by the name of its function."""
    makers = (
        if_subgraph,
        loop_subgraph,
        scan_subgraph,
        local_functions,
        tensor_types,
        sparse_initialisers,
        quantisation,
        odd_types,
        holes_and_names,
        duplicate_inputs,
        bare,
        old_model,
    )
    return {maker.__name__: maker() for maker in makers}
