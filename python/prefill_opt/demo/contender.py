"""Measures one way of running the demo's model, in a process of its own.

A process each, so that peak memory and time belong to one contender only. The parent calls
`measure`; the child is ``python -m prefill_opt.demo.contender JOB.json`` and prints one JSON
object a line as it goes.

A job is a dictionary:

    kind     "onnx" (a model file in ONNX Runtime), "prefill" (a folder that prefill-opt
             wrote), "torch" (transformers, SDPA) or "genai" (the onnxruntime-genai builder's
             model in ONNX Runtime; gives the last row's logits only)
    path     model file or folder; unused for "torch"
    threads  intra-op threads
    runs     list of {name, ids, rows, repeats, save}: ids and rows are .npy files (int64
             [1, tokens] and [n]), save a .npy file for the logits [n, vocabulary] or null
    contexts    for a folder written with ``-parallel-encode``: {count, prefix, query}: how a prompt is cut
                into so many contexts between prefix and question (`CONTEXTS` if it is left out)
    statistics  optional .npz file: one more run (of the first entry of runs), which records
             ``density_N`` and ``block_map_N`` of every attention N ("prefill" only)
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


#: How a prompt is cut for contexts that are encoded independently; rows of prefix and question.
CONTEXTS = {"count": 4, "prefix": 32, "query": 64}


class ContenderError(RuntimeError):
    """A contender's process failed; the text is one line."""


