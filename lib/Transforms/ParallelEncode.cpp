//===- ParallelEncode.cpp - Contexts encoded independently ----------------===//
//
// Lets a model that takes prompts in chunks (ChunkPrompt.cpp) read contexts
// that were encoded independently of one another:
//
//   %p = ... %cache_slots ...                             // positions
//   %o, %ck, %cv = prefill.attention %q, %k, %v ...
//       cache(%past_k, %past_v, %cache_slots)
// becomes, with new inputs %context_slots and %position_shifts,
//   %p = ... (%cache_slots + %position_shifts) ...
//   %o, %ck, %cv = prefill.attention %q, %k, %v ...
//       cache(%past_k, %past_v, %cache_slots) contexts(%context_slots)
//       {context_temperature = T, context_scale = S}
//
// A call whose contexts are empty is what it was before: by such calls the
// prefix and every context behind it are encoded, each context from the same
// position on. Rows of the query then stand behind the longest context and see
// all of them (APE, arXiv:2502.05431; the merge is runtime/src/contexts.c).
//
//===----------------------------------------------------------------------===//

#include "prefill/Transforms/ParallelEncode.h"
#include "PromptWalk.h"
#include "prefill/Dialect/ONNX/WeightReader.h"
#include "prefill/Transforms/Passes.h"

#include "mlir/IR/DialectResourceBlobManager.h"
#include "llvm/Support/SHA256.h"

namespace prefill {
#define GEN_PASS_DEF_PARALLELENCODE
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

//===----------------------------------------------------------------------===//
// The option
//===----------------------------------------------------------------------===//

bool prefill::parseParallelEncode(StringRef text, ParallelEncodeSpec &spec,
                                  std::string &error) {
  auto fail = [&](const llvm::Twine &what) {
    error = what.str();
    return false;
  };
  spec = {};
  auto [method, options] = text.split(':');
  if (method != "ape")
    return fail("'" + method + "': expected ape");
  if (text.contains(':') && options.empty())
    return fail("expected options after ape:, as in ape:T=0.9,S=0.9");
  llvm::SmallVector<StringRef> parts;
  options.split(parts, ',', /*MaxSplit=*/-1, /*KeepEmpty=*/!options.empty());
  for (StringRef part : parts) {
    auto [key, value] = part.split('=');
    if (key != "T" && key != "S")
      return fail("unknown option '" + part + "': expected T and S");
    double &number = key == "T" ? spec.temperature : spec.scale;
    // A NaN is in no range.
    if (value.getAsDouble(number) || !(number >= 1e-3 && number <= 1e3))
      return fail(key + "=" + value + ": expected a number from 0.001 to 1000");
  }
  return true;
}

//===----------------------------------------------------------------------===//
// The model's digest
//===----------------------------------------------------------------------===//

namespace {
/// A hash of all that a model computes with: its operators and its weights'
/// bytes. What a store of encoded contexts is keyed by.
class ModelDigest {
public:
  explicit ModelDigest(ModuleOp module)
      : reader(onnx::getMainGraph(module).getOperation()) {
    std::string text;
    llvm::raw_string_ostream os(text);
    // Not the module's attributes: they name the folder that the model is in.
    OpPrintingFlags flags;
    flags.elideLargeElementsAttrs(16).elideLargeResourceString(16);
    for (Operation &op : *module.getBody())
      op.print(os, flags);
    os << module->getAttr(onnx::ONNXDialect::kOpsetImports);
    hash.update(text);
    module.walk([&](Operation *op) {
      for (NamedAttribute attribute : op->getAttrs())
        attribute.getValue().walk([&](Attribute part) { add(part); });
    });
  }

  /// Why weights cannot be read; or "".
  std::string error;

