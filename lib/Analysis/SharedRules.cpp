//===- SharedRules.cpp - What shape and element rules share ---------------===//

#include "Rules.h"

#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace prefill;
using Kind = Expr::Kind;

std::optional<SmallVector<int64_t>>
prefill::axesOf(SymbolicAnalysis &analysis, onnx::NodeOp node, unsigned input) {
  if (auto attr = node.getInts("axes"))
    return SmallVector<int64_t>(*attr);
  if (Value axes = node.getInput(input))
    return analysis.constantInts(axes);
  return SmallVector<int64_t>();
}

std::optional<SmallVector<SliceAxis>>
prefill::sliceAxes(SymbolicAnalysis &analysis, onnx::NodeOp node) {
  ExprContext &ctx = analysis.expressions();
  const TensorFacts f = analysis.facts(node.getInput(0));
  if (!f.ranked)
    return std::nullopt;
  SmallVector<ExprRef> starts, ends;
  SmallVector<int64_t> axes, steps;
  if (auto attr = node.getInts("starts")) {
    auto last = node.getInts("ends");
    if (!last)
      return std::nullopt;
    for (int64_t v : *attr)
      starts.push_back(ctx.getInt(v));
    for (int64_t v : *last)
      ends.push_back(ctx.getInt(v));
    if (auto given = node.getInts("axes"))
      axes.assign(given->begin(), given->end());
  } else {
    auto s = analysis.elements(node.getInput(1));
    auto e = analysis.elements(node.getInput(2));
    if (!s || !e)
      return std::nullopt;
    starts = *s;
    ends = *e;
    if (Value value = node.getInput(3)) {
      auto given = analysis.constantInts(value);
      if (!given)
        return std::nullopt;
      axes = *given;
    }
    if (Value value = node.getInput(4)) {
      auto given = analysis.constantInts(value);
      if (!given)
        return std::nullopt;
      steps = *given;
    }
  }
  if (axes.empty())
    for (size_t axis = 0; axis < starts.size(); ++axis)
      axes.push_back(axis);
  if (steps.empty())
    steps.assign(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size() ||
      steps.size() != starts.size())
    return std::nullopt;
  SmallVector<SliceAxis> result;
  for (size_t k = 0; k < starts.size(); ++k) {
    auto axis = normalizeAxis(axes[k], f.shape.size());
    if (!axis || steps[k] == 0 ||
        llvm::any_of(result, [&](SliceAxis &s) { return s.axis == *axis; }))
      return std::nullopt;
    ExprRef size = f.shape[*axis];
    int64_t step = steps[k];
    // Counts from the end where negative; null where the sign is not known.
    auto place = [&](ExprRef e) -> ExprRef {
      // INT64_MIN stands for "from the start"; it would overflow below.
      if (e->is(Kind::Int) && e->integer < INT32_MIN)
        return ctx.getInt(0);
      if (ctx.proveNonNegative(e))
        return e;
      if (!ctx.proveNonNegative(ctx.sub(ctx.getInt(-1), e)))
        return nullptr;
      ExprRef fromEnd = ctx.add(size, e);
      return ctx.max(fromEnd, ctx.getInt(0));
    };
    SliceAxis s;
    s.axis = *axis;
    s.step = step;
    if (step > 0) {
      // An element exists only where start is inside, so that start itself
      // needs no clipping; the length does.
      s.start = place(starts[k]);
      ExprRef end = ends[k]->is(Kind::Int) && ends[k]->integer >= INT32_MAX
                        ? size
                        : place(ends[k]);
      if (end && s.start) {
        end = ctx.min(end, size);
        ExprRef length = ctx.sub(end, s.start);
        if (step != 1)
          length = ctx.floorDiv(ctx.add(length, ctx.getInt(step - 1)),
                                ctx.getInt(step));
        // The last c of them: end - max(0, end - c) is min(end, c).
        if (step == 1 && s.start->is(Expr::Kind::Max)) {
          ExprRef one = ctx.sub(end, s.start->operands[0]),
                  other = ctx.sub(end, s.start->operands[1]);
          if (ctx.proveNonNegative(one) && ctx.proveNonNegative(other))
            s.length = ctx.min(one, other);
        }
        if (s.length)
          ;
        else if (ctx.proveNonNegative(ctx.sub(end, s.start)))
          s.length = length;
        else if (step == 1)
          s.length = ctx.max(length, ctx.getInt(0));
      }
    } else if (starts[k]->isInt(-1) ||
               (starts[k]->is(Kind::Int) && starts[k]->integer >= INT32_MAX)) {
      s.start = ctx.sub(size, ctx.getInt(1));
      if (step == -1 && ends[k]->is(Kind::Int) && ends[k]->integer <= INT32_MIN)
        s.length = size;
    }
    result.push_back(s);
  }
  return result;
}

