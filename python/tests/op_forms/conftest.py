"""Tests that start the compiler: a sample of them, or all with PREFILL_THOROUGH=1."""

import os
import zlib

SAMPLED = {"test_raised": 10, "test_masks": 6}


def pytest_collection_modifyitems(config, items):
    if os.environ.get("PREFILL_THOROUGH") == "1":
        return
    kept, dropped = [], []
    for item in items:
        module = getattr(item, "module", None)
        share = SAMPLED.get(module.__name__.rsplit(".", 1)[-1], 1) if module else 1
        if share > 1 and "[" in item.name and "op_forms" in str(item.path):
            chosen = zlib.crc32(item.name.encode()) % share == 0
            (kept if chosen else dropped).append(item)
        else:
            kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