  std::string text() { return llvm::toHex(hash.final(), /*LowerCase=*/true); }

private:
  void add(Attribute attribute) {
    if (auto weight = dyn_cast<onnx::WeightAttr>(attribute)) {
      auto bytes = reader.read(weight);
      if (!bytes)
        error = llvm::toString(bytes.takeError());
      else
        hash.update(StringRef(bytes->data(), bytes->size()));
    } else if (auto resource = dyn_cast<DenseResourceElementsAttr>(attribute)) {
      if (AsmResourceBlob *blob = resource.getRawHandle().getBlob())
        hash.update(StringRef(blob->getData().data(), blob->getData().size()));
    } else if (auto dense = dyn_cast<DenseElementsAttr>(attribute)) {
      if (!isa<DenseStringElementsAttr>(dense))
        hash.update(
            StringRef(dense.getRawData().data(), dense.getRawData().size()));
    }
  }

  onnx::WeightReader reader;
  llvm::SHA256 hash;
};
} // namespace

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

/// Whether `add` is the positions that chunk-prompt makes of row numbers:
/// Add(Range, Gather(Sub(rows held, starts), segments)).
static bool isShiftedRange(onnx::NodeOp add) {
  for (int i : {0, 1}) {
    auto range = add.getInput(i).getDefiningOp<onnx::NodeOp>();
    auto shift = add.getInput(1 - i).getDefiningOp<onnx::NodeOp>();
    if (!range || !range.is("Range") || !shift || !shift.is("Gather"))
      continue;
    auto held = shift.getInput(0).getDefiningOp<onnx::NodeOp>();
    if (held && held.is("Sub"))
      return true;
  }
  return false;
}

/// Whether `value` is made of positions: those, or the input `position_ids`;
/// with something added or not, in whatever shape.
static bool isPosition(onnx::GraphOp graph, Value value, int depth = 0) {
  if (auto argument = dyn_cast<BlockArgument>(value))
    return argument.getOwner() == &graph.getBody().front() &&
           onnx::getEntryName(graph.getInputs()[argument.getArgNumber()])
                   .getValue() == "position_ids";
  auto node = value.getDefiningOp<onnx::NodeOp>();
  if (!node || depth > 8)
    return false;
  if (node.is("Add"))
    return isShiftedRange(node) ||
           isPosition(graph, node.getInput(0), depth + 1) ||
           isPosition(graph, node.getInput(1), depth + 1);
  for (StringRef moved : {"Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast",
                          "Identity", "Transpose", "Slice"})
    if (node.is(moved))
      return isPosition(graph, node.getInput(0), depth + 1);
  return false;
}

/// The rows of the shortest table that is read by positions (learned
/// embeddings, rotary tables that the export keeps); 0 where there is none.
static int64_t countPositions(onnx::GraphOp graph) {
  int64_t least = 0;
  graph.walk([&](onnx::NodeOp node) {
    if (!node.is("Gather") || node.getInt("axis", 0) != 0)
      return;
    auto table = dyn_cast<RankedTensorType>(node.getInput(0).getType());
    if (!table || table.getRank() < 2 || table.isDynamicDim(0) ||
        !isPosition(graph, node.getInput(1)))
      return;
    int64_t rows = table.getDimSize(0);
    least = least ? std::min(least, rows) : rows;
  });
  return least;
}

namespace {
struct ParallelEncodePass final
    : prefill::impl::ParallelEncodeBase<ParallelEncodePass> {
  using Base::Base;

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph)
      return;
    std::string error = encode(graph);
    if (error.empty())
      return;
    emitError(UnknownLoc::get(&getContext())) << "-parallel-encode: " << error;
    signalPassFailure();
  }

private:
  /// Rewrites `graph`; returns an error or "".
  std::string encode(onnx::GraphOp graph) {
    ParallelEncodeSpec spec;
    std::string error;
    if (!parseParallelEncode(method, spec, error))
      return error;
    SmallVector<AttentionOp> attentions;
    for (auto op : graph.getBody().front().getOps<AttentionOp>())
      if (op.getPastK())
        attentions.push_back(op);
    if (attentions.empty())
      return "no attention has a cache that is written in place: the model "
             "keeps one of its own; -padding=none replaces it";
    for (AttentionOp op : attentions)
      if (std::string why = refusal(op); !why.empty())
        return "attention '" + op.getLayer().value_or("?").str() + "': " + why;
    for (Attribute name : graph.getInputs())
      for (StringRef mine : {"context_slots", "position_shifts"})
        if (onnx::getEntryName(name).getValue() == mine)
          return ("the model has an input '" + mine + "' already").str();
    ModelDigest digest(getOperation());
    if (!digest.error.empty())
      return digest.error;
    int64_t positions = countPositions(graph);
    rewrite(graph, attentions, spec);
    tell("prefill.parallel-encode", method);
    tell("prefill.model", digest.text());
    if (positions)
      tell("prefill.positions", std::to_string(positions));
    return "";
  }

