//===- Sampled.h - The attention of every stride-th row -------*- C++ -*-===//
//
// What `sampled` says is the mass of each block, in float64.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_SAMPLED_H
#define PREFILL_UNITTESTS_RUNTIME_SAMPLED_H

#include "Mass.h"

namespace ref {

/// Multiplies a row's mass of each block by |o - u|: u is the mean
/// value of the block, o what all of them add up to.
template <class P>
void weigh(P &p, int64_t b, int64_t h, std::vector<double> &mass) {
  using Of = BlocksOf<P>;
  const int64_t width = p.out[PREFILL_OUT_O].shape.back();
  std::vector<std::vector<double>> mean(
      mass.size(), std::vector<double>(static_cast<size_t>(width)));
  std::vector<double> output(static_cast<size_t>(width));
  for (size_t block = 0; block < mass.size(); ++block) {
    double count = 0;
    const int64_t first = static_cast<int64_t>(block) * Of::keys;
    for (int64_t j = first; j < std::min(p.t, first + Of::keys); ++j)
      count += unmasked(p, b, j);
    for (int64_t c = 0; c < width; ++c) {
      double &u = mean[block][static_cast<size_t>(c)];
      for (int64_t j = first; j < std::min(p.t, first + Of::keys); ++j)
        if (unmasked(p, b, j))
          u += widen(p.v(b, h / (p.hq / p.hk), j, c)) / count;
      output[static_cast<size_t>(c)] += mass[block] * u;
    }
  }
  double norm = 0;
  for (double o : output)
    norm += o * o;
  for (size_t block = 0; block < mass.size(); ++block) {
    double far = 0, square = 0;
    for (size_t c = 0; c < output.size(); ++c) {
      const double u = mean[block][c];
      far += (output[c] - u) * (output[c] - u);
      square += u * u;
    }
    mass[block] *= std::max(std::sqrt(far), std::sqrt(norm + square) / 32);
  }
}

/// The attention of the rows of a tile that are looked at, by block; empty when
/// they see nothing.
template <class P>
std::vector<double> sampledMass(P &p, int64_t b, int64_t h, int64_t tile,
                                const prefill_head_plan &plan) {
  using Of = BlocksOf<P>;
  std::vector<double> mass;
  const int64_t end = std::min(p.s, (tile + 1) * Of::rows);
  for (int64_t i = tile * Of::rows; i < end; ++i) {
    if ((i + 1) % plan.stride && i != p.s - 1)
      continue;
    const std::vector<double> row = probabilities(p, b, h, i);
    std::vector<double> part((row.size() + Of::keys - 1) / Of::keys);
    for (size_t j = 0; j < row.size(); ++j)
      part[j / Of::keys] += row[j];
    if (plan.values)
      weigh(p, b, h, part);
    mass.resize(std::max(mass.size(), part.size()));
    for (size_t block = 0; block < part.size(); ++block)
      mass[block] += part[block];
  }
  return mass;
}

} // namespace ref

#endif
