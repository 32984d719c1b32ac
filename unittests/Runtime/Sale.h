//===- Sale.h - SALE's choice of blocks, key by key -------------*- C++ -*-===//
//
// An estimate that quantises the same numbers and then goes key by key in int64
// and float64; without values.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_SALE_H
#define PREFILL_UNITTESTS_RUNTIME_SALE_H

#include "Bytes.h"
#include <numeric>

namespace ref {

/// What SALE keeps of one head, [tile][block]. `doubt` blocks are too near to
/// the bound to say.
template <class P>
struct ExpectedSale {
  P &p;
  int64_t b, h, bq, bk;
  const prefill_head_plan &plan;
  int limit, d;
  QuantizedKeys<P> bytes;
  enum Verdict { Hidden, Dropped, Kept, Doubt };

  ExpectedSale(P &problem, int64_t batch, int64_t head)
      : p(problem), b(batch), h(head), bq(p.desc.block_q), bk(p.desc.block_k),
        plan(p.heads[size_t(head)]), limit(plan.bits == 4 ? 7 : 127),
        d(p.desc.head_dim), bytes(problem, batch, head, limit) {}

  /// Scores of query row i, -inf where it does not see the key.
  std::vector<double> scores(int64_t i) {
    std::vector<float> row;
    for (int c = 0; c < d; ++c)
      row.push_back(static_cast<float>(widen(p.q(b, h, i, c))));
    double step;
    const std::vector<int64_t> q = quantizedRow(row, limit, step);
    std::vector<double> out;
    for (int64_t j = 0; j < p.t; ++j) {
      const std::vector<int64_t> &k = bytes.keys[size_t(j)];
      const int64_t dot =
          std::inner_product(q.begin(), q.end(), k.begin(), int64_t{0});
      double s = static_cast<double>(dot) * step * bytes.scale[size_t(j / bk)] /
                 std::sqrt(double(d));
      if (p.softcap > 0)
        s = p.softcap * std::tanh(s / p.softcap);
      out.push_back(p.visible(b, i, j) ? s : MinusInf);
    }
    return out;
  }

  std::vector<Verdict> tile(int64_t tile) {
    const int64_t blocks = (p.t + bk - 1) / bk,
                  stride = std::max(plan.stride, 1);
    const int64_t begin = tile * bq, end = std::min(begin + bq, p.s);
    std::vector<Verdict> result(size_t(blocks), Hidden);
    std::vector<double> mass(size_t(blocks), 0.0);
    const int64_t first = p.position(b, begin);
    auto forced = [&](int64_t block) {
      return block * bk < plan.init ||
             (block + 1) * bk > first - std::max(plan.local - 1, 0);
    };
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < p.t; ++j)
        if (p.visible(b, i, j))
          result[size_t(j / bk)] = forced(j / bk) ? Kept : Dropped;
    for (int64_t run = begin; run < end; run += stride) {
      const int64_t i = std::min(run + stride, end) - 1;
      const std::vector<double> s = scores(i);
      double m = MinusInf, l = 0;
      auto counts = [&](int64_t j) {
        return plan.top_p > 0 || j < plan.init ||
               j > p.position(b, i) - plan.local;
      };
      for (int64_t j = 0; j < p.t; ++j)
        if (counts(j))
          m = std::max(m, s[size_t(j)]);
      if (m > MinusInf)
        for (int64_t j = 0; j < p.t; ++j)
          if (counts(j))
            l += std::exp(s[size_t(j)] - m);
      for (int64_t j = 0; j < p.t; ++j) {
        if (s[size_t(j)] == MinusInf)
          continue;
        if (plan.top_p > 0) {
          mass[size_t(j / bk)] += std::exp(s[size_t(j)] - m) / l;
          continue;
        }
        Verdict &verdict = result[size_t(j / bk)];
        const double over =
            l > 0 ? s[size_t(j)] - m - std::log(double(plan.threshold) * l)
                  : INFINITY;
        if (verdict == Dropped && over > -1e-4)
          verdict = Doubt;
        if (verdict == Doubt && over > 1e-4)
          verdict = Kept;
      }
    }
    if (plan.top_p > 0) {
      double total = 0, used = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        total += mass[size_t(block)];
        used += result[size_t(block)] == Kept ? mass[size_t(block)] : 0;
      }
      for (;;) {
        int64_t next = -1;
        for (int64_t block = 0; block < blocks; ++block)
          if (result[size_t(block)] == Dropped &&
              (next < 0 || mass[size_t(block)] > mass[size_t(next)]))
            next = block;
        if (next < 0 || used >= (double(plan.top_p) + 3e-4) * total)
          break;
        result[size_t(next)] =
            used < (double(plan.top_p) - 3e-4) * total ? Kept : Doubt;
        used += mass[size_t(next)];
      }
    }
    return result;
  }
};

} // namespace ref

#endif
