//===- ChunkPrompt.cpp - A prompt in chunks, beside other requests --------===//
//
// Makes a model of one whole prompt one that takes some rows of several
// requests, and finds the keys of their earlier rows in a KV cache:
//
//   %p = onnx.node "Range"(%zero, %length, %one)        // positions
//   %o, %k2 = prefill.attention %q, %k, %v rotary(%cos, %sin) {causal}
//   onnx.return %logits, %k2
// becomes, with new inputs %segment_starts, %cache_slots, %past_k, %past_v,
//   %p = i - (the start of row i's segment) + (rows that the cache has of it)
//   %o, %ck, %cv = prefill.attention %q, %k, %v rotary(%cos, %sin)
//       segment_starts(%segment_starts) cache(%past_k, %past_v, %cache_slots)
//   onnx.return %logits, %ck, %cv
//
// One request with the next rows of its prompt is chunked prefill; chunks
// beside single rows of requests that generate are a hybrid batch (SARATHI,
// arXiv:2308.16369). The proof is that of packs (PromptWalk.h). A model that
// has a KV cache already stays as it is. Where the cache is to be pruned
// (prune-groups), its rows are no positions: these come from %prompt_parts.
//
//===----------------------------------------------------------------------===//

#include "PromptWalk.h"
#include "prefill/Transforms/Passes.h"

#include "llvm/ADT/StringSet.h"

namespace prefill {
#define GEN_PASS_DEF_CHUNKPROMPT
#include "prefill/Transforms/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {
struct ChunkPromptPass final : prefill::impl::ChunkPromptBase<ChunkPromptPass> {
  using Base::Base;
  explicit ChunkPromptPass(ChunkPromptOptions options, ChunkReport *report)
      : Base(options), report(report) {}

  void runOnOperation() override {
    onnx::GraphOp graph = onnx::getMainGraph(getOperation());
    if (!graph || !size)
      return;
    std::string error = chunk(graph);
    if (error.empty())
      return addMetadata(getOperation(), "prefill.chunk", std::to_string(size));
    emitError(UnknownLoc::get(&getContext()))
        << (parts ? "-prune=quickprefill: " : "-chunk: ") << error;
    signalPassFailure();
  }

private:
  ChunkReport *report = nullptr;

  std::string chunk(onnx::GraphOp graph) {
    if (size < 0)
      return "expected a number of rows, got " + std::to_string(size);
    ChunkReport own;
    ChunkReport &result = report ? *report : own;
    const bool hasOwn = hasCache(graph, result);
    if (hasOwn && parts)
      return "the model has a KV cache of its own, whose rows are its "
             "positions; -padding=none replaces it";
    if (hasOwn)
      return result.caches.empty()
                 ? "the model has inputs of a KV cache, but not an output "
                   "present* for each"
                 : "";
    SymbolicAnalysis analysis(graph);
    PromptWalk walk(analysis);
    if (std::string error = walk.run(graph); !error.empty())
      return error;
    for (auto [argument, entry] : llvm::zip_equal(
             graph.getBody().front().getArguments(), graph.getInputs())) {
      // Positions of several axes are [axes, batch, tokens].
      const TensorFacts &f = analysis.facts(argument);
      const size_t batch =
          f.shape.size() == 3 &&
          onnx::getEntryName(entry).getValue() == "position_ids";
      if (f.shape.size() > 1 && f.shape[batch]->asInt() &&
          !f.shape[batch]->isInt(1))
        return "the model is for a batch of more than one";
    }
    return rewrite(graph, analysis, walk, result);
  }

  /// Whether the model has a KV cache of its own: inputs named past*, each with
  /// the output that is the next call's input.
  bool hasCache(onnx::GraphOp graph, ChunkReport &result) {
    auto ret = cast<onnx::ReturnOp>(graph.getBody().front().getTerminator());
    llvm::StringSet<> outputs;
    for (Attribute name : ret.getOutputNames())
      outputs.insert(onnx::getEntryName(name).getValue());
    bool any = false, all = true;
    for (Attribute name : graph.getInputs()) {
      StringRef text = onnx::getEntryName(name).getValue();
      if (!text.contains("past"))
        continue;
      any = true;
      StringRef rest = text;
      std::string present;
      if (rest.consume_front("past_key_values."))
        present = ("present." + rest).str();
      else if (rest.consume_front("input.past"))
        present = ("output.past" + rest).str();
      all &= outputs.contains(present);
      result.caches.push_back({text.str(), present});
    }
    if (!all)
      result.caches.clear();
    result.inPlace = false;
    return any;
  }