def _status_mb(field: str) -> float:
    """A size from /proc/self/status in MB (10**6 bytes).

    VmHWM is used for the peak because ru_maxrss of a new process starts at its parent's.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _emit(**event) -> None:
    print(json.dumps(event), flush=True)


def _onnx_runner(session, contexts: dict | None = None):
    """Runs a prefill graph with the inputs of `smollm2.build_export`; returns the logits.

    A model compiled with ``-pack`` gets the prompt as its only segment, one with ``-chunk`` the
    prompt chunk by chunk, one with ``-prune=quickprefill`` group by group, and one with
    ``-parallel-encode`` cut into `contexts`; rows whose logits are wanted are in the question.
    """
    inputs = {i.name for i in session.get_inputs()}

    def run(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": ids, "logits_to_keep": rows}
        if "segment_starts" in inputs:
            feeds["segment_starts"] = np.array([0, ids.shape[1]])
        return session.run(None, feeds)[0][0]

    def run_chunks(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        from ..chunking import Cache, chunk_size, run_rows

        cache = Cache(session, ids.shape[1])
        return run_rows(cache, ids[0], chunk_size(session), logits=rows)["logits"]

    def run_groups(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        from ..chunking import Cache, chunk_size
        from ..quickprefill import group_lengths, query_size, run_parts

        tokens = ids.shape[1]
        query = min(query_size(session), tokens)
        lengths = [*group_lengths(tokens - query, chunk_size(session)), query]
        calls = run_parts(Cache(session, tokens), ids[0], lengths, np.sort(rows))
        return np.concatenate([result["logits"] for result, _ in calls])

    def run_contexts(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        from ..parallel import parallel_encode

        cut = contexts or CONTEXTS
        begin = max(cut["prefix"] + cut["count"], min(ids.shape[1] - cut["query"], int(rows.min())))
        prefix, middle, question = np.split(ids[0], [cut["prefix"], begin])
        documents = np.array_split(middle, cut["count"])
        prompt = parallel_encode(session, prefix, documents, question, logits=rows - begin)
        return prompt.outputs["logits"]

    if "prompt_parts" in inputs:
        return run_groups
    if "context_slots" in inputs:
        return run_contexts
    return run_chunks if "cache_slots" in inputs else run


def _genai_runner(session):
    """Runs the genai builder's graph without past; logits of the last row only."""
    past = {i.name: (i.shape[1], 64) for i in session.get_inputs() if i.name.startswith("past_key")}

    def run(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for name, (heads, dim) in past.items():
            feeds[name] = np.zeros((ids.shape[0], heads, 0, dim), np.float32)
        return session.run(None, feeds)[0][0]

    return run


def _torch_runner(threads: int):
    """Runs the transformers model with PyTorch's SDPA; returns the logits of `rows`."""
    import torch

    from . import smollm2

    torch.set_num_threads(threads)
    model = smollm2.load_torch()

    def run(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = model(
                input_ids=torch.from_numpy(ids),
                use_cache=True,
                logits_to_keep=torch.from_numpy(rows),
            )
        return result.logits[0].numpy()

    return run


def _load(job: dict):
    """The function (ids, rows) -> logits of a job."""
    if job["kind"] == "torch":
        return _torch_runner(job["threads"])
    import onnxruntime

    if job["kind"] == "prefill":
        from ..hosting import session

        ready = session(job["path"], intra_op_num_threads=job["threads"], log_severity_level=3)
        return _onnx_runner(ready, job.get("contexts"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    ready = onnxruntime.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])
    return {"onnx": _onnx_runner, "genai": _genai_runner}[job["kind"]](ready)


def _record_statistics(job: dict) -> None:
    """One more run with the attention's statistics as outputs; writes ``job["statistics"]``."""
    from ..hosting import attention_statistics, session

    ready = session(
        job["path"],
        intra_op_num_threads=job["threads"],
        log_severity_level=3,
        statistics=True,
    )
    first = job["runs"][0]
    feeds = {"input_ids": np.load(first["ids"]), "logits_to_keep": np.load(first["rows"])}
    arrays = {}
    for number, entry in enumerate(attention_statistics(ready, feeds)):
        arrays[f"density_{number}"] = entry["density"]
        arrays[f"block_map_{number}"] = entry["block_map"]
    np.savez_compressed(job["statistics"], **arrays)
    _emit(event="statistics", attentions=len(arrays) // 2)


def _child(job: dict) -> None:
    """Does a job and reports loaded, run (one each), statistics and done."""
    start = time.perf_counter()
    run = _load(job)
    _emit(event="loaded", seconds=time.perf_counter() - start, resident_mb=_status_mb("VmRSS"))
    for entry in job["runs"]:
        ids, rows = np.load(entry["ids"]), np.load(entry["rows"])
        seconds = []
        for _ in range(entry.get("repeats", 1)):
            start = time.perf_counter()
            logits = run(ids, rows)
            seconds.append(time.perf_counter() - start)
        peak = _status_mb("VmHWM")
        if entry.get("save"):
            np.save(entry["save"], logits)
        _emit(
            event="run",
            name=entry["name"],
            tokens=int(ids.shape[1]),
            seconds=min(seconds),
            all_seconds=seconds,
            peak_mb=peak,
        )
        del logits
    peak = _status_mb("VmHWM")
    if job.get("statistics"):
        del run
        _record_statistics(job)
    _emit(event="done", peak_mb=peak)


def measure(
    job: dict,
    progress: Callable[[dict], None] | None = None,
    log: str | os.PathLike | None = None,
    timeout: float | None = None,
) -> dict:
    """Does a job in a new process and returns what it measured.

    Args:
        job: as in the module's text.
        progress: called with every event as it arrives.
        log: file for the process's standard error.
        timeout: seconds of silence after which the process is ended.

    Returns {"load_seconds", "loaded_mb", "peak_mb", "runs": {name: {seconds, all_seconds,
    tokens, peak_mb}}}; times in seconds, memory in MB (10**6 bytes). Raises `ContenderError`
    with the child's last line.
    """
    import selectors

    result: dict = {"runs": {}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "job.json").write_text(json.dumps(job))
        log_path = Path(log) if log else folder / "stderr"
        errors = stack.enter_context(log_path.open("w+"))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment.update(OMP_NUM_THREADS=str(job["threads"]), TQDM_DISABLE="1")
        process = subprocess.Popen(
            [sys.executable, "-m", "prefill_opt.demo.contender", str(folder / "job.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(timeout):
                    raise ContenderError(f"no answer for {timeout:g} s")
                line = process.stdout.readline()
                if not line:
                    break
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event["event"] == "loaded":
                    result["load_seconds"] = event["seconds"]
                    result["loaded_mb"] = event["resident_mb"]
                elif event["event"] == "run":
                    name = event["name"]
                    keys = ("seconds", "all_seconds", "tokens", "peak_mb")
                    result["runs"][name] = {key: event[key] for key in keys}
                elif event["event"] == "done":
                    result["peak_mb"] = event["peak_mb"]
                if progress:
                    progress(event)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if status != 0 or "peak_mb" not in result:
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            why = lines[-1] if lines else ""
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise ContenderError(f"{job['kind']}: {how}: {why}"[:400])
    return result


if __name__ == "__main__":
    _child(json.loads(Path(sys.argv[1]).read_text()))