  static std::string refusal(AttentionOp op) {
    if (op.getWindowLeft())
      return "it has a sliding window, and which keys of contexts that share "
             "their positions are in it is not defined";
    if (op.getSinks())
      return "it has sinks, which would count in one of two softmaxes only";
    if (op.getLse())
      return "its lse is read";
    return "";
  }

  void rewrite(onnx::GraphOp graph, ArrayRef<AttentionOp> attentions,
               const ParallelEncodeSpec &spec) {
    OpBuilder builder(graph.getContext());
    AttentionOp any = attentions.front();
    Value cacheSlots = any.getCacheSlots();
    Value contexts = addIntInput(graph, "context_slots",
                                 {ShapedType::kDynamic, 2}, {"segments", ""});
    for (AttentionOp op : attentions) {
      op.getContextSlotsMutable().assign(contexts);
      op.setContextTemperatureAttr(
          builder.getF32FloatAttr(static_cast<float>(spec.temperature)));
      op.setContextScaleAttr(
          builder.getF32FloatAttr(static_cast<float>(spec.scale)));
      ++numAttentions;
    }
    // All other readers of the slots count positions, from how many rows are
    // held: more of them stand in front of rows behind contexts.
    SmallPtrSet<Operation *, 8> counting;
    for (Operation *user : cacheSlots.getUsers())
      if (!isa<AttentionOp>(user))
        counting.insert(user);
    if (counting.empty())
      return; // The caller gives position_ids.
    Value shifts = addIntInput(graph, "position_shifts", {ShapedType::kDynamic},
                               {"segments"});
    builder.setInsertionPointToStart(&graph.getBody().front());
    Location loc = graph.getLoc();
    Type unknown = onnx::UnknownType::get(graph.getContext());
    Value column =
        onnx::NodeOp::create(
            builder, loc, "Reshape", "",
            ValueRange{shifts, onnx::createInts(builder, loc, {-1, 1})},
            unknown, ArrayRef<NamedAttribute>())
            .getResult(0);
    Value moved = onnx::NodeOp::create(builder, loc, "Add", "",
                                       ValueRange{cacheSlots, column}, unknown,
                                       ArrayRef<NamedAttribute>())
                      .getResult(0);
    moved.setType(cacheSlots.getType());
    cacheSlots.replaceUsesWithIf(moved, [&](OpOperand &use) {
      return counting.contains(use.getOwner());
    });
  }

  /// Writes what a host needs to know into the model's metadata.
  void tell(StringRef key, StringRef value) {
    Builder builder(&getContext());
    StringRef name = onnx::ONNXDialect::kMetadata;
    SmallVector<Attribute> metadata;
    if (auto known = getOperation()->getAttrOfType<ArrayAttr>(name))
      metadata.append(known.begin(), known.end());
    metadata.push_back(builder.getStringAttr(key));
    metadata.push_back(builder.getStringAttr(value));
    getOperation()->setAttr(name, builder.getArrayAttr(metadata));
  }
};
} // namespace
