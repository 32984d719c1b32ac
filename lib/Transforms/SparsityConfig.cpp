//===- SparsityConfig.cpp - A choice per layer and head -------------------===//

#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/ADT/STLExtras.h"

using namespace prefill;

bool SparsityConfig::fit(llvm::ArrayRef<LayerShape> shapes,
                         std::string &error) {
  const auto count = static_cast<int64_t>(shapes.size());
  auto text = [](int64_t number) { return std::to_string(number); };
  if (isLayered()) {
    layers.assign(count, Layer());
    const int64_t third = count / 3;
    for (int64_t i = 0; i < count; ++i)
      layers[i].dense =
          i < denseLayers || (denseMiddle && i >= third && i < count - third);
  }
  if (!layers.empty() && static_cast<int64_t>(layers.size()) != count) {
    error = "the file describes " + text(layers.size()) +
            " layers, the model has " + text(count) + " raised attentions";
    return false;
  }
  for (auto [index, layer] : llvm::enumerate(layers)) {
    const LayerShape &shape = shapes[index];
    const std::string where = "layer " + text(index);
    auto differs = [&](int64_t expected, int64_t known, const char *what) {
      if (expected < 0 || expected == known)
        return false;
      error = where + " has " + text(expected) + " " + what +
              " in the file, the model has " + text(known);
      return true;
    };
    if (differs(layer.queryHeads, shape.queryHeads, "query heads") ||
        differs(layer.kvHeads, shape.kvHeads, "KV heads"))
      return false;
    if (!layer.heads.empty() &&
        layer.heads.rbegin()->first >= shape.queryHeads) {
      error = where + " names query head " + text(layer.heads.rbegin()->first) +
              ", the model has " + text(shape.queryHeads);
      return false;
    }
    const int64_t group = shape.queryHeads / shape.kvHeads;
    for (const auto &[kvHead, plan] : layer.groups)
      for (int64_t head = kvHead * group; head < (kvHead + 1) * group; ++head)
        layer.heads.try_emplace(head, plan);
  }
  return true;
}

const HeadPlan &SparsityConfig::plan(int64_t layer, int64_t head) const {
  static const HeadPlan dense;
  if (layer >= static_cast<int64_t>(layers.size()))
    return fallback;
  const Layer &entry = layers[layer];
  if (entry.dense)
    return dense;
  auto it = entry.heads.find(head);
  return it == entry.heads.end() ? fallback : it->second;
}
