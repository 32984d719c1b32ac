"""The page of ``--report=DIR``: pictures of a calibration in one file without any network.

Kept blocks are PNGs in data URIs; maps and the frontier are SVG. Nothing but NumPy is needed.
"""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from .search import Result
from .state import write_atomically

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em} h2{font-size:1.15em;margin-top:2em} table{border-collapse:collapse;font-size:13px}
td,th{padding:2px 9px;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
figure{display:inline-block;margin:6px 10px 6px 0;vertical-align:top} figcaption{font-size:12px;color:#444}
.blocks img{width:190px;height:190px;image-rendering:pixelated;border:1px solid #999}
svg text{font:11px system-ui,sans-serif;fill:#333} .note{color:#555;font-size:13px}
"""
#: Skipped, visited, visited as single columns: light grey, blue, orange; above the diagonal: white.
_BLOCK_COLOURS = np.array([[226, 228, 232], [38, 84, 156], [236, 140, 44], [255, 255, 255]], np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [height, width, 3]."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _blocks_figure(block_map: np.ndarray, caption: str) -> str:
    """The kept blocks of a head, uint8 [query blocks, key blocks], as a figure."""
    pixels = block_map.copy()
    rows, columns = pixels.shape
    # Rows are aligned to the end of the keys; blocks above the diagonal are never visited.
    above = np.arange(columns)[None] * rows > (np.arange(rows)[:, None] + 1) * columns - 1
    pixels[above & (pixels == 0)] = 3
    data = base64.b64encode(png(_BLOCK_COLOURS[pixels])).decode()
    text = html.escape(caption)
    return (
        f'<figure class="blocks"><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _colour(share: float) -> str:
    """White (0) through blue to dark blue (1)."""
    share = float(np.clip(share, 0, 1))
    low, high = np.array([245, 248, 252]), np.array([18, 52, 112])
    return "#%02x%02x%02x" % tuple(int(x) for x in low + (high - low) * share)


def _head_map(values: np.ndarray, title: str, low: float, high: float) -> str:
    """A map of [layers, heads] as SVG, layers to the right; NaN is left out."""
    layers, heads = values.shape
    cell = max(6, min(24, 900 // max(layers, 1)))
    width, height = 40 + cell * layers, 24 + cell * heads
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">']
    parts.append(f"<title>{html.escape(title)}</title>")
    for layer in range(layers):
        for head in range(heads):
            value = values[layer, head]
            if np.isnan(value):
                continue
            share = (value - low) / (high - low) if high > low else 1.0
            parts.append(
                f'<rect x="{30 + layer * cell}" y="{head * cell}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="{_colour(share)}"><title>layer {layer}, head {head}: {value:.3f}</title></rect>'
            )
    for layer in range(0, layers, max(1, layers // 10)):
        parts.append(f'<text x="{30 + layer * cell}" y="{height - 8}">{layer}</text>')
    for head in range(0, heads, max(1, heads // 9)):
        parts.append(f'<text x="4" y="{head * cell + cell * 0.75:.0f}">{head}</text>')
    caption = html.escape(f"{title}; white {low:.2g}, dark {high:.2g}")
    return f"<figure>{''.join(parts)}</svg><figcaption>{caption}</figcaption></figure>"


def _frontier(points: list[tuple[str, float, float]], title: str, x_title: str) -> str:
    """Points (name, x in 0..1, loss) as SVG; the loss axis is logarithmic from 0.01 % up.

    The point called "calibrated" is marked; losses below the axis lie on it.
    """
    width, height, left, bottom = 620, 380, 62, 40
    floor = 1e-4
    top = max([0.1, *(loss for _, _, loss in points)]) * 1.5

    def place(x: float, loss: float) -> tuple[float, float]:
        share = np.log(max(loss, floor) / floor) / np.log(top / floor)
        right, up = min(x, 1.2) / 1.2 * (width - left - 10), share * (height - bottom - 12)
        return left + right, height - bottom - up

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">']
    parts.append(f"<title>{html.escape(title)}</title>")
    for loss in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        if loss > top:
            continue
        _, y = place(0, loss)
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="4" y="{y + 4:.1f}">{loss:.2%}</text>')
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, _ = place(share, floor)
        parts.append(f'<text x="{x - 10:.1f}" y="{height - bottom + 16}">{share:.0%}</text>')
    parts.append(f'<text x="{width // 2 - 90}" y="{height - 6}">{html.escape(x_title)}</text>')
    taken: list[tuple[float, float, float]] = []  # left, right, base line of the labels so far
    for name, share, loss in sorted(points, key=lambda p: p[0] != "calibrated"):
        x, y = place(share, loss)
        best = name == "calibrated"
        fill, radius = ("#d4380d", 7) if best else ("#26549c", 4)
        label = html.escape(name)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}">'
            f"<title>{label}: {share:.1%}, {loss:+.2%}</title></circle>"
        )
        # To the side with more room, and above the labels that are there already.
        reach = 6.5 * len(name)
        begin = x + 10 if x + 10 + reach < width else max(0.0, x - 10 - reach)
        base = y - 4
        while any(a < begin + reach and begin < b and abs(base - c) < 12 for a, b, c in taken):
            base -= 12
        taken.append((begin, begin + reach, base))
        parts.append(f'<text x="{begin:.1f}" y="{base:.1f}">{label}</text>')
    return f"<figure>{''.join(parts)}</svg><figcaption>{html.escape(title)}</figcaption></figure>"


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _by_head(result: Result, key: str, otherwise: float) -> np.ndarray:
    """A number of each head's choice, [layers, heads]; NaN where a layer has fewer heads."""
    width = max(len(row) for row in result.heads)
    values = np.full((len(result.heads), width), np.nan)
    for layer, row in enumerate(result.heads):
        for head, entry in enumerate(row):
            values[layer, head] = entry.get(key, otherwise)
    return values


def _describe(entry: dict) -> str:
    skip = ("type", "recall", "measured_density", "ms")
    options = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in skip)
    return f"{entry['type']} ({options})" if options else entry["type"]


def page(result: Result, model: str, tokens: int, maps: dict[tuple[int, int], np.ndarray]) -> str:
    """The page as text.

    Args:
        result: the calibration.
        model, tokens: what was calibrated, for the heading.
        maps: kept blocks of some heads, {(layer, head): uint8 [query blocks, key blocks]}.
    """
    chosen, dense = result.chosen, result.dense
    density, recall = _by_head(result, "measured_density", 1.0), _by_head(result, "recall", 1.0)
    width = density.shape[1]
    weight = np.where(np.isnan(density), np.nan, np.asarray(result.weight).reshape(-1, width))
    runs = [("calibrated", chosen), *result.runs.items()]
    figures = [
        _blocks_figure(blocks, f"layer {layer}, head {head}: {_describe(result.heads[layer][head])}")
        for (layer, head), blocks in sorted(maps.items())
    ]
    counts = [(name, int((result.plan == index).sum())) for index, name in enumerate(result.names)]
    run_rows = [
        [name, *(f"{run[key]:.1%}" for key in ("cost", "density"))]
        + [f"{run['loss']:+.2%} ± {run['error']:.2%}", f"{run['divergence']:.4f}", f"{run['seconds']:.2f}"]
        for name, run in [*runs, ("dense", {"cost": 1, "density": 1, "loss": 0, "error": 0, "divergence": 0, **dense})]
    ]
    head_rows = [
        [
            f"{layer}.{head}",
            _describe(entry),
            f"{entry.get('recall', 1):.3f}",
            f"{entry.get('measured_density', 1):.1%}",
            f"{entry['ms']:.2f}" if "ms" in entry else "",
        ]
        for layer, row in enumerate(result.heads)
        for head, entry in enumerate(row)
    ]
    short_rows = [
        [str(s["tokens"]), f"{s['density']:.1%}", f"{s['loss']:+.2%} ± {s['error']:.2%}"]
        + [f"{s['seconds'] / s['dense_seconds']:.2f}"]
        for s in result.short
    ]
    texts = chosen.get("texts", [])
    text_rows = [
        [text["name"], f"{text['density']:.1%}", f"{text['loss']:+.2%} ± {text['error']:.2%}"]
        + [f"{text['left_out']:+.2%}", f"{text['divergence']:.4f}"]
        for text in texts
        if "left_out" in text
    ]
    where = f"{tokens} tokens" if len(texts) < 2 else f"{tokens} tokens of {len(texts)} texts each"
    shorter = f"Prompts below {result.dense_below} tokens run dense." if result.dense_below else ""
    loss_by_time = [(n, r["cost"], r["loss"]) for n, r in runs]
    loss_by_blocks = [(n, r["density"], r["loss"]) for n, r in runs]
    return "".join(
        [
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8">',
            f"<title>Calibration of {html.escape(model)}</title><style>{_STYLE}</style>",
            f"<h1>Calibration of {html.escape(model)}</h1>",
            f"<p>At {where} the choice visits <b>{chosen['density']:.1%}</b> of the causal blocks "
            f"in <b>{chosen['cost']:.1%}</b> of dense attention time; perplexity {chosen['loss']:+.2%} ± "
            f"{chosen['error']:.2%} of dense's {dense['perplexity']:.3f}, divergence of the logits "
            f"{chosen['divergence']:.4f}. "
            f"{shorter}</p>",
            "<h2>Frontier</h2>",
            _frontier(
                loss_by_time,
                "Loss of perplexity over attention time, estimate included",
                "attention time, of dense",
            ),
            _frontier(loss_by_blocks, "Loss of perplexity over visited blocks", "share of causal blocks"),
            _table(["heads", "time", "blocks", "perplexity", "divergence", "model, s"], run_rows),
            *(
                [
                    "<h2>Texts</h2>",
                    _table(["text", "blocks", "perplexity", "left out", "divergence"], text_rows),
                    '<p class="note">Left out: the loss on the text of what the others choose at the same '
                    f"cost. {chosen['held']:+.2%} was compared with the budget: the mean and a margin for "
                    "other texts. Blocks and losses elsewhere on this page are means over the texts.</p>",
                ]
                if text_rows
                else []
            ),
            "<h2>Heads</h2>",
            _head_map(density, "Density: visited share of the causal blocks, layer by query head", 0, 1),
            _head_map(recall, "Recall: share of the attention mass that is visited", 0.5, 1),
            _head_map(
                np.log10(np.maximum(weight, 1e-30)),
                "Reach: log10 of how much an error of the head moves the logits (measured)",
                *(float(f(np.log10(np.maximum(weight, 1e-30)))) for f in (np.nanmin, np.nanmax)),
            ),
            "<h2>Kept blocks</h2>",
            '<p class="note">Rows: query blocks; columns: key blocks. Blue: visited; orange: single columns; '
            "grey: skipped.</p>",
            *figures,
            "<h2>Choices</h2>",
            _table(["candidate", "heads"], [[name, str(count)] for name, count in counts]),
            *(
                [
                    "<h2>Shorter prompts</h2>",
                    _table(["tokens", "blocks", "perplexity", "time / dense"], short_rows),
                ]
                if short_rows
                else []
            ),
            "<details><summary>Every head</summary>",
            _table(["layer.head", "pattern", "recall", "blocks", "ms"], head_rows),
            "</details></html>\n",
        ]
    )


def picks(result: Result, count: int = 8) -> list[tuple[int, int]]:
    """Heads to show, spread over the sparse ones from the emptiest to the fullest."""
    sparse = [
        (entry["measured_density"], layer, head)
        for layer, row in enumerate(result.heads)
        for head, entry in enumerate(row)
        if "measured_density" in entry
    ]
    sparse.sort()
    if len(sparse) > count:
        sparse = [sparse[i] for i in np.linspace(0, len(sparse) - 1, count).round().astype(int)]
    return [(layer, head) for _, layer, head in sparse]


def write(directory: Path, result: Result, model: str, tokens: int, maps: dict) -> Path:
    """Writes ``index.html`` and the numbers behind it, ``calibration.json``; returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = {
        "model": model,
        "tokens": tokens,
        "dense": result.dense,
        "chosen": result.chosen,
        "uniform": result.runs,
        "short": result.short,
        "heads": result.heads,
        "weight": np.asarray(result.weight).tolist(),
    }
    write_atomically(directory / "calibration.json", json.dumps(numbers) + "\n")
    write_atomically(directory / "index.html", page(result, model, tokens, maps))
    return directory / "index.html"
