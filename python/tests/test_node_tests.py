"""ONNX's own node tests of Attention, and their expansions into primitive ops.

Every case is compiled. A case whose attention was raised runs in ONNX Runtime with our
kernel and must give the case's expected outputs. A case that was not raised must be listed in
data/declined_node_tests.json, and must still do what the original does in ONNX Runtime.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from support import attention_sites, count_kernels, plain_session, save_model

import prefill_opt

DECLINED = json.loads((Path(__file__).parent / "data" / "declined_node_tests.json").read_text())


@functools.cache
def node_tests() -> dict:
    """The cases by name; generating them takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    return {case.name: case for case in cases if case.name.startswith("test_attention")}


def pytest_generate_tests(metafunc):
    """One test a case."""
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize("case_name", sorted(node_tests()))


def allowed_reason(name: str) -> str | None:
    """Why a case may stay unraised; None if it must be raised."""
    for entry in DECLINED["declined"]:
        if re.fullmatch(entry["pattern"], name):
            return entry["reason"]
    return None


def close(got, expected, case) -> str:
    """Empty if `got` is what the case expects, else what is wrong."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    if got.dtype != expected.dtype:
        return f"type {got.dtype} instead of {expected.dtype}"
    half = expected.dtype.name in ("float16", "bfloat16")
    rtol = max(case.rtol, 1e-2 if half else 1e-3)
    atol = max(case.atol, (3e-2 if expected.dtype.name == "bfloat16" else 1e-2) if half else 1e-5)
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    return f"largest difference {np.nanmax(np.abs(got - expected)):.3e}"


def feed_value(value, item, session_type: str):
    """An input as ONNX Runtime takes it (bfloat16 needs an OrtValue)."""
    import onnxruntime

    if session_type == "tensor(bfloat16)":
        raw = np.ascontiguousarray(value).view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, 16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))


def run(session, inputs, expected) -> list:
    """Runs a session with positional inputs; bfloat16 results come back as such."""
    feeds = {
        item.name: feed_value(value, item, item.type)
        for item, value in zip(session.get_inputs(), inputs, strict=True)
    }
    names = [item.name for item in session.get_outputs()]
    results = []
    for value, wanted in zip(session.run_with_ort_values(names, feeds), expected, strict=True):
        array = value.numpy()
        if np.asarray(wanted).dtype.name == "bfloat16" and array.dtype.name != "bfloat16":
            array = array.view(np.asarray(wanted).dtype)
        results.append(array)
    return results


def original_results(case, inputs, expected):
    """What ONNX Runtime gives for the case as it is; None if it cannot run it."""
    try:
        return run(plain_session(case.model.SerializeToString()), inputs, expected)
    except Exception:
        return None


def test_node(case_name, compiler, tmp_path):
    case = node_tests()[case_name]
    path = save_model(case.model, tmp_path / "model.onnx")
    sites = attention_sites(prefill_opt.inspect(path, timeout=60))
    raised = bool(sites) and all(site["raised"] for site in sites)
    folder = prefill_opt.compile(path, tmp_path / "out", timeout=60)
    inputs, expected = case.data_sets[0]
    inputs = [value for value in inputs if value is not None]
    if raised:
        assert count_kernels(folder) == len(sites)
    else:
        why = sites[0]["reason"] if sites else "no attention was found"
        reason = allowed_reason(case_name)
        assert reason is not None, f"declined, which is not on the list: {why}"
        assert count_kernels(folder) == 0
    try:
        session = prefill_opt.session(folder, log_severity_level=4)
        got = run(session, inputs, expected)
    except Exception as error:
        if original_results(case, inputs, expected) is None:
            pytest.skip(f"ONNX Runtime runs neither: {str(error).splitlines()[0][:120]}")
        raise
    if not raised:
        before = original_results(case, inputs, expected)
        if before is not None:
            expected = before
    names = [item.name for item in session.get_outputs()]
    pairs = zip(names, got, expected, strict=True)
    wrong = [f"{name}: {why}" for name, a, b in pairs if (why := close(a, b, case))]
    assert not wrong, "; ".join(wrong)


def test_list_of_declines_is_in_use(compiler):
    """Every pattern still matches a case, so that the list does not rot."""
    for entry in DECLINED["declined"]:
        assert any(re.fullmatch(entry["pattern"], name) for name in node_tests()), entry
