"""The model that is calibrated: compiling it, feeding it, reading its attentions' operands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..artifacts import LIBRARY, MODEL
from ..compiler import CompileError, compile, inspect
from ..hosting import DOMAIN, session
from .candidates import configuration
from .errors import CalibrationError

_OPERAND = "prefill.operand."
_RESULT = "prefill.result."
#: Bytes of operands that are kept in memory at a time.
CAPTURE_BYTES = 256 << 20


@dataclass
class Run:
    """What a run of the whole model gave.

    Attributes:
        logits: float32 [rows, vocabulary].
        density: float [layers, query heads], visited share of the causal blocks; 1: dense.
        seconds: wall time of the run.
    """

    logits: np.ndarray
    density: np.ndarray
    seconds: float


@dataclass
class Operands:
    """One attention's inputs and its exact result, as ONNX Runtime passed them.

    Attributes:
        layer: number of the attention.
        inputs: by operand slot (`prefill_opt.library.INPUTS`); None: absent.
        result: the dense output, in the layout that the kernel writes.
    """

    layer: int
    inputs: list[np.ndarray | None]
    result: np.ndarray


def attention_nodes(folder: Path) -> list:
    """The compiled attentions of a folder's graph, in order."""
    import onnx

    graph = onnx.load(str(folder / MODEL), load_external_data=False).graph
    return [n for n in graph.node if n.domain == DOMAIN and n.op_type == "Attention"]


