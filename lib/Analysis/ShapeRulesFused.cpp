//===- ShapeRulesFused.cpp - Shapes of fused operators --------------------===//

#include "Rules.h"

#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;

void ShapeRules::headsFromQuery(int64_t heads, int64_t kvHeads) {
  // [b, s, width of q] -> [b, s, heads * width of v / kv heads]
  Value v = node.getInput(2);
  auto width = v ? analysis.dim(v, -1) : nullptr;
  if (!in(0).ranked || in(0).shape.size() != 3 || heads <= 0 || kvHeads <= 0)
    return;
  SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
  if (v && in(2).ranked && in(2).shape.size() == 3 && width) {
    ExprRef perHead = ctx.exactDiv(width, ctx.getInt(kvHeads));
    shape[2] = perHead ? ctx.scale(perHead, heads) : ctx.freshSymbol("?");
  } else if (!v) { // packed: heads * d of (heads + 2 * kvHeads) * d
    ExprRef perHead = ctx.exactDiv(shape[2], ctx.getInt(heads + 2 * kvHeads));
    shape[2] = perHead ? ctx.scale(perHead, heads) : ctx.freshSymbol("?");
  } else {
    shape[2] = ctx.freshSymbol("?");
  }
  set(0, in(0).elementType, shape);
}

void ShapeRules::attention() {
  results[0].elementType = in(0).elementType;
  if (!in(0).ranked)
    return;
  if (in(0).shape.size() == 4) {
    SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
    ExprRef width = analysis.dim(node.getInput(2), -1);
    shape[3] = width ? width : ctx.freshSymbol("?");
    set(0, in(0).elementType, shape);
    return;
  }
  int64_t heads = node.getInt("q_num_heads", 0);
  headsFromQuery(heads, node.getInt("kv_num_heads", heads));
}

/// Integers that stand for numbers. Of these only shapes and types are known:
/// what rounding does to an element is nobody's business here.
bool ShapeRules::quantized() {
  StringRef op = node.getOpType();
  MLIRContext *context = node->getContext();
  auto byte = IntegerType::get(context, 8, IntegerType::Unsigned);
  auto typeOf = [&](unsigned input, Type otherwise) {
    Type type = node.getInput(input) ? in(input).elementType : Type();
    return type ? type : otherwise;
  };
  if (op == "DynamicQuantizeLinear") {
    // Scale and zero point are those of the whole tensor.
    if (in(0).ranked)
      set(0, byte, in(0).shape);
    if (results.size() > 1)
      set(1, Float32Type::get(context), {});
    if (results.size() > 2)
      set(2, byte, {});
  } else if (op == "QuantizeLinear" || op == "DequantizeLinear") {
    bool back = op == "DequantizeLinear";
    Type type = back ? typeOf(1, Type()) : typeOf(2, byte);
    if (int64_t declared = node.getInt("output_dtype", 0))
      type = elementTypeOf(context, declared);
    results[0].elementType = type;
    if (in(0).ranked)
      set(0, type, in(0).shape);
  } else if (op == "MatMulInteger") {
    matmul(node.getInput(0), node.getInput(1), false, false);
    results[0].elementType = IntegerType::get(context, 32);
  } else if (op == "QLinearMatMul") {
    matmul(node.getInput(0), node.getInput(3), false, false);
    results[0].elementType = typeOf(7, Type());
  } else if (op == "MatMulIntegerToFloat" || op == "DynamicQuantizeMatMul") {
    matmul(node.getInput(0), node.getInput(1), false, false);
    results[0].elementType = typeOf(2, Type());
  } else {
    return false;
  }
  return true;
}

bool ShapeRules::contribDomain() {
  StringRef op = node.getOpType();
  static const llvm::StringSet<> sameAsFirst = {
      "BiasGelu",
      "FastGelu",
      "Gelu",
      "QuickGelu",
      "RotaryEmbedding",
      "SkipLayerNormalization",
      "SkipSimplifiedLayerNormalization",
      "SimplifiedLayerNormalization",
      "RMSNormalization",
      "BiasSplitGelu"};
  if (sameAsFirst.contains(op)) {
    same(0, 0);
    // The sum of input and skip.
    if (op.starts_with("Skip") && results.size() > 3)
      same(3, 0);
    return true;
  }
  if (op == "FusedMatMul") {
    if (!node.getInt("transBatchA", 0) && !node.getInt("transBatchB", 0))
      matmul(node.getInput(0), node.getInput(1), node.getInt("transA", 0) != 0,
             node.getInt("transB", 0) != 0);
    return true;
  }
  if (op == "MatMulNBits") {
    results[0].elementType = in(0).elementType;
    if (in(0).ranked && !in(0).shape.empty()) {
      SmallVector<ExprRef> shape(ArrayRef<ExprRef>(in(0).shape));
      shape.back() = ctx.getInt(node.getInt("N", 0));
      set(0, in(0).elementType, shape);
    }
    return true;
  }
  if (op == "Attention") {
    // [b, s, input], [input, q + k + v widths] -> [b, s, v width]
    results[0].elementType = in(1).elementType;
    ExprRef width = analysis.dim(node.getInput(1), -1);
    width = width ? ctx.exactDiv(width, ctx.getInt(3)) : nullptr;
    if (auto widths = node.getInts("qkv_hidden_sizes");
        widths && widths->size() == 3)
      width = ctx.getInt((*widths)[2]);
    if (in(0).ranked && in(0).shape.size() == 3)
      set(0, in(1).elementType,
          {in(0).shape[0], in(0).shape[1],
           width ? width : ctx.freshSymbol("?")});
    return true;
  }
  if (op == "EmbedLayerNormalization") {
    // [b, s] indices, [], [vocabulary, width] -> [b, s, width], lengths [b]
    results[0].elementType = in(2).elementType;
    if (results.size() > 1 && in(0).ranked && in(0).shape.size() == 2)
      set(1, IntegerType::get(node->getContext(), 32), {in(0).shape[0]});
    ExprRef width = analysis.dim(node.getInput(2), 1);
    if (in(0).ranked && in(0).shape.size() == 2 && width)
      set(0, in(2).elementType, {in(0).shape[0], in(0).shape[1], width});
    return true;
  }
  if (op == "GroupQueryAttention" || op == "MultiHeadAttention") {
    results[0].elementType = in(0).elementType;
    int64_t heads = node.getInt("num_heads", 0);
    headsFromQuery(heads, node.getInt("kv_num_heads", heads));
    return true;
  }
  return quantized();
}
