//===- ShareKV.cpp - Layers that read another layer's keys and values -----===//
//
// Models whose layers share KV (YOCO, arXiv:2405.05254; Gemma 3n; CLA) are
// often exported with the shared projection written out once a layer:
//
//   %k1 = MatMul(%x, %w)     %o1 = prefill.attention %q1, %k1, %v1
//   %k2 = MatMul(%x, %w')    %o2 = prefill.attention %q2, %k2, %v2
//
// with %w' equal to %w byte by byte. Where the keys and values of an attention
// are provably those of an earlier one, it reads these, and the duplicates go.
// Proven means: the same operators with the same attributes on the same values,
// down to the inputs and to weights with the same bytes. Exact.
//
//===----------------------------------------------------------------------===//

#include "prefill/Dialect/ONNX/WeightReader.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Transforms/Passes.h"

#include "mlir/IR/DialectResourceBlobManager.h"
#include "mlir/IR/Remarks.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "llvm/ADT/Hashing.h"

namespace prefill {
#define GEN_PASS_DEF_SHAREKV
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
/// Which values of a graph are always equal: each has the first of its kind.
class Equals {
public:
  explicit Equals(onnx::GraphOp graph) : reader(graph.getOperation()) {
    for (Operation &op : graph.getBody().front())
      if (isa<onnx::NodeOp, AttentionOp>(op))
        number(&op);
  }

  Value first(Value value) const {
    auto found = leader.find(value);
    return found == leader.end() ? value : found->second;
  }

  /// Whether two constants have the same type and bytes.
  bool sameBytes(Value a, Value b) {
    if (a == b)
      return true;
    auto x = a.getDefiningOp<onnx::InitializerOp>();
    auto y = b.getDefiningOp<onnx::InitializerOp>();
    if (!x || !y || a.getType() != b.getType())
      return false;
    Attribute p = onnx::unwrap(x.getValue()), q = onnx::unwrap(y.getValue());
    if (p == q)
      return true;
    std::optional<ArrayRef<char>> left = bytes(p), right = bytes(q);
    return left && right && *left == *right;
  }

private:
  onnx::WeightReader reader;
  DenseMap<Value, Value> leader;
  DenseMap<llvm::hash_code, SmallVector<Operation *, 1>> known;

  std::optional<ArrayRef<char>> bytes(Attribute attribute) {
    if (auto weight = dyn_cast<onnx::WeightAttr>(attribute)) {
      auto data = reader.read(weight);
      if (data)
        return *data;
      llvm::consumeError(data.takeError());
    }
    if (auto resource = dyn_cast<DenseResourceElementsAttr>(attribute)) {
      if (AsmResourceBlob *blob = resource.getRawHandle().getBlob())
        return blob->getData();
      return std::nullopt;
    }
    // One element that stands for all has other bytes than all of them.
    auto dense = dyn_cast<DenseElementsAttr>(attribute);
    if (dense && !dense.isSplat() && !isa<DenseStringElementsAttr>(dense) &&
        !dense.getElementType().isInteger(1))
      return dense.getRawData();
    return std::nullopt;
  }

  /// A function of its inputs: not random, no subgraph, no unknown domain.
  static bool isFunction(Operation *op) {
    auto node = dyn_cast<onnx::NodeOp>(op);
    if (!node)
      return true;
    StringRef type = node.getOpType();
    return isMemoryEffectFree(op) && !op->getNumRegions() &&
           !onnx::getCallee(node) && !type.starts_with("Random") &&
           type != "Multinomial" && type != "Bernoulli" && type != "Dropout";
  }

  /// What two equal ops have in common; names are not of it.
  static SmallVector<Attribute> attributes(Operation *op) {
    SmallVector<Attribute> result;
    if (auto node = dyn_cast<onnx::NodeOp>(op))
      return {node.getOpTypeAttr(),
              StringAttr::get(op->getContext(), node.getDomain()),
              node.getOpOverloadAttr(), node.getAttrsAttr()};
    for (NamedAttribute entry : op->getAttrs())
      if (entry.getName() != "layer" && entry.getName() != "form")
        result.append({entry.getName(), entry.getValue()});
    return result;
  }

  static bool isConstant(Value value) {
    return isa_and_nonnull<onnx::InitializerOp>(value.getDefiningOp());
  }
  static bool isAbsent(Value value) {
    return isa_and_nonnull<onnx::AbsentOp>(value.getDefiningOp());
  }

  bool sameOperand(Value a, Value b) {
    return first(a) == first(b) || (isAbsent(a) && isAbsent(b)) ||
           (isConstant(a) && isConstant(b) && sameBytes(a, b));
  }

