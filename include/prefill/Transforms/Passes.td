//===- Passes.td - Passes on onnx and prefill IR -----------*- tablegen -*-===//
#ifndef PREFILL_TRANSFORMS_PASSES_TD
#define PREFILL_TRANSFORMS_PASSES_TD

include "mlir/Pass/PassBase.td"

def RaiseAttention : Pass<"raise-attention", "::mlir::ModuleOp"> {
  let summary = "Rewrite proven attention of an ONNX graph to prefill.attention";
  let description = [{
    Everything that a rewrite relies on (scale, mask, layout, grouping of heads)
    is proven from the graph; what is not proven stays as it was, with a missed
    remark that names the node, the reason and the value. Mask and shape
    arithmetic that nothing uses any more is erased.
  }];
  let statistics = [
    Statistic<"numRaised", "raised", "Number of attentions raised">,
    Statistic<"numDeclined", "declined", "Number of attentions left as they were">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def RowLiveness : Pass<"eliminate-dead-rows", "::mlir::ModuleOp"> {
  let summary = "Compute only the rows that reach the outputs";
  let description = [{
    Where the model takes some rows (tokens) of a value and drops the others, as
    before its last product, everything that only those rows need is computed for
    them alone: products, norms and the queries of attention up to what the KV
    cache or another row needs in full. Exact. The table of operators that treat
    rows one by one is lib/Analysis/RowRules.cpp; what is not in it, and what
    something else reads in full, stops it. A selection that saves no product and
    no attention stays, with a missed remark where something stopped it.

    `logits` says which rows of the output `logits` the model shall give: `all` as
    it does, `last` (the last row of the tensor), or `rows` (a new graph input
    `logits_rows`, int64 [rows]).
  }];
  let options = [
    Option<"logits", "logits", "std::string", /*default=*/"\"all\"",
           "all, last or rows">
  ];
  let statistics = [
    Statistic<"numNodes", "nodes", "Number of nodes with fewer rows">,
    Statistic<"numAttentions", "attentions",
              "Number of attentions with fewer query rows">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def ShareKV : Pass<"detect-kv-sharing", "::mlir::ModuleOp"> {
  let summary = "Layers read another layer's keys and values where they are the same";
  let description = [{
    Where K and V of an attention are provably those of an earlier one (the same
    operators on the same values, down to weights with the same bytes), it reads
    the earlier one's and the duplicates are erased. Exact. Layers with the same
    weights on other inputs keep their own, with a missed remark.
  }];
  let statistics = [
    Statistic<"numShared", "shared", "Number of attentions that read another one's keys and values">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def PackPrompts : Pass<"pack-prompts", "::mlir::ModuleOp"> {
  let summary = "Several prompts side by side in one sequence";
  let description = [{
    Adds a graph input `segment_starts` (int64 [n + 1]: where each prompt begins,
    and the end). Position ids that the model counts itself begin anew in every
    prompt; every attention keeps to its prompt. Exact. Fails with the reason
    where the model cannot be packed: an attention with a mask or a KV cache, an
    operator that mixes rows, outputs without rows.
  }];
  let statistics = [
    Statistic<"numAttentions", "attentions", "Number of attentions that keep to a prompt">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def AssumeNoPadding : Pass<"assume-no-padding", "::mlir::ModuleOp"> {
  let summary = "Take attention_mask for ones";
  let description = [{
    Removes the input `attention_mask` `[batch, tokens]` and puts ones in its
    place, before raise-attention: for callers whose prompts have no padding, and
    for packs and chunks, which have no use for a mask. Exact where the mask would
    have been ones. A model without the input stays as it is. One with a KV cache
    (inputs `past_key_values.*`) is refused, or with `drop-cache` gets a graph for
    a prompt alone: an empty cache, whose inputs are removed.
  }];
  let options = [
    Option<"dropCache", "drop-cache", "bool", /*default=*/"false",
           "Remove the inputs of a KV cache too">
  ];
  let dependentDialects = ["::prefill::onnx::ONNXDialect"];
}

def ChunkPrompt : Pass<"chunk-prompt", "::mlir::ModuleOp"> {
  let summary = "A prompt in chunks that share a KV cache";
  let description = [{
    Gives a model of a whole prompt a KV cache: inputs `past_key_values.*` and
    outputs `present.*` `[1, heads, rows, d]` (the names of the model's own KV
    outputs where it has some), which may be one memory. A call computes rows of
    one or more requests: `segment_starts` `[n + 1]` says which, `cache_slots`
    `[n, 2]` at which row of the cache the keys of each begin and how many it
    holds. Positions that the model counts itself go on where the cache ends.
    Exact; SARATHI (arXiv:2308.16369). Fails, as pack-prompts does, where rows
    are not independent but for causal attention. A model that has a cache of its
    own stays as it is.

    With `parts`, rows of the cache are no positions (prune-groups takes some out):
    an input `prompt_parts` `[n, 2]` says of every request at which row of its
    prompt the call begins, and how many rows of the prompt follow the call.
    Positions go on from there. A model with a cache of its own is refused.
  }];
  let options = [
    Option<"size", "size", "int64_t", /*default=*/"0",
           "Rows of a chunk, for reports: any number of rows may be given. 0: off">,
    Option<"parts", "parts", "bool", /*default=*/"false",
           "The cache will hold fewer rows than were computed: positions come from a new input prompt_parts">
  ];
  let statistics = [
    Statistic<"numAttentions", "attentions", "Number of attentions with a cache">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def ParallelEncode : Pass<"encode-contexts", "::mlir::ModuleOp"> {
  let summary = "Contexts encoded independently, read by a second softmax";
  let description = [{
    APE (arXiv:2502.05431), lossy; after chunk-prompt. Adds a graph input
    `context_slots` `[n, 2]`: which rows of the cache hold contexts that all rows
    of a request see by a softmax of their own, see `contexts` of
    prefill.attention. Where the model counts positions itself, an input
    `position_shifts` `[n]` says by how many those of a request's rows are more
    than its cache holds. Requests whose contexts are empty are what they were.

    The model's metadata gets `prefill.parallel-encode` (the option),
    `prefill.model` (a SHA-256 of operators and weights) and, where positions
    are rows of a table, `prefill.positions` (its rows).

    Fails with the reason where an attention has a sliding window or sinks, and
    where none has a cache of chunk-prompt.
  }];
  let options = [
    Option<"method", "method", "std::string", /*default=*/"\"ape\"",
           "ape[:T=0.9,S=0.9]">
  ];
  let statistics = [
    Statistic<"numAttentions", "attentions", "Number of attentions with contexts">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def PruneRows : Pass<"prune-rows", "::mlir::ModuleOp"> {
  let summary = "Leave rows out of later layers, by the attention they get";
  let description = [{
    LazyLLM (arXiv:2407.14057), lossy. After each of the layers that `prune` names,
    rows that the last row attends to least leave the residual stream: later layers
    compute and keep K and V of the rest only. Rows keep their positions; rotary
    tables are gathered with them. Rows that `protect` names, and rows whose logits
    are asked for, always stay. KV outputs of later layers have fewer rows;
    outputs `prefill.rows.<layer>` (int64 [batch, rows]) say which.

    Fails with the reason where the model cannot be pruned: an attention with a
    bias, a window or a KV cache, an operator that mixes rows, logits of all rows.

    MustDrop (arXiv:2411.10803), `mustdrop:layers=2,global=0.001,individual=0.001`:
    rows of an image, which a new input `vision_rows` (bool [batch, tokens]) marks, go
    where the text after it gives them too little, in sum and at most. With `kv=final`
    the KV outputs of the first of these layers and of all after it hold the rows that
    the last one left; fails where an output with all rows is not known to be one.

    FlowCut (arXiv:2505.19536): `flowcut:target=64` in a vision encoder, patches that
    little flows through go after every second layer; `flowcut:target=64,llm-layer=1`
    in a language model, vision rows go after that layer by the last row's attention.

    `logits` as of eliminate-dead-rows, done first.
  }];
  let options = [
    Option<"prune", "prune", "std::string", /*default=*/"\"lazyllm\"",
           "lazyllm[:layers=9+19+28,keep=0.7], mustdrop[:layers=2,global=0.001,individual=0.001,kv=layer|final] or flowcut:target=N[,llm-layer=L]">,
    Option<"protect", "protect", "std::string", /*default=*/"\"\"",
           "bos:N,last:N,system,ids:A-B,rows:A-B">,
    Option<"logits", "logits", "std::string", /*default=*/"\"all\"",
           "all, last or rows">
  ];
  let statistics = [
    Statistic<"numNodes", "nodes", "Number of nodes with fewer rows">,
    Statistic<"numAttentions", "attentions", "Number of attentions with fewer rows">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def MergePatches : Pass<"merge-patches", "::mlir::ModuleOp"> {
  let summary = "Merge alike patches of a vision encoder; name those that matter";
  let description = [{
    MustDrop (arXiv:2411.10803) in a vision encoder. `vit-merge=3x3@0.8`, lossy: after
    the first layer windows of 3 x 3 patches are merged where their mean pairwise
    cosine is at least 0.8, as many in every image of a batch. Later layers, and the
    outputs, have the class token, the merged windows, the most alike first, and the
    other patches in order. Outputs `prefill.rows.1` (int64 [batch, rows], a window
    by its first patch) and `prefill.merged` (int64 [1]) say which and how many.

    `key=0.08`: a further output `prefill.key_rows`, bool [batch, patches left],
    marks the patches, ceil(0.08 of them), that the class token attends to most in
    the last layer: the language model is not to drop them.

    Fails with the reason where the model has no square grid of patches that the
    windows divide, or something that needs the places of patches.
  }];
  let options = [
    Option<"prune", "prune", "std::string", /*default=*/"\"mustdrop:vit-merge=3x3@0.8,key=0.08\"",
           "mustdrop:[vit-merge=HxW@T][,key=S][,anchor=cls|mean]">,
    Option<"protect", "protect", "std::string", /*default=*/"\"\"",
           "rows:A-B,system">
  ];
  let statistics = [
    Statistic<"numNodes", "nodes", "Number of nodes with fewer rows">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def ReviveRows : Pass<"revive-rows", "::mlir::ModuleOp"> {
  let summary = "Leave rows out of later layers until a step attends to them";
  let description = [{
    LazyLLM (arXiv:2407.14057) with its auxiliary cache, lossy: prune-rows for a
    prompt and for the decode steps after it. After each of the layers that `prune`
    names, ceil(`keep` of the rows that the layer sees) stay, by the attention of the
    context's last row in this call. Layers after it see these rows and no others;
    they compute those of them that they have not computed before, from hidden
    states of this call or of the cache. No row is computed twice in a layer.

    The state: inputs `prefill.past.X`, outputs `prefill.present.X`, with X
    * `ids` [1, rows]: the tokens of the context; `position_ids` and `protected_rows`
      likewise, where the model has such an input;
    * `key.L`, `value.L`: K (before its rotation) and V of layer L, in its own layout,
      for the rows that it has computed, in the order in which it did;
    * `rows.L` int64 [r]: the numbers of these rows, in the layers after stage L. The
      layers before the first stage have all, in order;
    * `hidden.L` [1, w, d] and `waiting.L` int64 [w] ascending: what layer L gave for
      rows that it has computed and the layers after it have not.
    A call with no rows in all of these begins a context. Outputs `prefill.rows.L`
    (int64 [1, m], ascending) say which rows the layers after L see in this call. A
    context is one sequence: the batch is 1.

    `protect` and `logits` as of prune-rows; protected rows are counted in the context.
    KV outputs of the model go: the state has these.

    Fails with the reason where the model cannot be pruned or computed in parts, see
    prune-rows and chunk-prompt, and where an operator after a stage reads rows
    that are neither hidden states nor made of positions alone.
  }];
  let options = [
    Option<"prune", "prune", "std::string", /*default=*/"\"lazyllm:aux=on\"",
           "lazyllm:aux=on[,layers=9+19+28,keep=0.7]">,
    Option<"protect", "protect", "std::string", /*default=*/"\"\"",
           "bos:N,last:N,system,ids:A-B,rows:A-B">,
    Option<"logits", "logits", "std::string", /*default=*/"\"all\"",
           "all, last or rows">
  ];
  let statistics = [
    Statistic<"numAttentions", "attentions", "Number of attentions with a cache">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def PruneGroups : Pass<"prune-groups", "::mlir::ModuleOp"> {
  let summary = "Keep a part of a group's keys and values, by the norm of the keys";
  let description = [{
    QuickPrefill (TIGER-AI-Lab/QuickVideo), lossy. After chunk-prompt with `parts`:
    of the rows that a call adds to the cache of a layer, those with the smallest
    keys stay (`topk` of them, `top-p` of them), with the protected ones; the rows
    of the call itself see all of each other. The part of a prompt that nothing
    follows stays whole. Outputs `prefill.kept.<layer>` (int64 [1, rows], layers
    from 1) say which rows of the call stayed. Fails with the reason where an
    attention has no cache of ours, or a window, which counts positions.
  }];
  let options = [
    Option<"prune", "prune", "std::string", /*default=*/"\"quickprefill\"",
           "quickprefill[:group=512,topk=64,top-p=0.5,query=N,decay=none|linear|F]">,
    Option<"protect", "protect", "std::string", /*default=*/"\"\"",
           "bos:N,last:N,system,ids:A-B,rows:A-B">
  ];
  let statistics = [
    Statistic<"numAttentions", "attentions", "Number of attentions with a pruned cache">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

def SparsifyAttention : Pass<"sparsify-attention", "::mlir::ModuleOp"> {
  let summary = "Rewrite causal prefill.attention to sparse attention";
  let description = [{
    Gives every query head of every causal `prefill.attention` an index by the
    pattern asked for: a name of the table in Patterns.cpp with options
    (`vertical-slash:vertical=1000,slash=6096,last=64`), or `config:FILE` for a
    choice per layer and head (MInference's JSON or our extended form). Attention that is not causal stays dense, with a missed remark.
  }];
  let options = [
    Option<"pattern", "pattern", "std::string", /*default=*/"\"vertical-slash\"",
           "Pattern with options, or config:FILE">,
    Option<"modality", "modality", "std::string", /*default=*/"",
           "What kind of token each key is: a value's name, or token:ID,... of input_ids">
  ];
  let statistics = [
    Statistic<"numSparse", "sparse", "Number of attentions made sparse">,
    Statistic<"numDense", "dense", "Number of attentions that stay dense">
  ];
  let dependentDialects = ["::prefill::PrefillDialect"];
}

#endif
