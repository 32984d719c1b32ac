//===- ReviveRows.h - Rows that were left out come back ----------*- C++ -*-==//
//
// Private to lib/Transforms: how ReviveRows.cpp, which says what becomes of a
// model, carries out its plan.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_TRANSFORMS_REVIVEROWS_H
#define PREFILL_LIB_TRANSFORMS_REVIVEROWS_H

#include "PromptWalk.h"
#include "PrunePlan.h"
#include "prefill/Transforms/Pruning.h"

namespace prefill {

/// Carries out a plan.
struct Reviver {
  Reviver(SymbolicAnalysis &analysis, const PrunePlan &plan,
          const PromptWalk &walk, const PruneSpec &spec,
          const ProtectSpec &protection)
      : analysis(analysis), plan(plan), walk(walk), spec(spec),
        protection(protection), graph(analysis.getGraph()),
        ret(llvm::cast<onnx::ReturnOp>(
            graph.getBody().front().getTerminator())),
        builder(ret), loc(graph.getLoc()),
        unknown(onnx::UnknownType::get(builder.getContext())) {}

  /// An error, or "".
  std::string run();

private:
  /// The rows of the layers after a stage, in this call. Numbers of rows count
  /// from the context's first one.
  struct Level {
    mlir::Value selected; ///< [m] rows that are seen, ascending
    mlir::Value computed; ///< [r] those of them that are computed in this call
    mlir::Value places;   ///< [r] where these are among the selected
    mlir::Value
        order; ///< [m] where the selected are in the caches; null: there
    mlir::Value hidden;  ///< [1, r, d] what the layers begin with; null: all
    mlir::Value protect; ///< [1, m] bool
    mlir::Value count;   ///< r, [1]
    std::string seen, fresh, cached; ///< names of dimensions
  };

  SymbolicAnalysis &analysis;
  const PrunePlan &plan;
  const PromptWalk &walk;
  const PruneSpec &spec;
  const ProtectSpec &protection;
  onnx::GraphOp graph;
  onnx::ReturnOp ret;
  mlir::OpBuilder builder;
  mlir::Location loc;
  mlir::Type unknown;

  llvm::SmallVector<Level> levels;
  mlir::Value ids;         ///< all of the context, [1, P + n]
  mlir::Value past, total; ///< P and P + n, [1]
  llvm::SmallVector<std::pair<std::string, mlir::Value>> outputs;
  llvm::DenseMap<mlir::Value, mlir::Value> wholes;
  /// K or V of this call: those that the attentions of its level see.
  llvm::DenseMap<std::pair<mlir::Value, unsigned>, mlir::Value> caches;
  std::string error;

  bool fail(mlir::Operation *op, const llvm::Twine &why) {
    if (!error.empty())
      return false;
    error = nameOf(op) + why.str();
    return false;
  }

  mlir::Value node(llvm::StringRef op, mlir::ValueRange inputs,
                   llvm::ArrayRef<mlir::NamedAttribute> attributes = {}) {
    return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                attributes)
        .getResult(0);
  }
  mlir::Value ints(llvm::ArrayRef<int64_t> values, bool scalar = false) {
    return onnx::createInts(builder, loc, values, scalar);
  }
  mlir::NamedAttribute axis(int64_t value) {
    return onnx::intAttr(builder, "axis", value);
  }
  /// Dimension `along` of `value`, [1].
  mlir::Value size(mlir::Value value, int64_t along) {
    return node("Gather", {node("Shape", value), ints({along})}, {axis(0)});
  }
  /// begin, ..., end - 1, of [1] each.
  mlir::Value range(mlir::Value begin, mlir::Value end) {
    return node("Range", {node("Squeeze", begin), node("Squeeze", end),
                          ints({1}, true)});
  }
  /// The entries of `list` where `condition` holds.
  mlir::Value those(mlir::Value list, mlir::Value condition) {
    return node("Compress", {list, condition}, {axis(0)});
  }
  mlir::Value isPlace(mlir::Value places) {
    return node("GreaterOrEqual", {places, ints({0})});
  }
  /// Rows of `value` along axis `along`, whose type has them named `name`.
  mlir::Value take(mlir::Value value, mlir::Value rows, int64_t along,
                   mlir::Type type, llvm::StringRef name) {
    mlir::Value some = node("Gather", {value, rows}, {axis(along)});
    some.setType(withSize(type, along, mlir::ShapedType::kDynamic, name));
    return some;
  }
  /// The rank and the element type of `value`, which may have been made here.
  std::pair<int64_t, mlir::Type> formOf(mlir::Value value) {
    if (auto type = llvm::dyn_cast<mlir::RankedTensorType>(value.getType()))
      return {type.getRank(), type.getElementType()};
    const TensorFacts &f = analysis.facts(value);
    return {static_cast<int64_t>(f.shape.size()), f.elementType};
  }
  mlir::Value asInt64(mlir::Value value) {
    return node("Cast", value, {onnx::intAttr(builder, "to", 7)});
  }

  //===--------------------------------------------------------------------===//
  // State
  //===--------------------------------------------------------------------===//

  /// The input prefill.past.`what`, with `rows` for the name of its rows.
  mlir::Value addPast(const llvm::Twine &what, mlir::Type type, int64_t along,
                      llvm::StringRef rows) {
    mlir::Value input = graph.getBody().front().addArgument(
        withSize(type, along, mlir::ShapedType::kDynamic,
                 ("past_" + rows).str()),
        loc);
    llvm::SmallVector<mlir::Attribute> names(graph.getInputs().begin(),
                                             graph.getInputs().end());
    names.push_back(builder.getStringAttr("prefill.past." + what));
    graph.setInputsAttr(builder.getArrayAttr(names));
    return input;
  }
  void addPresent(const llvm::Twine &what, mlir::Value value, mlir::Type type,
                  int64_t along, llvm::StringRef rows) {
    value.setType(withSize(type, along, mlir::ShapedType::kDynamic, rows));
    outputs.push_back({("prefill.present." + what).str(), value});
  }
  /// Appends `added` to the state `what` of `type`; returns all of it.
  mlir::Value append(const llvm::Twine &what, mlir::Value added,
                     mlir::Type type, int64_t along, llvm::StringRef rows) {
    mlir::Value all = node("Concat", {addPast(what, type, along, rows), added},
                           {axis(along)});
    addPresent(what, all, type, along, rows);
    return all;
  }

  bool checkInterface();
  void makeContext();
  mlir::Value getWanted();
  mlir::Value makeProtection();
  void makeLevel(const PruneStage &stage);

  //===--------------------------------------------------------------------===//
  // What has a row for every row of the context
  //===--------------------------------------------------------------------===//

  mlir::Value whole(mlir::Value value, mlir::Operation *reader);
  bool attention(AttentionOp op, unsigned number);
  mlir::Value cache(mlir::Value part, const llvm::Twine &what,
                    TensorLayout layout, int64_t heads, int64_t width,
                    unsigned number);
  bool use(const PruneUse &use);
  void redirectSelection(const RowSelection &selection);
};

} // namespace prefill

#endif
