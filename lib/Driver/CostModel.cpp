//===- CostModel.cpp - FLOPs, bytes and seconds of a graph ----------------===//
//
// Walks a graph with every shape evaluated at given sizes. Products with
// weights, attention and the head are counted in FLOPs; everything else by the
// bytes it moves. An operator takes as long as the slower of its products and
// its bytes; attention as long as runtime/src/cost.c says.
//
//===----------------------------------------------------------------------===//

#include "CostModel.h"
#include "CostSizes.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace prefill;

void GraphCost::add(const GraphCost &other, double times) {
  linear += times * other.linear;
  attention += times * other.attention;
  head += times * other.head;
  bytes += times * other.bytes;
  kv += other.kv;
  weights = std::max(weights, other.weights);
  peak = std::max(peak, other.peak);
  seconds += times * other.seconds;
  computing += times * other.computing;
  attentions.insert(attentions.end(), other.attentions.begin(),
                    other.attentions.end());
  uncounted = std::max(uncounted, other.uncounted);
  if (firstUncounted.empty())
    firstUncounted = other.firstUncounted;
}

namespace {
//===----------------------------------------------------------------------===//
// The walk
//===----------------------------------------------------------------------===//

/// Operators whose result is memory of their first operand.
bool isView(onnx::NodeOp op) {
  return op.getDomain().empty() &&
         llvm::StringSwitch<bool>(op.getOpType())
             .Cases({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"},
                    true)
             .Default(false);
}

/// Operators whose work is neither products that are counted nor bytes.
bool isUnknownWork(onnx::NodeOp op) {
  if (op->getNumRegions() || onnx::getCallee(op))
    return true;
  if (op.getDomain() == "com.microsoft")
    return llvm::StringSwitch<bool>(op.getOpType())
        .Cases({"Attention", "MultiHeadAttention", "GroupQueryAttention",
                "PackedAttention", "MoE", "QMoE"},
               true)
        .Default(false);
  return llvm::StringSwitch<bool>(op.getOpType())
      .Cases({"Attention", "Einsum", "ConvTranspose", "LSTM", "GRU"}, true)
      .Cases({"RNN", "ConvInteger", "QLinearConv"}, true)
      .Default(false);
}

class Walk {
public:
  Walk(onnx::GraphOp graph, SymbolicAnalysis &analysis, Sizes &sizes,
       const CostSizes &given, ArrayRef<KernelSpec> kernels,
       const CostDevice &device, GraphCost &cost)
      : body(graph.getBody().front()), analysis(analysis), sizes(sizes),
        given(given), kernels(kernels), device(device), cost(cost) {}

  void run() {
    findHead();
    measureLives();
    for (Value input : body.getArguments())
      alive += bytesOf(input); // The caller's, until the end.
    for (auto [number, op] : llvm::enumerate(body)) {
      if (auto node = dyn_cast<onnx::NodeOp>(op))
        visit(node);
      else if (auto attention = dyn_cast<AttentionOp>(op))
        visit(attention);
      else if (isa<onnx::InitializerOp>(op))
        cost.weights += bytesOf(op.getResult(0));
      track(number, op);
    }
    cost.peak += cost.weights;
  }

private:
  Block &body;
  SymbolicAnalysis &analysis;
  Sizes &sizes;
  const CostSizes &given;
  ArrayRef<KernelSpec> kernels;
  const CostDevice &device;
  GraphCost &cost;
  llvm::DenseSet<Operation *> head;
  llvm::DenseMap<Value, Value> storage; ///< whose memory a value is
  llvm::DenseMap<Value, size_t> last;   ///< number of the last op that reads it
  llvm::DenseMap<Value, bool> constant;
  llvm::DenseSet<std::pair<Value, Value>> caches;
  size_t nextKernel = 0;
  double alive = 0;

  double bytesOf(Value value) {
    Type element = analysis.facts(value).elementType;
    Shape shape = sizes.shape(value);
    if (!element || !shape)
      return 0;
    double count = 1;
    for (int64_t size : *shape)
      count *= double(size);
    return count * onnx::getElementBits(element) / 8;
  }

  /// Weights, and what is made of nothing else: not computed in a run.
  bool isConstant(Value value) {
    auto [it, added] = constant.try_emplace(value, false);
    if (!added)
      return it->second;
    Operation *op = value.getDefiningOp();
    bool result = isa_and_nonnull<onnx::InitializerOp, onnx::AbsentOp>(op);
    if (auto node = dyn_cast_if_present<onnx::NodeOp>(op))
      result = llvm::all_of(node.getInputs(),
                            [&](Value input) { return isConstant(input); });
    return constant[value] = result;
  }

  static bool isProduct(Operation *op) {
    auto node = dyn_cast_if_present<onnx::NodeOp>(op);
    return node && llvm::StringSwitch<bool>(node.getOpType())
                       .Cases({"MatMul", "Gemm", "MatMulNBits", "FusedMatMul",
                               "MatMulInteger", "Conv"},
                              true)
                       .Default(false);
  }

  /// The product that makes the output `logits`, or else none.
  void findHead() {
    auto ret = cast<onnx::ReturnOp>(body.getTerminator());
    for (auto [name, value] :
         llvm::zip_equal(ret.getOutputNames(), ret.getValues())) {
      if (onnx::getEntryName(name).getValue() != "logits")
        continue;
      for (Value at = value; at.getDefiningOp();) {
        Operation *op = at.getDefiningOp();
        if (isProduct(op))
          head.insert(op);
        if (isProduct(op) || op->getNumOperands() == 0 || isa<AttentionOp>(op))
          break;
        Value next;
        for (Value operand : op->getOperands())
          if (!next && !isConstant(operand))
            next = operand;
        if (!next)
          break;
        at = next;
      }
    }
  }

  void take(double flops, double bytes, double &kind, double seconds = -1) {
    kind += flops;
    cost.bytes += bytes;
    double products = seconds >= 0 ? seconds : flops / device.linear();
    double memory = bytes / device.bytes(bytes);
    cost.seconds += std::max(products, memory);
    if (products >= memory)
      cost.computing += products;
  }

  void leaveOut(Operation *op, const llvm::Twine &why) {
    if (!cost.uncounted++) {
      auto node = dyn_cast<onnx::NodeOp>(op);
      StringRef name = node ? node.getNodeName() : "";
      cost.firstUncounted =
          ((node ? node.getOpType() : op->getName().getStringRef()) +
           (name.empty() ? "" : " '" + name + "'") + ": " + why)
              .str();
    }
  }

  /// Bytes that a node reads and writes.
  double traffic(onnx::NodeOp op) {
    StringRef type = op.getOpType();
    double written = 0, read = 0;
    for (Value result : op.getResults())
      written += bytesOf(result);
    // What is selected is read, not what it is selected from.
    if (op.getDomain().empty() &&
        llvm::StringSwitch<bool>(type)
            .Cases({"Gather", "Slice", "GatherND", "GatherElements", "Split"},
                   true)
            .Default(false))
      return 2 * written;
    if (type == "Shape" || type == "Size")
      return 0;
    for (Value input : op.getInputs())
      read += bytesOf(input);
    return read + written;
  }

  void visit(onnx::NodeOp op) {
    if (llvm::all_of(op.getResults(),
                     [&](Value result) { return isConstant(result); }) ||
        isView(op))
      return;
    if (isUnknownWork(op))
      return leaveOut(op, "its work is not counted");
    double none = 0;
    if (!isProduct(op))
      return take(0, traffic(op), none);
    Shape out = sizes.shape(op.getResult(0)), in = sizes.shape(op.getInput(0));
    if (!out || !in || in->empty())
      return leaveOut(op, "its sizes are not known");
    bool transposed = op.getInt("transA", 0) && op.getOpType() == "Gemm";
    double flops = 2.0 * double(transposed ? in->front() : in->back());
    if (op.getOpType() == "Conv") { // every output by one filter
      Shape filters = sizes.shape(op.getInput(1));
      if (!filters)
        return leaveOut(op, "its sizes are not known");
      flops = 2;
      for (int64_t size : ArrayRef(*filters).drop_front())
        flops *= double(size);
    }
    for (int64_t size : *out)
      flops *= double(size);
    bool weights = llvm::any_of(op.getInputs().take_front(2),
                                [&](Value v) { return isConstant(v); });
    take(flops, traffic(op),
         head.contains(op) ? cost.head
         : weights         ? cost.linear
                           : cost.attention);
  }

  /// Pairs of a query row and a key that it sees.
  static double pairs(const prefill_cost_shape &shape) {
    double count = 0;
    int64_t offset = shape.keys - shape.rows;
    if (!shape.causal)
      return double(shape.rows) * double(shape.keys);
    for (int64_t row = 0; row < shape.rows; ++row) {
      int64_t seen = std::max<int64_t>(0, offset + row + 1);
      if (shape.window_left >= 0)
        seen = std::min(seen, shape.window_left + 1);
      count += double(seen);
    }
    return count;
  }

  void visit(AttentionOp op) {
    const KernelSpec *spec =
        nextKernel < kernels.size() ? &kernels[nextKernel] : nullptr;
    ++nextKernel;
    Shape q = sizes.shape(op.getQ()), k = sizes.shape(op.getK());
    auto axis = [](TensorLayout l) { return l == TensorLayout::BSHD ? 1 : 2; };
    if (!q || !k)
      return leaveOut(op, "its sizes are not known");
    int64_t batch = (*q)[0], rows = (*q)[axis(op.getQLayout())],
            keys = (*k)[axis(op.getKLayout())];
    AttentionCost mine;
    mine.layer = op.getLayer().value_or("").str();
    mine.rows = rows;
    const int64_t past = pastOf(op), contexts = contextsOf(op);
    mine.keys = keys + past + contexts;
    double seconds = 0, visited = 0, visible = 0;
    // Prompts of a pack are calls of their own.
    std::vector<std::pair<int64_t, int64_t>> calls = {{rows, keys}};
    if (op.getSegmentStarts() && !given.segments.empty()) {
      calls.clear();
      for (int64_t length : given.segments)
        calls.push_back({rows == keys ? length : std::min<int64_t>(1, rows),
                         length + past});
    }
    const size_t causalCalls = calls.size();
    if (contexts) // A second softmax, over keys that all rows see.
      for (size_t i = 0; i < causalCalls; ++i)
        calls.push_back({calls[i].first, contexts});
    double dims = double(op.getHeadDim() + op.getVHeadDim());
    for (auto [number, call] : llvm::enumerate(calls)) {
      auto [callRows, callKeys] = call;
      prefill_cost_shape shape = {callRows,
                                  callKeys,
                                  device.rates.block_q,
                                  device.rates.block_k,
                                  op.getCausal() && number < causalCalls,
                                  int64_t(op.getWindowLeft().value_or(-1))};
      double each = 2 * dims * pairs(shape) * double(batch);
      double unit = 2 * dims * shape.block_q * shape.block_k /
                    device.attention(op.getHeadDim());
      for (int64_t h = 0; h < int64_t(op.getQHeads()); ++h) {
        prefill_head_plan plan;
        const prefill_head_plan *asked = nullptr;
        if (spec && !spec->heads.empty() &&
            spec->heads[h].pattern != SparsePattern::Dense) {
          plan = toRuntime(spec->heads[h]);
          asked = &plan;
        }
        prefill_cost_units units;
        prefill_cost_attention(&shape, asked, spec ? spec->denseBelow : -1,
                               &units);
        double share = units.visible > 0 ? units.visited / units.visible : 1;
        mine.flops += each * share + units.estimate * double(batch) *
                                         shape.block_q * shape.block_k * 2 *
                                         dims;
        seconds += unit * units.chosen * double(batch);
        visited += units.visited;
        visible += units.visible;
        mine.sparse += units.sparse;
        mine.asked += asked != nullptr;
      }
    }
    mine.visited = visible > 0 ? visited / visible : 1;
    double bytes = bytesOf(op.getQ()) + bytesOf(op.getO()) + addCache(op);
    take(mine.flops, bytes, cost.attention, seconds);
    cost.attentions.push_back(std::move(mine));
  }

  /// Rows of a layer's cache before the call's.
  int64_t pastOf(AttentionOp op) const {
    if (!op.getPastK())
      return 0;
    const size_t layer = nextKernel - 1; // visit() has gone on.
    return layer < given.pasts.size() ? given.pasts[layer] : given.past;
  }
  int64_t contextsOf(AttentionOp op) const {
    return op.getContextSlots() ? given.contexts : 0;
  }

  /// The bytes of K and V, which a cache holds once, whoever reads them.
  double addCache(AttentionOp op) {
    double bytes = bytesOf(op.getK()) + bytesOf(op.getV());
    if (op.getPastK()) { // The rows before are read too.
      double cache = bytesOf(op.getPastK()) + bytesOf(op.getPastV());
      cost.kv += given.pasts.empty()
                     ? cache
                     : cache * double(pastOf(op) + given.tokens) /
                           double(std::max<int64_t>(1, given.capacity));
      return bytes + cache * double(pastOf(op) + contextsOf(op)) /
                         double(std::max<int64_t>(1, given.capacity));
    }
    if (caches.insert({op.getK(), op.getV()}).second)
      cost.kv += bytes;
    return bytes;
  }

  static prefill_head_plan toRuntime(const HeadPlan &p) {
    return {uint32_t(p.pattern),
            p.init,
            p.local,
            p.last,
            p.vertical,
            p.slash,
            p.topK,
            p.density,
            p.stride,
            p.topP,
            p.threshold,
            p.minBudget,
            p.bits,
            p.values,
            p.similarity,
            p.horizontal,
            p.skip};
  }

  //===--------------------------------------------------------------------===//
  // Memory
  //===--------------------------------------------------------------------===//

  Value storageOf(Value value) {
    auto found = storage.find(value);
    return found == storage.end() ? value : found->second;
  }

  /// When each value is read last; outputs live on.
  void measureLives() {
    for (auto [number, op] : llvm::enumerate(body)) {
      if (auto node = dyn_cast<onnx::NodeOp>(op);
          node && isView(node) && node.getInput(0))
        storage[node.getResult(0)] = storageOf(node.getInput(0));
      if (auto attention = dyn_cast<AttentionOp>(op);
          attention && attention.getPastK()) { // Written in place.
        storage[attention.getPresentK()] = storageOf(attention.getPastK());
        storage[attention.getPresentV()] = storageOf(attention.getPastV());
      }
      for (Value operand : op.getOperands())
        last[storageOf(operand)] = isa<onnx::ReturnOp>(op) ? SIZE_MAX : number;
      for (Region &region : op.getRegions())
        region.walk([&, number = number](Operation *inner) {
          for (Value operand : inner->getOperands())
            if (operand.getParentBlock() == &body)
              last[storageOf(operand)] = number;
        });
    }
  }

  /// Operators that write over an operand of the same size which nobody else
  /// reads.
  static bool canReuse(Operation &op) {
    auto node = dyn_cast<onnx::NodeOp>(op);
    return node && node.getDomain().empty() &&
           llvm::StringSwitch<bool>(node.getOpType())
               .Cases({"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Relu"},
                      true)
               .Cases({"Sqrt", "Erf", "Neg", "Reciprocal", "Cos", "Sin"}, true)
               .Default(false);
  }

  void track(size_t number, Operation &op) {
    if (isa<onnx::InitializerOp>(op))
      return;
    double made = 0;
    for (Value result : op.getResults())
      if (storageOf(result) == result && !isConstant(result))
        made += bytesOf(result);
    double freed = 0, reused = 0;
    for (Value result : op.getResults())
      if (result.use_empty() && !isConstant(result))
        freed += bytesOf(result);
    llvm::SmallDenseSet<Value, 8> seen;
    for (Value operand : op.getOperands()) {
      Value root = storageOf(operand);
      if (last.lookup(root) != number || isa<BlockArgument>(root) ||
          isConstant(root) || !seen.insert(root).second)
        continue;
      freed += bytesOf(root);
      if (canReuse(op) && bytesOf(root) == made)
        reused = made;
    }
    alive += made - reused;
    cost.peak = std::max(cost.peak, alive);
    alive -= freed - reused;
  }
};
} // namespace

bool prefill::costOf(onnx::GraphOp graph, const CostSizes &given,
                     ArrayRef<KernelSpec> kernels, const CostDevice &device,
                     GraphCost &cost, std::string &error) {
  SymbolicAnalysis analysis(graph);
  Sizes sizes(analysis);
  if (!sizes.bind(given, error))
    return false;
  Walk(graph, analysis, sizes, given, kernels, device, cost).run();
  return true;
}
