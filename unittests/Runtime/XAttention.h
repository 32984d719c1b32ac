//===- XAttention.h - Sums along antidiagonals, key by key -----*- C++ -*-===//
//
// XAttention's masses of blocks from the same integers (Bytes.h), with products
// in int64 and softmaxes in float64.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_XATTENTION_H
#define PREFILL_UNITTESTS_RUNTIME_XATTENTION_H

#include "Bytes.h"
#include "Mass.h"
#include <numeric>

namespace ref {

/// What XAttention's estimate says is the mass of each block for a tile.
template <class P>
std::vector<double> stridedMass(P &p, int64_t b, int64_t h, int64_t tile) {
  using Of = BlocksOf<P>;
  const int64_t T = p.heads[size_t(h)].stride, d = Of::dim;
  const QuantizedKeys<P> bytes(p, b, h, 127);
  std::vector<double> mass(bytes.scale.size());
  const int64_t begin = tile * Of::rows, end = std::min(p.s, begin + Of::rows);
  for (int64_t first = begin; first < end; first += T) {
    std::vector<float> row(size_t(T * d));
    for (int64_t i = first; i < std::min(first + T, p.s); ++i)
      for (int64_t c = 0; c < d; ++c)
        row[size_t((T - 1 - (i - first)) * d + c)] =
            static_cast<float>(widen(p.q(b, h, i, c)));
    double step;
    const std::vector<int64_t> q = quantizedRow(row, 127, step);
    // From the first to the last position of the strided row.
    const int64_t low = p.position(b, first), high = low + T - 1;
    std::vector<double> x(size_t((p.t + T - 1) / T), MinusInf);
    for (size_t j = 0; j < x.size(); ++j) {
      const int64_t key = int64_t(j) * T;
      bool any = false;
      int64_t dot = 0;
      for (int64_t k = key; k < std::min(key + T, p.t); ++k) {
        any |= unmasked(p, b, k);
        dot += std::inner_product(bytes.keys[size_t(k)].begin(),
                                  bytes.keys[size_t(k)].end(),
                                  q.begin() + (k - key) * d, int64_t{0});
      }
      if (any && key <= high && key + T - 1 >= low - p.windowLeft)
        x[j] = static_cast<double>(dot) * step *
               bytes.scale[size_t(key / Of::keys)] /
               (double(T) * std::sqrt(double(d)));
    }
    const double most = *std::max_element(x.begin(), x.end());
    double total = 0;
    for (double &value : x)
      total += value = value > MinusInf ? std::exp(value - most) : 0;
    for (size_t j = 0; j < x.size() && total > 0; ++j)
      mass[j * size_t(T) / size_t(Of::keys)] += x[j] / total;
  }
  return mass;
}

} // namespace ref

#endif
