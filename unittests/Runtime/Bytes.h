//===- Bytes.h - Queries and keys in signed bytes, again --------*- C++ -*-===//
//
// The integers of quantize.c from its description, for tests of the estimators
// that are made of them: float32 where that decides on a rounding, else double.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_BYTES_H
#define PREFILL_UNITTESTS_RUNTIME_BYTES_H

#include "Reference.h"
#include <algorithm>

namespace ref {

/// Keys of one KV head less their mean, hidden ones zero, with a scale a block.
template <class P>
struct QuantizedKeys {
  std::vector<std::vector<int64_t>> keys;
  std::vector<double> scale; // of blocks

  QuantizedKeys(P &p, int64_t b, int64_t h, int limit) {
    const int d = p.desc.head_dim;
    const int64_t bk = p.desc.block_k;
    const int64_t kh = h / (p.hq / p.hk), n = p.kvLen(b);
    std::vector<float> mean(size_t(d), 0.0f);
    float count = 0;
    auto seen = [&](int64_t j) {
      return j < n && (p.in[PREFILL_IN_KEY_MASK].absent ||
                       p.integer(PREFILL_IN_KEY_MASK, {b, j}));
    };
    if (!(p.softcap > 0))
      for (int64_t j = 0; j < n; ++j)
        if (seen(j)) {
          ++count;
          for (int c = 0; c < d; ++c)
            mean[size_t(c)] += static_cast<float>(widen(p.k(b, kh, j, c)));
        }
    for (float &x : mean)
      x *= count > 0 ? 1 / count : 0;
    keys.assign(size_t(p.t), std::vector<int64_t>(size_t(d)));
    for (int64_t begin = 0; begin < p.t; begin += bk) {
      auto value = [&](int64_t j, int c) {
        return static_cast<float>(widen(p.k(b, kh, j, c))) - mean[size_t(c)];
      };
      float most = 0;
      const int64_t end = std::min(begin + bk, p.t);
      for (int64_t j = begin; j < end; ++j)
        for (int c = 0; c < d; ++c)
          if (seen(j))
            most = std::max(most, std::fabs(value(j, c)));
      scale.push_back(most / static_cast<float>(limit));
      for (int64_t j = begin; j < end; ++j)
        for (int c = 0; c < d; ++c)
          keys[size_t(j)][size_t(c)] =
              seen(j) ? std::llrint(
                            value(j, c) *
                            (most > 0 ? static_cast<float>(limit) / most : 0))
                      : 0;
    }
  }
};

/// Integers of a row; `step` is the size of 1.
inline std::vector<int64_t> quantizedRow(const std::vector<float> &row,
                                         int limit, double &step) {
  float most = 0;
  for (float x : row)
    most = std::max(most, std::fabs(x));
  step = most / limit;
  std::vector<int64_t> out;
  for (float x : row)
    out.push_back(most > 0 ? std::llrint(x * (static_cast<float>(limit) / most))
                           : 0);
  return out;
}

} // namespace ref

#endif
