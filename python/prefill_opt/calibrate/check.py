"""What a plan or a pattern loses on texts, beside the exact model: ``calibrate --check``."""

from __future__ import annotations

from pathlib import Path

from . import choose
from .data import Document, check_range
from .model import Model
from .state import Progress, State, default_folder, work_folder
from .text import Text, pooled


def check(
    path: Path,
    documents: list[Document],
    plan: str,
    rows: int = 2048,
    threads: int = 2,
    progress: bool = True,
) -> dict:
    """Runs a model dense and under a plan on texts of one length.

    Args:
        path: the ONNX model.
        documents: the texts.
        plan: a value of ``-sparsify``, or the name of a configuration file.
        rows: how many rows of each text give the loss, spread over all but its first quarter.

    Returns the runs' means (`loss`, `error`, `divergence`, `density`, `seconds`), `held`
    (`choose.held`) and `texts`: the same of each with `name`, `dense_seconds`. Raises
    `CalibrationError`. Nothing is kept.
    """
    bar = Progress(progress)
    bar.expect(len(documents) * 2 + 1)
    with work_folder(path, default_folder()) as work:
        try:
            bar.begin("compiling")
            model = Model(path, Path(work), threads)
            folder = model.compile_as(f"config:{plan}" if Path(plan).is_file() else plan, "checked")
            vocabulary = model.find_vocabulary()
            bar.done(1)
            ready, runs = model.open(folder), []
            for number, document in enumerate(documents):
                check_range(document, vocabulary)
                text = Text(model, document, rows, State(Path(work) / f"state-{number}"), bar, timed=False)
                text.exact()
                bar.begin(document.name)
                run = text.run(folder, ready)
                runs.append({"name": document.name, **run, "dense_seconds": text.dense()["seconds"]})
                bar.done(1)
        finally:
            bar.close()
    return {**pooled(runs), "held": choose.held(runs), "texts": runs}