  /// The cache of an attention's K or V.
  struct Cache {
    Value past;
    std::string output; ///< its name
    int64_t place = -1; ///< among the outputs
  };

  std::string rewrite(onnx::GraphOp graph, SymbolicAnalysis &analysis,
                      PromptWalk &walk, ChunkReport &result) {
    Block &body = graph.getBody().front();
    OpBuilder builder(graph.getContext());
    SmallVector<AttentionOp> attentions;
    for (auto op : body.getOps<AttentionOp>())
      if (walk.attentions.contains(op))
        attentions.push_back(op);
    // Everything that can go wrong comes first.
    llvm::StringSet<> names;
    auto ret = cast<onnx::ReturnOp>(body.getTerminator());
    for (Attribute name : graph.getInputs())
      names.insert(onnx::getEntryName(name).getValue());
    for (Attribute name : ret.getOutputNames())
      names.insert(onnx::getEntryName(name).getValue());
    SmallVector<std::pair<Cache, Cache>> caches;
    for (AttentionOp op : attentions) {
      const size_t i = caches.size();
      auto find = [&](bool key) {
        Cache cache;
        for (auto [place, value] : llvm::enumerate(ret.getValues()))
          if (isCacheOf(analysis, value, op, key)) {
            cache.place = place;
            cache.output =
                onnx::getEntryName(ret.getOutputNames()[place]).str();
          }
        if (cache.place < 0)
          cache.output =
              ("present." + llvm::Twine(i) + (key ? ".key" : ".value")).str();
        return cache;
      };
      caches.push_back({find(true), find(false)});
    }
    auto pastName = [](StringRef output) {
      StringRef rest = output;
      return (rest.consume_front("present.") ? "past_key_values." + rest
                                             : "past." + output)
          .str();
    };
    for (auto &[key, value] : caches)
      for (Cache *cache : {&key, &value}) {
        std::string past = pastName(cache->output);
        if (names.contains(past) ||
            (cache->place < 0 && names.contains(cache->output)))
          return "the model has an input '" + past + "' or an output '" +
                 cache->output + "' of its own";
        result.caches.push_back({past, cache->output});
      }
    for (StringRef name : {"cache_slots", "prompt_parts"})
      if (names.contains(name))
        return ("the model has an input '" + name + "' already").str();
    // Also: what is known of a value is lost when the op before is replaced.
    SmallVector<Type> elements;
    for (AttentionOp op : attentions) {
      elements.push_back(analysis.facts(op.getQ()).elementType);
      if (!isa_and_nonnull<FloatType>(elements.back()))
        return "an attention's element type is not known";
    }

    Value starts = addIntInput(graph, "segment_starts", {ShapedType::kDynamic},
                               {"segments_and_one"});
    Value slots = addIntInput(graph, "cache_slots", {ShapedType::kDynamic, 2},
                              {"segments", ""});
    Value begins = slots;
    if (parts)
      begins = addIntInput(graph, "prompt_parts", {ShapedType::kDynamic, 2},
                           {"segments", ""});
    SmallVector<Attribute> inputs(graph.getInputs().begin(),
                                  graph.getInputs().end());
    SmallVector<Attribute> outputs(ret.getOutputNames().begin(),
                                   ret.getOutputNames().end());
    SmallVector<std::pair<int64_t, Value>> replaced;
    SmallVector<Value> added;
    for (auto [op, pair, element] :
         llvm::zip_equal(attentions, caches, elements)) {
      auto heads = static_cast<int64_t>(op.getKvHeads());
      Location loc = op.getLoc();
      Type elementType = element;
      auto add = [&](Cache &cache, int64_t width) {
        Type type =
            onnx::getTensorType({1, heads, ShapedType::kDynamic, width},
                                elementType, {"", "", "cache_rows", ""});
        cache.past = body.addArgument(type, loc);
        inputs.push_back(builder.getStringAttr(pastName(cache.output)));
        return type;
      };
      Type key = add(pair.first, op.getHeadDim());
      Type value = add(pair.second, op.getVHeadDim());
      AttentionOp cached = append(builder, op, starts, slots, pair.first.past,
                                  pair.second.past, key, value);
      for (auto [cache, present] :
           {std::pair(&pair.first, cached.getPresentK()),
            std::pair(&pair.second, cached.getPresentV())}) {
        Attribute name = builder.getStringAttr(cache->output);
        if (cache->place >= 0) {
          replaced.push_back({cache->place, present});
          outputs[cache->place] = name;
        } else {
          added.push_back(present);
          outputs.push_back(name);
        }
      }
      ++numAttentions;
    }
    graph.setInputsAttr(builder.getArrayAttr(inputs));
    for (auto [place, value] : replaced)
      ret.getValuesMutable().slice(place, 1).assign(value);
    ret.getValuesMutable().append(added);
    ret.setOutputNamesAttr(builder.getArrayAttr(outputs));
    for (Operation *range : walk.ranges)
      shiftPositions(range->getResult(0), starts, begins, parts ? 0 : 1);
    result.inPlace = true;
    return "";
  }

