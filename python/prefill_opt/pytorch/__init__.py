"""prefill-opt's kernels in PyTorch.

    import prefill_opt.pytorch

    o = prefill_opt.pytorch.attention(q, k, v, sparsify="auto")    # [b, h, s, d], CPU

    prefill_opt.pytorch.register(sparsify="auto")                  # transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="prefill_opt")

`attention` is ``torch.ops.prefill.sparse_attention``, which ``torch.compile`` and
``torch.export`` take as it is. Kernels are compiled for the tensors' heads and types when they
are first needed (below a second) and kept in prefill-opt's cache folder.
"""

from .huggingface import register
from .ops import attention, sparse_attention

__all__ = ["attention", "register", "sparse_attention"]