@dataclass
class Model:
    """An ONNX model with raised attentions.

    Attributes:
        path: the model as it was given.
        work: folder for compiled variants.
        threads: intra-op threads of all runs.
        options: of every compilation, as `prefill_opt.compile` takes them.
        dense: folder of the exact compilation.
        heads: query heads of each raised attention.
        causal: whether each raised attention is causal (others stay dense).
        vocabulary: number of token ids.
    """

    path: Path
    work: Path
    threads: int
    options: dict = field(default_factory=dict)
    dense: Path = field(init=False)
    heads: list[int] = field(init=False)
    causal: list[bool] = field(init=False)
    vocabulary: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # All rows of every layer, the last one's too: its pattern is chosen like the others'.
        self.options = {"row_liveness": "off", **self.options}
        try:
            sites = [site for site in inspect(self.path)["attention"] if site["raised"]]
            if not sites:
                raise CalibrationError(f"no attention of {self.path} was raised: see prefill-opt inspect")
            self.heads = [site["q_heads"] for site in sites]
            self.causal = ["causal" in site["mask"] for site in sites]
            if not any(self.causal):
                raise CalibrationError(f"no attention of {self.path} is causal: sparse patterns need that")
            self.dense = compile(self.path, self.work / "dense", **self.options)
        except CompileError as error:
            raise CalibrationError(str(error)) from error
        found = len(attention_nodes(self.dense))
        if found != len(self.heads):
            raise CalibrationError(
                f"{self.path} has {len(self.heads)} attentions, {found} of them outside of subgraphs: "
                "calibration needs all of them there"
            )

    @property
    def layers(self) -> int:
        """How many attentions are raised."""
        return len(self.heads)

    def compile(self, heads: list[list[dict]], name: str = "variant", dense_below: int = 0) -> Path:
        """Compiles with a choice ``heads[layer][query head]``; returns the folder.

        Attentions that are not causal stay dense. Raises `CalibrationError`.
        """
        rows = [
            row if causal else [{"type": "dense"}] * len(row)
            for row, causal in zip(heads, self.causal, strict=True)
        ]
        file = self.work / f"{name}.json"
        file.write_text(json.dumps(configuration(rows, dense_below=dense_below)))
        return self.compile_as(f"config:{file}", name)

    def compile_as(self, sparsify: str, name: str = "variant") -> Path:
        """Compiles with a value of ``-sparsify``; returns the folder. Raises `CalibrationError`."""
        try:
            return compile(
                self.path, self.work / name, sparsify=sparsify, density_output=True, **self.options
            )
        except CompileError as error:
            raise CalibrationError(str(error)) from error

    def _session(self, source: str | bytes, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        if (folder / LIBRARY).is_file():
            options.register_custom_ops_library(str((folder / LIBRARY).resolve()))
        entry = "session.model_external_initializers_file_folder_path"
        if isinstance(source, bytes):
            options.add_session_config_entry(entry, str(folder.resolve()))
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def _feeds(self, session, ids: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs by the names that exporters use; a cache is empty."""
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
        kinds |= {"tensor(int32)": np.int32, "tensor(bool)": np.bool_}
        feeds = {}
        for item in session.get_inputs():
            if item.name == "input_ids":
                value = ids
            elif item.name == "attention_mask":
                value = np.ones_like(ids)
            elif item.name == "position_ids":
                value = np.arange(ids.shape[1])[None]
            elif item.name == "token_type_ids":
                value = np.zeros_like(ids)
            elif item.name == "logits_to_keep":
                value = rows
            elif "past" in item.name and len(item.shape) == 4:
                value = np.zeros((1, item.shape[1], 0, item.shape[3]))
            else:
                raise CalibrationError(f"calibration has no value for the model's input '{item.name}'")
            feeds[item.name] = np.ascontiguousarray(value, kinds.get(item.type, np.int64))
        return feeds

    @staticmethod
    def _logits_name(session) -> str:
        names = [output.name for output in session.get_outputs()]
        if "logits" in names:
            return "logits"
        for output in session.get_outputs():
            if len(output.shape) == 3 and "float" in output.type:
                return output.name
        raise CalibrationError("the model has no output 'logits' [batch, rows, vocabulary]")

    def open(self, folder: Path):
        """A session of a compiled folder, for several calls of `run`."""
        return self._session(str(folder / MODEL), folder)

    def run(self, folder: Path, ids: np.ndarray, rows: np.ndarray, ready=None) -> Run:
        """Runs a compiled folder on ids int64 [1, tokens]; logits of `rows` int64 [n].

        `ready` is a session that `open` made of it; None: a new one. Raises
        `CalibrationError` if the logits are not finite.
        """
        session = ready or self.open(folder)
        known = {output.name for output in session.get_outputs()}
        wanted = {}
        for layer, node in enumerate(attention_nodes(folder)):
            if len(node.output) > 2 and node.output[2] in known:
                wanted[layer] = node.output[2]
        feeds = self._feeds(session, ids, rows)
        start = time.perf_counter()
        values = session.run([self._logits_name(session), *wanted.values()], feeds)
        seconds = time.perf_counter() - start
        logits = values[0][0] if "logits_to_keep" in feeds else values[0][0][rows]
        if not np.isfinite(logits).all():
            raise CalibrationError("the model's logits are not finite (NaN or infinite weights?)")
        density = np.ones((self.layers, max(self.heads)))
        for layer, value in zip(wanted, values[1:], strict=True):
            density[layer, : value.shape[1]] = value[0]
        return Run(np.asarray(logits, np.float32), density, seconds)

    def block_maps(self, heads: list[list[dict]], ids: np.ndarray, wanted: list[tuple[int, int]]) -> dict:
        """Blocks that a choice visits: {(layer, head): uint8 [query blocks, key blocks]}.

        Values as in `prefill_opt.session`'s statistics.
        """
        if not wanted:
            return {}
        file = self.work / "maps.json"
        file.write_text(json.dumps(configuration(heads, dense_below=0)))
        try:
            folder = compile(self.path, self.work / "maps", sparsify=f"config:{file}", **self.options)
        except CompileError as error:
            raise CalibrationError(str(error)) from error
        ready = session(folder, statistics=True, intra_op_num_threads=self.threads, log_severity_level=4)
        names = {layer: f"prefill.block_map.{layer}" for layer, _ in wanted}
        feeds = self._feeds(ready, ids, np.array([ids.shape[1] - 1]))
        maps = dict(zip(names, ready.run(list(names.values()), feeds), strict=True))
        return {(layer, head): maps[layer][0, head] for layer, head in wanted}

    def find_vocabulary(self) -> int:
        """Size of the vocabulary, from the shape of the logits of a few tokens."""
        ids = np.zeros((1, 8), np.int64)
        self.vocabulary = self.run(self.dense, ids, np.array([7])).logits.shape[-1]
        return self.vocabulary

    def chunks(self, tokens: int) -> list[range]:
        """The layers in groups whose operands fit into `CAPTURE_BYTES`."""
        sites = [site for site in inspect(self.path)["attention"] if site["raised"]]
        site = max(sites, key=lambda s: s["q_heads"] * s["head_dim"])
        size = tokens * site["head_dim"] * 4 * (2 * site["q_heads"] + 2 * site["kv_heads"])
        step = max(1, min(self.layers, CAPTURE_BYTES // max(size, 1)))
        return [range(i, min(i + step, self.layers)) for i in range(0, self.layers, step)]

    def capture(self, ids: np.ndarray, layers: range) -> Iterator[Operands]:
        """One dense run; yields the operands of `layers`, one at a time."""
        import onnx

        graph_file = onnx.load(str(self.dense / MODEL), load_external_data=False)
        graph = graph_file.graph
        nodes = [n for n in graph.node if n.domain == DOMAIN and n.op_type == "Attention"]
        names: dict[str, str] = {}  # value in the graph -> new output

        def expose(value: str) -> str:
            # Through an Identity, so that inputs and initialisers can be outputs, too.
            if value not in names:
                names[value] = f"{_OPERAND}{len(names)}"
                graph.node.append(onnx.helper.make_node("Identity", [value], [names[value]]))
                graph.output.append(onnx.ValueInfoProto(name=names[value]))
            return names[value]

        slots = {}
        for layer in layers:
            node = nodes[layer]
            inputs = [expose(name) if name else None for name in node.input]
            slots[layer] = (inputs, expose(node.output[0]))
        session = self._session(graph_file.SerializeToString(), self.dense)
        feeds = self._feeds(session, ids, np.array([ids.shape[1] - 1]))
        values = dict(zip(names.values(), session.run(list(names.values()), feeds), strict=True))
        for layer, (inputs, result) in slots.items():
            arrays = [None if name is None else np.ascontiguousarray(values[name]) for name in inputs]
            yield Operands(layer, arrays, np.ascontiguousarray(values[result]))
