"""`prefill-opt cost`: predictions against what is counted by hand."""

from __future__ import annotations

import json

import pytest

import prefill_opt
from prefill_opt.demo import smollm2

SMOLLM2 = smollm2.models_dir() / "smollm2" / "export" / "model.onnx"
needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.exists(), reason="SmolLM2 is not exported: python -m prefill_opt.demo"
)
LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, INNER = 30, 576, 9, 3, 64, 1536


def cost(model, *options) -> dict:
    return json.loads(prefill_opt.run_compiler(["cost", model, "-json", *options]).stdout)


def rows_of(report: dict) -> dict:
    """{(transform, tokens): row}."""
    return {(r["transform"], r["tokens"]): r for r in report["rows"]}


@needs_smollm2
@pytest.mark.parametrize("tokens", (1, 100, 1024))
def test_flops_of_smollm2_by_hand(tokens):
    found = rows_of(cost(SMOLLM2, f"-tokens={tokens}"))
    keys_and_values = 2 * HIDDEN * 2 * KV_HEADS * DIM
    others = 2 * (2 * HIDDEN * HEADS * DIM + 3 * HIDDEN * INNER)
    linear = LAYERS * tokens * (keys_and_values + others)
    head = 2 * HIDDEN * smollm2.VOCABULARY
    products = 2 * LAYERS * HEADS * 2 * DIM
    pairs = tokens * (tokens + 1) // 2
    exported, raised, live = (
        found[name, tokens] for name in ("as exported", "attention raised", "row liveness")
    )
    assert exported["flops"] == {"linear": linear, "attention": products * tokens**2, "head": head}
    assert raised["flops"] == {"linear": linear, "attention": products * pairs, "head": head}
    # The last layer: keys and values of all rows, everything else of one.
    assert live["flops"]["linear"] == linear - (tokens - 1) * others
    last = products // LAYERS
    assert live["flops"]["attention"] == products * pairs - last * pairs + last * tokens
    assert live["attentions"][-1]["rows"] == 1 and live["attentions"][0]["rows"] == tokens
    for row in (exported, raised, live):
        assert row["kv_bytes"] == 2 * LAYERS * KV_HEADS * DIM * tokens * 4
        assert row["not_counted"] == 0
        assert row["peak_bytes"] > row["weight_bytes"] > 4 * 134e6


@needs_smollm2
def test_what_pays_is_predicted_to_pay():
    found = rows_of(cost(SMOLLM2, "-tokens=128,8192", "-sparsify=vertical-slash"))
    long, short = (found["-sparsify=vertical-slash", n] for n in (8192, 128))
    assert long["seconds"] < 0.8 * found["row liveness", 8192]["seconds"]
    assert all(a["sparse_heads"] == HEADS for a in long["attentions"][:-1])
    # One row of queries, and short prompts, run dense.
    assert long["attentions"][-1]["sparse_heads"] == 0
    assert all(a["sparse_heads"] == 0 and a["visited"] == 1 for a in short["attentions"])
    assert short["flops"] == found["row liveness", 128]["flops"]


@needs_smollm2
def test_packing_by_hand():
    lengths = [100, 300, 727, 64]
    given = ",".join(map(str, lengths))
    padded, packed = (
        next(r for r in cost(SMOLLM2, f"-tokens={given}", "-pack=ffd")["rows"] if r["transform"] == name)
        for name in ("attention raised, padded batch", "-pack=ffd")
    )
    ideal = max(lengths) * len(lengths) / sum(lengths)
    assert padded["flops"]["linear"] / packed["flops"]["linear"] == pytest.approx(ideal)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    assert packed["flops"]["attention"] == 2 * LAYERS * HEADS * 2 * DIM * pairs


@needs_smollm2
def test_devices():
    def seconds(*options):
        return rows_of(cost(SMOLLM2, "-tokens=1024", *options))["row liveness", 1024]["seconds"]

    one, two = seconds("-device=cpu:threads=1"), seconds("-device=cpu:threads=2")
    assert one == pytest.approx(2 * two)
    assert seconds("-device=cpu:threads=1,gflops=1000,gbps=1000") < one / 5
    gpu = cost(SMOLLM2, "-tokens=1024", "-device=h100")["device"]
    assert gpu["measured"] is False and "not measured here" in gpu["source"]


@needs_smollm2
def test_pruned_rows_reach_their_bound():
    """LazyLLM's schedule: 9 layers whole, 10 with 0.7 of the rows, 9 with 0.49, 2 with 0.343."""
    found = rows_of(cost(SMOLLM2, "-tokens=1000", "-prune=lazyllm:layers=9+19+28,keep=0.7"))
    whole, pruned = found["attention raised", 1000], found["-prune=lazyllm:layers=9+19+28,keep=0.7", 1000]
    rows = [1000] * 9 + [700] * 10 + [490] * 9 + [343] * 2
    assert [a["rows"] for a in pruned["attentions"]] == rows
    assert pruned["not_counted"] == 0 and pruned["flops"]["head"] == whole["flops"]["head"]
    assert whole["flops"]["linear"] / pruned["flops"]["linear"] == pytest.approx(30_000 / sum(rows))
    assert pruned["kv_bytes"] / whole["kv_bytes"] == pytest.approx(sum(rows) / 30_000)
