"""Draws which key blocks a few heads kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def choose_heads(densities: list[np.ndarray], count: int = 6) -> list[tuple[int, int]]:
    """Picks `count` (layer, head) pairs whose densities are spread evenly from low to high.

    Args: densities: one float array [q_heads] a layer.
    """
    flat = sorted(
        (float(d), layer, head) for layer, row in enumerate(densities) for head, d in enumerate(row)
    )
    if not flat:
        return []
    picks = np.unique(np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int))
    return [(flat[i][1], flat[i][2]) for i in picks]


def draw(maps: list[tuple[str, np.ndarray]], path: Path, title: str) -> Path:
    """Draws block maps side by side into a PNG file.

    Args:
        maps: (caption, uint8 [query blocks, key blocks]); 0 skipped, 1 visited, 2 single
            columns of the block visited.
        path: file to write.
        title: line above.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ["#f2f2f2", "#1f5fa8", "#f0a030", "#ffffff"]
    names = ["skipped", "visited", "some columns visited"]
    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3.6 * columns, 3.8 * lines + 0.8), squeeze=False)
    for axis in axes.flat[len(maps) :]:
        axis.axis("off")
    for axis, (caption, block_map) in zip(axes.flat, maps, strict=False):
        rows, keys = block_map.shape
        # Blocks above the diagonal are invisible to a causal model: blank.
        future = np.arange(keys)[None, :] * rows >= (np.arange(rows)[:, None] + 1) * keys
        shown = np.where(future & (block_map == 0), 3, block_map)
        axis.imshow(shown, cmap=ListedColormap(colours), vmin=0, vmax=3, interpolation="nearest")
        axis.set_title(caption, fontsize=9)
        axis.set_xlabel("key block", fontsize=8)
        axis.set_ylabel("query block", fontsize=8)
        axis.tick_params(labelsize=7)
    patches = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=False)]
    figure.legend(handles=patches, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def draw_file(statistics: Path, path: Path, title: str, count: int = 6) -> Path | None:
    """Draws a few heads of a statistics file (see `contender`); None if it has no maps."""
    with np.load(statistics) as file:
        numbers = sorted(int(n.split("_")[1]) for n in file.files if n.startswith("density_"))
        if not numbers:
            return None
        # Layers that compute all rows: the last one may not.
        rows = {n: file[f"block_map_{n}"].shape[2] for n in numbers}
        numbers = [n for n in numbers if rows[n] == max(rows.values())]
        densities = [file[f"density_{n}"][0] for n in numbers]
        maps = []
        for layer, head in choose_heads(densities, count):
            caption = f"layer {numbers[layer]}, head {head}: {100 * densities[layer][head]:.0f} % of blocks"
            maps.append((caption, file[f"block_map_{numbers[layer]}"][0, head]))
    return draw(maps, path, title)
