"""Writes small ONNX models into a folder, as seeds of the importer's fuzzer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python" / "tests"))


def main() -> int:
    """Writes one file a model of python/tests/exotic.py."""
    import exotic

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in exotic.all_models().items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main())