std::optional<SmallVector<PadAxis>> prefill::padAxes(SymbolicAnalysis &analysis,
                                                     onnx::NodeOp node) {
  ExprContext &ctx = analysis.expressions();
  const TensorFacts f = analysis.facts(node.getInput(0));
  if (!f.ranked)
    return std::nullopt;
  int64_t rank = f.shape.size();
  SmallVector<ExprRef> pads;
  if (auto attr = node.getInts("pads")) {
    for (int64_t v : *attr)
      pads.push_back(ctx.getInt(v));
  } else if (auto given = analysis.elements(node.getInput(1))) {
    pads = *given;
  } else {
    return std::nullopt;
  }
  SmallVector<int64_t> axes;
  if (Value value = node.getInput(3)) {
    auto given = analysis.constantInts(value);
    if (!given)
      return std::nullopt;
    axes = *given;
  } else {
    for (int64_t axis = 0; axis < rank; ++axis)
      axes.push_back(axis);
  }
  if (pads.size() != 2 * axes.size())
    return std::nullopt;
  SmallVector<PadAxis> result(rank, {ctx.getInt(0), ctx.getInt(0)});
  for (size_t k = 0; k < axes.size(); ++k) {
    auto axis = normalizeAxis(axes[k], rank);
    if (!axis)
      return std::nullopt;
    result[*axis] = {ctx.resolve(pads[k]), ctx.resolve(pads[k + axes.size()])};
  }
  return result;
}

std::optional<SmallVector<std::pair<ExprRef, ExprRef>>>
prefill::splitParts(SymbolicAnalysis &analysis, onnx::NodeOp node) {
  ExprContext &ctx = analysis.expressions();
  ExprRef size = analysis.dim(node.getInput(0), node.getInt("axis", 0));
  if (!size)
    return std::nullopt;
  SmallVector<ExprRef> lengths;
  int64_t count = node.getNumResults();
  if (auto attr = node.getInts("split")) {
    for (int64_t v : *attr)
      lengths.push_back(ctx.getInt(v));
  } else if (Value value = node.getInput(1)) {
    auto given = analysis.elements(value);
    if (!given)
      return std::nullopt;
    lengths = *given;
  } else if (ExprRef part = ctx.exactDiv(size, ctx.getInt(count))) {
    lengths.assign(count, part);
  } else if (auto known = size->asInt()) {
    // num_outputs that does not divide: the last part is smaller.
    int64_t part = (*known + count - 1) / count;
    for (int64_t k = 0; k < count; ++k)
      lengths.push_back(ctx.getInt(std::min(part, *known - part * k)));
  }
  if (static_cast<int64_t>(lengths.size()) != count)
    return std::nullopt;
  SmallVector<std::pair<ExprRef, ExprRef>> parts;
  ExprRef offset = ctx.getInt(0);
  for (ExprRef length : lengths) {
    if (!ctx.proveNonNegative(length))
      return std::nullopt;
    parts.push_back({offset, length});
    offset = ctx.add(offset, length);
  }
  return parts;
}

std::optional<std::string> prefill::plainEquation(SymbolicAnalysis &analysis,
                                                  onnx::NodeOp node) {
  std::string text;
  for (char c : node.getString("equation", ""))
    if (c != ' ')
      text += c;
  auto [left, right] = StringRef(text).split("->");
  if (!StringRef(text).contains("->"))
    return std::nullopt;
  SmallVector<StringRef> terms;
  left.split(terms, ',');
  if (terms.size() != node.getInputs().size())
    return std::nullopt;
  // How many axes "..." stands for: as many in each term that has it.
  std::optional<size_t> count;
  for (auto [i, term] : llvm::enumerate(terms)) {
    if (!term.contains("..."))
      continue;
    const TensorFacts &f = analysis.facts(node.getInput(i));
    size_t letters = term.size() - 3;
    if (!f.ranked || f.shape.size() < letters ||
        (count && *count != f.shape.size() - letters))
      return std::nullopt;
    count = f.shape.size() - letters;
  }
  std::string names;
  for (char c = 'A'; c <= 'Z' && names.size() < count.value_or(0); ++c)
    if (text.find(c) == std::string::npos)
      names += c;
  if (names.size() != count.value_or(0))
    return std::nullopt;
  for (size_t at; (at = text.find("...")) != std::string::npos;)
    text.replace(at, 3, names);
  if (text.find('.') != std::string::npos)
    return std::nullopt;
  return text;
}