  /// `op` with a cache, in its place.
  AttentionOp append(OpBuilder &builder, AttentionOp op, Value starts,
                     Value slots, Value pastK, Value pastV, Type key,
                     Type value) {
    builder.setInsertionPoint(op);
    auto typeOf = [](Value result) {
      return result ? result.getType() : Type();
    };
    auto cached = AttentionOp::create(
        builder, op.getLoc(), op.getO().getType(), typeOf(op.getLse()),
        typeOf(op.getRotatedK()), key, value, /*token_score=*/Type(),
        /*token_peak=*/Type(), op.getQ(), op.getK(), op.getV(), Value(),
        Value(), Value(), op.getSinks(), Value(), Value(), Value(), op.getCos(),
        op.getSin(), op.getQPositions(), starts, pastK, pastV, slots,
        /*score_rows=*/Value(), /*context_slots=*/Value(),
        /*kept_rows=*/Value(), op.getQHeadsAttr(), op.getKvHeadsAttr(),
        op.getHeadDimAttr(), op.getVHeadDimAttr(), op.getScaleAttr(),
        op.getCausalAttr(), op.getWindowLeftAttr(), op.getWindowRightAttr(),
        op.getSoftcapAttr(), op.getAlignmentAttr(), op.getMaskedRowAttr(),
        op.getQLayoutAttr(), op.getKLayoutAttr(), op.getVLayoutAttr(),
        op.getOLayoutAttr(), op.getRotaryAttr(), op.getRotaryDimAttr(),
        /*context_temperature=*/FloatAttr(), /*context_scale=*/FloatAttr(),
        op.getLayerAttr(), op.getFormAttr());
    op.getO().replaceAllUsesWith(cached.getO());
    if (op.getLse())
      op.getLse().replaceAllUsesWith(cached.getLse());
    if (op.getRotatedK())
      op.getRotatedK().replaceAllUsesWith(cached.getRotatedK());
    op.erase();
    return cached;
  }

  /// Makes row numbers positions in the request that a row belongs to: column
  /// `column` of `begins` says where its first row of the call is.
  static void shiftPositions(Value row, Value starts, Value begins,
                             int64_t column) {
    OpBuilder builder(row.getContext());
    builder.setInsertionPointAfterValue(row);
    Location loc = row.getLoc();
    Type unknown = onnx::UnknownType::get(row.getContext());
    auto node = [&](StringRef op, ValueRange inputs,
                    ArrayRef<NamedAttribute> attributes = {}) {
      return onnx::NodeOp::create(builder, loc, op, "", inputs, unknown,
                                  attributes)
          .getResult(0);
    };
    auto ints = [&](ArrayRef<int64_t> values) {
      return onnx::createInts(builder, loc, values);
    };
    // The segment is the number of starts at or before the row, less one; the
    // end, which is the last start, is before none. [n + 1, rows] -> [rows].
    Value all = node("Reshape", {starts, ints({-1, 1})});
    Value begun = node("LessOrEqual", {all, row});
    Value number = node(
        "ReduceSum",
        {node("Cast", begun, {onnx::intAttr(builder, "to", 7)}), ints({0})},
        {onnx::intAttr(builder, "keepdims", 0)});
    Value segment = node("Sub", {number, ints({1})});
    Value first = node("Slice", {starts, ints({0}), ints({-1})});
    Value begin = node(
        "Reshape",
        {node("Slice", {begins, ints({column}), ints({column + 1}), ints({1})}),
         ints({-1})});
    Value shift = node("Gather", {node("Sub", {begin, first}), segment},
                       {onnx::intAttr(builder, "axis", 0)});
    Value position = node("Add", {row, shift});
    position.setType(row.getType());
    SmallPtrSet<Operation *, 2> readers = {begun.getDefiningOp(),
                                           position.getDefiningOp()};
    row.replaceAllUsesExcept(position, readers);
  }
};
} // namespace

std::unique_ptr<Pass> prefill::createChunkPrompt(ChunkPromptOptions options,
                                                 ChunkReport &report) {
  return std::make_unique<ChunkPromptPass>(options, &report);
}