  void number(Operation *op) {
    if (!isFunction(op))
      return;
    SmallVector<Attribute> mine = attributes(op);
    llvm::hash_code key =
        llvm::hash_combine(op->getName(), op->getNumResults(),
                           llvm::hash_combine_range(mine.begin(), mine.end()));
    // Weights by their types: bytes are looked at if all else is equal.
    for (Value operand : op->getOperands())
      key = llvm::hash_combine(key, isConstant(operand) || isAbsent(operand)
                                        ? operand.getType().getAsOpaquePointer()
                                        : first(operand).getAsOpaquePointer());
    for (Operation *other : known[key]) {
      if (other->getName() != op->getName() ||
          other->getNumOperands() != op->getNumOperands() ||
          other->getNumResults() != op->getNumResults() ||
          attributes(other) != mine ||
          !llvm::all_of(
              llvm::zip_equal(op->getOperands(), other->getOperands()),
              [&](auto pair) {
                return sameOperand(std::get<0>(pair), std::get<1>(pair));
              }))
        continue;
      for (auto [a, b] : llvm::zip_equal(op->getResults(), other->getResults()))
        leader[a] = first(b);
      return;
    }
    known[key].push_back(op);
  }
};

struct ShareKVPass final : prefill::impl::ShareKVBase<ShareKVPass> {
  using Base::Base;
  explicit ShareKVPass(LivenessReport &report) : report(&report) {}

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph)
      return;
    SmallVector<AttentionOp> attentions(
        graph.getBody().front().getOps<AttentionOp>());
    if (attentions.size() < 2)
      return;
    Equals equals(graph);
    bool changed = false;
    for (auto [i, op] : llvm::enumerate(attentions)) {
      Value k = equals.first(op.getK()), v = equals.first(op.getV());
      ArrayRef<AttentionOp> earlier = ArrayRef(attentions).take_front(i);
      auto source = llvm::find_if(earlier, [&](AttentionOp other) {
        return equals.first(other.getK()) == k &&
               equals.first(other.getV()) == v && sameKeys(other, op, equals);
      });
      if (source == earlier.end()) {
        explain(op, earlier, equals);
        continue;
      }
      bool merged = k != op.getK() || v != op.getV();
      share(op, *source, k, v);
      changed |= merged;
      tell(op, *source, merged);
    }
    if (changed)
      shareOutputs(graph, equals);
  }

private:
  LivenessReport *report = nullptr;

  /// Whether the keys are the same after rotation too.
  static bool sameKeys(AttentionOp a, AttentionOp b, const Equals &equals) {
    auto same = [&](Value x, Value y) {
      return (!x && !y) || (x && y && equals.first(x) == equals.first(y));
    };
    // A cache has earlier rows, of which nothing is known.
    return !a.getPastK() && !b.getPastK() && a.getRotary() == b.getRotary() &&
           a.getRotaryDim() == b.getRotaryDim() &&
           a.getKvHeads() == b.getKvHeads() &&
           a.getHeadDim() == b.getHeadDim() &&
           a.getKLayout() == b.getKLayout() &&
           a.getVLayout() == b.getVLayout() && same(a.getCos(), b.getCos()) &&
           same(a.getSin(), b.getSin());
  }

  static void share(AttentionOp op, AttentionOp source, Value k, Value v) {
    auto replace = [](Value old, Value value) {
      if (old != value)
        old.replaceAllUsesWith(value);
    };
    replace(op.getK(), k);
    replace(op.getV(), v);
    if (op.getRotatedK() && source.getRotatedK())
      replace(op.getRotatedK(), source.getRotatedK());
  }

  /// Outputs of the model that are copies now (caches) are the same value, and
  /// what made them goes.
  void shareOutputs(onnx::GraphOp graph, const Equals &equals) {
    Block &body = graph.getBody().front();
    for (OpOperand &output : body.getTerminator()->getOpOperands())
      output.set(equals.first(output.get()));
    for (Operation &op : llvm::make_early_inc_range(llvm::reverse(body)))
      if (isa<onnx::NodeOp, onnx::InitializerOp, onnx::AbsentOp>(op) &&
          isOpTriviallyDead(&op))
        op.erase();
  }

  void tell(AttentionOp op, AttentionOp source, bool merged) {
    std::string layer = op.getLayer().value_or("").str(),
                from = source.getLayer().value_or("").str();
    ++numShared;
    remark::passed(op.getLoc(),
                   remark::RemarkOpts::name("SharedKV").category("kv-sharing"))
        << "attention '" + layer + "' reads keys and values of '" + from +
               (merged ? "', which were computed twice" : "', as exported");
    if (report)
      report->shared.push_back({layer, from, merged});
  }

  /// The product with a weight that `value` comes from, through operators with
  /// one operand that is no constant.
  static onnx::NodeOp projection(Value value) {
    while (auto node = value.getDefiningOp<onnx::NodeOp>()) {
      if (node.is("MatMul") || node.is("Gemm"))
        return node;
      Value next;
      for (Value operand : node.getInputs())
        if (!isa_and_nonnull<onnx::InitializerOp, onnx::AbsentOp>(
                operand.getDefiningOp())) {
          if (next)
            return {};
          next = operand;
        }
      if (!next)
        return {};
      value = next;
    }
    return {};
  }

  /// Says why an attention with another one's weights has keys of its own.
  static void explain(AttentionOp op, ArrayRef<AttentionOp> earlier,
                      Equals &equals) {
    onnx::NodeOp mine = projection(op.getK());
    for (AttentionOp other : earlier) {
      onnx::NodeOp theirs = projection(other.getK());
      if (!mine || !theirs || mine->getNumOperands() < 2 ||
          theirs->getNumOperands() < 2 ||
          !equals.sameBytes(mine.getInput(1), theirs.getInput(1)))
        continue;
      remark::missed(op.getLoc(),
                     remark::RemarkOpts::name("OwnKV").category("kv-sharing"))
          << ("attention '" + op.getLayer().value_or("") +
              "' has the key weights of '" + other.getLayer().value_or("") +
              "', but its keys or values are not proven to be the same")
                 .str();
      return;
    }
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createShareKV(LivenessReport &report) {
  return std::make_unique<ShareKVPass>(report);
}
