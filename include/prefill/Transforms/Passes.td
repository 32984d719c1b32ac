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
