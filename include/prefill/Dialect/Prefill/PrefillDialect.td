//===- PrefillDialect.td - The attention dialect -----------*- tablegen -*-===//
#ifndef PREFILL_DIALECT_PREFILL_PREFILLDIALECT_TD
#define PREFILL_DIALECT_PREFILL_PREFILLDIALECT_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def PrefillDialect : Dialect {
  let name = "prefill";
  let cppNamespace = "::prefill";
  let summary = "What a transformer's prompt phase computes, not how";
  let description = [{
    Attention over whole prompts and the decisions that make it sparse. Every
    method is a composition of *score* (which numbers say what matters), *select*
    (by which rule) and *apply* (what is left out). Dimension names used below:
    `b` batch, `hq` query heads, `hk` KV heads, `s` query rows, `t` keys, `d` head
    dimension, `e` value head dimension.

    Fixed meanings: key j is visible to query row i iff
    `j <= i + offset` where causal (offset is `t - s` with alignment `end`), within
    the window, below the row's KV length, not masked by `key_mask`, in i's
    segment; no key is visited twice; the diagonal block is always kept.
  }];
  let useDefaultTypePrinterParser = 1;
  let useDefaultAttributePrinterParser = 1;
}

//===----------------------------------------------------------------------===//
// Enumerations. The integer values are those of
// runtime/include/prefill/kernel_abi.h.
//===----------------------------------------------------------------------===//

class Prefill_Enum<string name, string summary, list<I32EnumAttrCase> cases>
    : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::prefill";
  let genSpecializedAttr = 0;
}

def Prefill_Layout : Prefill_Enum<"TensorLayout", "Where the rows of a head lie", [
    I32EnumAttrCase<"BHSD", 0, "bhsd">, I32EnumAttrCase<"BSHD", 1, "bshd">]>;
def Prefill_LayoutAttr : EnumAttr<PrefillDialect, Prefill_Layout, "layout">;

def Prefill_RowRule : Prefill_Enum<"MaskedRowRule",
  "What a query row without any visible key gives", [
    I32EnumAttrCase<"Zero", 0, "zero">, I32EnumAttrCase<"Mean", 1, "mean">,
    I32EnumAttrCase<"NaN", 2, "nan">,
    I32EnumAttrCase<"Scores", 3, "scores">]>;
def Prefill_RowRuleAttr : EnumAttr<PrefillDialect, Prefill_RowRule, "masked_row">;

def Prefill_Align : Prefill_Enum<"QueryAlignment",
  "Key position of query row 0: t - s, 0, or the q_offset operand", [
    I32EnumAttrCase<"End", 0, "end">, I32EnumAttrCase<"Start", 1, "start">,
    I32EnumAttrCase<"Operand", 2, "operand">]>;
def Prefill_AlignAttr : EnumAttr<PrefillDialect, Prefill_Align, "align">;

def Prefill_RotaryKind : Prefill_Enum<"RotaryKind",
  "Rotary position embedding applied to q and k before the product", [
    I32EnumAttrCase<"None", 0, "none">, I32EnumAttrCase<"Half", 1, "half">,
    I32EnumAttrCase<"Interleaved", 2, "interleaved">]>;
def Prefill_RotaryAttr : EnumAttr<PrefillDialect, Prefill_RotaryKind, "rotary">;

def Prefill_Axis : Prefill_Enum<"ScoreAxis",
  "What one score, or one selected entry, stands for", [
    I32EnumAttrCase<"Column", 0, "column">,
    I32EnumAttrCase<"Diagonal", 1, "diagonal">,
    I32EnumAttrCase<"Block", 2, "block">,
    I32EnumAttrCase<"Grid", 3, "grid">]>;

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

class Prefill_Type<string name, string mnem> : TypeDef<PrefillDialect, name> {
  let mnemonic = mnem;
}

def Prefill_ScoresType : Prefill_Type<"Scores", "scores"> {
  let summary = "Importance per (batch, query head) along one axis, fp32";
  let description = [{
    `column`: one number a key; `diagonal`: one number a query-key distance;
    `block`: one number a (query block, key block); `grid`: one number a stride
    and phase.
  }];
  let parameters = (ins EnumParameter<Prefill_Axis>:$axis);
  let assemblyFormat = "`<` $axis `>`";
}

def Prefill_SelectionType : Prefill_Type<"Selection", "selection"> {
  let summary = "The entries of a score that are kept, per (batch, query head)";
  let parameters = (ins EnumParameter<Prefill_Axis>:$axis);
  let assemblyFormat = "`<` $axis `>`";
}

def Prefill_IndexType : Prefill_Type<"SparseIndex", "index"> {
  let summary = "Which key blocks and columns each tile of query rows visits";
  let description = [{
    Per (batch, query head) one of: *dense*; *relative* (a set of block distances
    and a sorted list of columns: vertical-slash, A-shape, tri-shape); *blocks* (a
    list of block ids per tile of query rows); *views* (rows and keys by position
    modulo a stride: grid). See docs/SparseIndex.md.
  }];
}

#endif
