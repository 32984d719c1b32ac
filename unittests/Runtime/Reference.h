//===- Reference.h - A tile function and an attention to compare with -*- C++
//-*-=//
//
// `referenceTile` stands in for generated code: it obeys kernel_abi.h to the
// letter, in float64, one key at a time, and trusts the runtime where the
// contract lets it (full blocks are not masked), so that a wrong list gives a
// wrong result. `Problem` holds the tensors of one call and computes the whole
// attention without tiles.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_RUNTIME_REFERENCE_H
#define PREFILL_UNITTESTS_RUNTIME_REFERENCE_H

#include "prefill/kernel_abi.h"
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace ref {

constexpr double MinusInf = -std::numeric_limits<double>::infinity();
constexpr int64_t Unbounded = INT64_MAX / 4;

// Element types. bfloat16 has no type of its own in C++17.
struct bf16 {
  uint16_t bits;
};
inline double widen(float x) { return x; }
inline double widen(_Float16 x) { return static_cast<double>(x); }
inline double widen(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline void narrow(double x, float &out) { out = static_cast<float>(x); }
inline void narrow(double x, _Float16 &out) { out = static_cast<_Float16>(x); }
inline void narrow(double x, bf16 &out) {
  float f = static_cast<float>(x);
  uint32_t bits;
  memcpy(&bits, &f, 4);
  out.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <class T>
constexpr int dtypeOf() {
  return sizeof(T) == 4                     ? PREFILL_F32
         : std::is_same<T, _Float16>::value ? PREFILL_F16
                                            : PREFILL_BF16;
}

/// What tile functions saw: per output row, the keys visited, and breaches of
/// the contract. Off unless a test turns it on.
struct Spy {
  std::atomic<bool> on{false};
  std::mutex mutex;
  std::map<const void *, std::multiset<int64_t>> visited; ///< by row of O
  std::atomic<int> violations{0};
  std::atomic<int> calls{0};
  void reset(bool enable) {
    on = enable;
    visited.clear();
    violations = 0;
    calls = 0;
  }
};
inline Spy &spy() {
  static Spy instance;
  return instance;
}

template <int D, int E, int BQ, int BK, class T, unsigned F>
void referenceTile(const prefill_tile_args *a) {
  ++spy().calls;
  auto require = [](bool ok) {
    if (!ok)
      ++spy().violations;
  };
  require(a->rows >= 1 && a->rows <= BQ);
  require(reinterpret_cast<uintptr_t>(a->workspace) % 64 == 0);
  require(a->full_count >= 0 && a->full_count <= a->block_count);
  for (int64_t n = 1; n < a->block_count; ++n)
    if (n != a->full_count)
      require(a->blocks[n] > a->blocks[n - 1]);
  const T *q = static_cast<const T *>(a->q);
  const T *k = static_cast<const T *>(a->k), *v = static_cast<const T *>(a->v);
  const T *ck = static_cast<const T *>(a->col_k);
  const T *cv = static_cast<const T *>(a->col_v);
  memset(a->workspace, 0x5a, 64);
  for (int64_t i = 0; i < a->rows; ++i) {
    struct Key {
      double logit;
      const T *value;
    };
    std::vector<Key> keys;
    std::multiset<int64_t> seen;
    const int64_t p = a->position + i;
    auto visit = [&](const T *kr, const T *vr, int64_t j, bool full, bool col) {
      double s = 0;
      for (int c = 0; c < D; ++c)
        s += widen(q[i * a->q_stride + c]) * widen(kr[c]);
      s *= a->scale;
      if (F & PREFILL_TILE_SOFTCAP)
        s = a->softcap * std::tanh(s / a->softcap);
      bool visible = true;
      if (!full) {
        if (F & PREFILL_TILE_CAUSAL)
          visible &= j <= p + a->window_right;
        if (F & PREFILL_TILE_WINDOW)
          visible &= j >= p - a->window_left;
        if (!col && F & PREFILL_TILE_KEY_MASK)
          visible &= a->key_mask[j] != 0;
        if (!col && F & PREFILL_TILE_SEGMENTS)
          visible &= a->q_segment[i] == a->k_segment[j];
        if (!col && F & PREFILL_TILE_BIAS) {
          s += a->bias[i * a->bias_row_stride + j * a->bias_key_stride];
          visible &= s >= -3e38;
        }
      }
      if (visible && s != MinusInf) {
        keys.push_back({s, vr});
        seen.insert(j);
      }
    };
    for (int64_t n = 0; n < a->block_count; ++n) {
      int64_t begin = static_cast<int64_t>(a->blocks[n]) * BK;
      require(begin < a->kv_len);
      require(n >= a->full_count || begin + BK <= a->kv_len);
      for (int64_t j = begin; j < begin + BK && j < a->kv_len; ++j)
        visit(k + j * a->k_stride, v + j * a->v_stride, j, n < a->full_count,
              false);
    }
    for (int64_t n = 0; n < a->col_count; ++n)
      if (a->col_pos[n] != INT32_MAX) {
        require(a->col_pos[n] >= 0 && a->col_pos[n] < a->kv_len);
        visit(ck + n * D, cv + n * E, a->col_pos[n], false, true);
      }
    for (int64_t n = a->col_count; n % BK; ++n)
      require(a->col_pos[n] == INT32_MAX && std::isfinite(widen(ck[n * D])) &&
              std::isfinite(widen(cv[n * E])));
    double m = MinusInf, l = 0;
    if (F & PREFILL_TILE_SINK)
      m = a->sink;
    for (const Key &key : keys)
      m = std::max(m, key.logit);
    std::vector<double> o(E);
    if (F & PREFILL_TILE_SINK && a->sink != MinusInf)
      l += std::exp(a->sink - m);
    for (const Key &key : keys) {
      double w = std::exp(key.logit - m);
      l += w;
      for (int c = 0; c < E; ++c)
        o[c] += w * widen(key.value[c]);
    }
    T *out = static_cast<T *>(a->o) + i * a->o_stride;
    for (int c = 0; c < E; ++c)
      narrow(l > 0 ? o[c] / l : 0, out[c]);
    if (a->lse)
      a->lse[i] = static_cast<float>(l > 0 ? m + std::log(l) : MinusInf);
    if (spy().on) {
      std::lock_guard<std::mutex> lock(spy().mutex);
      spy().visited[out].insert(seen.begin(), seen.end());
    }
  }
}

/// A deterministic source of numbers.
struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  double normal() { return std::normal_distribution<double>()(engine); }
  int64_t below(int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(engine);
  }
};

/// Owns the memory of a DLTensor, whose rows may be longer than needed.
struct Tensor {
  std::vector<int64_t> shape, strides;
  std::vector<char> bytes;
  DLTensor dl{};
  bool absent = true;

  Tensor() = default;
  Tensor(const Tensor &) = delete;
  Tensor &operator=(const Tensor &) = delete;

  /// pad: extra elements after each row of the last dimension (then strides are
  /// given), lead: bytes before the data (byte_offset).
  void make(std::vector<int64_t> dims, uint8_t code, uint8_t bits,
            int64_t pad = 0, int64_t lead = 0) {
    shape = std::move(dims);
    strides.assign(shape.size(), 1);
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = step;
      step *= shape[i] + (i + 1 == shape.size() ? pad : 0);
    }
    bytes.assign(static_cast<size_t>(lead + (step + 1) * bits / 8), 0x7f);
    dl.data = bytes.data();
    dl.device = {kDLCPU, 0};
    dl.ndim = static_cast<int32_t>(shape.size());
    dl.dtype = {code, bits, 1};
    dl.shape = shape.data();
    dl.strides = pad ? strides.data() : nullptr;
    dl.byte_offset = static_cast<uint64_t>(lead);
    absent = false;
  }
  template <class T>
  T *data() {
    return reinterpret_cast<T *>(bytes.data() + dl.byte_offset);
  }
  template <class T>
  T &at(std::vector<int64_t> index) {
    int64_t offset = 0;
    for (size_t i = 0; i < index.size(); ++i)
      offset += index[i] * strides[i];
    return data<T>()[offset];
  }
  DLTensor *get() { return absent ? nullptr : &dl; }
};

/// One call: shapes, options, tensors, the kernel's description and the
/// expected result.
template <int D, int E, int BQ, int BK, class T, unsigned F>
struct Problem {
  int64_t b = 1, hq = 4, hk = 2, s = 40, t = 40;
  int qLayout = PREFILL_BHSD, kLayout = PREFILL_BHSD, vLayout = PREFILL_BHSD,
      oLayout = PREFILL_BHSD;
  bool flat = false; ///< 3-D Q, K, V, O
  int64_t pad = 0;   ///< extra elements per row
  int64_t windowLeft = Unbounded,
          windowRight = F & PREFILL_TILE_CAUSAL ? 0 : Unbounded;
  float softcap = F & PREFILL_TILE_SOFTCAP ? 2.0f : 0.0f;
  int maskedRow = PREFILL_MASKED_ZERO, alignment = PREFILL_ALIGN_END;
  int rotary = 0, rotaryDim = 0;
  double spread = 1; ///< standard deviation of Q

  Tensor in[PREFILL_IN_COUNT], out[PREFILL_OUT_COUNT];
  prefill_tile_variant variant{};
  prefill_attention_desc desc{};
  std::vector<prefill_head_plan> heads;
  prefill_plan plan{};
  prefill_context context{};

  static uint8_t code() {
    return dtypeOf<T>() == PREFILL_BF16 ? kDLBfloat : kDLFloat;
  }
  static uint8_t bits() { return sizeof(T) * 8; }

  void makeRows(Tensor &x, int layout, int64_t h, int64_t rows, int64_t w) {
    if (flat)
      x.make({b, rows, h * w}, code(), bits(), pad, pad * 4);
    else if (layout == PREFILL_BSHD)
      x.make({b, rows, h, w}, code(), bits(), pad, pad * 4);
    else
      x.make({b, h, rows, w}, code(), bits(), pad, pad * 4);
  }
  T &row(Tensor &x, int layout, int64_t bi, int64_t h, int64_t i, int64_t c,
         int64_t w) {
    if (flat)
      return x.template at<T>({bi, i, h * w + c});
    return layout == PREFILL_BSHD ? x.template at<T>({bi, i, h, c})
                                  : x.template at<T>({bi, h, i, c});
  }
  T &q(int64_t bi, int64_t h, int64_t i, int64_t c) {
    return row(in[PREFILL_IN_Q], qLayout, bi, h, i, c, D);
  }
  T &k(int64_t bi, int64_t h, int64_t j, int64_t c) {
    return row(in[PREFILL_IN_K], kLayout, bi, h, j, c, D);
  }
  T &v(int64_t bi, int64_t h, int64_t j, int64_t c) {
    return row(in[PREFILL_IN_V], vLayout, bi, h, j, c, E);
  }
  T &o(int64_t bi, int64_t h, int64_t i, int64_t c) {
    return row(out[PREFILL_OUT_O], oLayout, bi, h, i, c, E);
  }

  /// Makes Q, K, V, O and the description; other inputs are the test's.
  void build(uint64_t seed = 1) {
    Random random(seed);
    if (flat)
      qLayout = kLayout = vLayout = oLayout = PREFILL_BSHD;
    makeRows(in[PREFILL_IN_Q], qLayout, hq, s, D);
    makeRows(in[PREFILL_IN_K], kLayout, hk, t, D);
    makeRows(in[PREFILL_IN_V], vLayout, hk, t, E);
    makeRows(out[PREFILL_OUT_O], oLayout, hq, s, E);
    for (int64_t bi = 0; bi < b; ++bi) {
      for (int64_t h = 0; h < hq; ++h)
        for (int64_t i = 0; i < s; ++i)
          for (int c = 0; c < D; ++c)
            narrow(random.normal() * spread, q(bi, h, i, c));
      for (int64_t h = 0; h < hk; ++h)
        for (int64_t j = 0; j < t; ++j) {
          for (int c = 0; c < D; ++c)
            narrow(random.normal(), k(bi, h, j, c));
          for (int c = 0; c < E; ++c)
            narrow(random.normal(), v(bi, h, j, c));
        }
    }
    variant = {PREFILL_ISA_X86_64_V2, 16, 64, referenceTile<D, E, BQ, BK, T, F>,
               nullptr};
    desc = {};
    desc.abi = PREFILL_KERNEL_ABI;
    desc.features = F;
    desc.name = "test";
    desc.dtype = dtypeOf<T>();
    desc.q_layout = qLayout;
    desc.k_layout = kLayout;
    desc.v_layout = vLayout;
    desc.o_layout = oLayout;
    desc.o_rank = flat ? 3 : 4;
    desc.q_heads = static_cast<int32_t>(hq);
    desc.kv_heads = static_cast<int32_t>(hk);
    desc.head_dim = D;
    desc.v_head_dim = E;
    desc.block_q = BQ;
    desc.block_k = BK;
    desc.window_left = windowLeft;
    desc.window_right = windowRight;
    desc.scale = NAN;
    desc.softcap = softcap;
    desc.masked_row = maskedRow;
    desc.alignment = alignment;
    desc.rotary = rotary;
    desc.rotary_dim = rotaryDim;
    desc.variants = &variant;
    desc.variant_count = 1;
    if (!heads.empty()) {
      plan.heads = heads.data();
      plan.head_count = static_cast<int32_t>(heads.size());
      desc.plan = &plan;
    }
  }
  void wantStatistics() {
    out[PREFILL_OUT_LSE].make({b, hq, s}, kDLFloat, 32);
    out[PREFILL_OUT_DENSITY].make({b, hq}, kDLFloat, 32);
    out[PREFILL_OUT_BLOCK_MAP].make(
        {b, hq, (s + BQ - 1) / BQ, (t + BK - 1) / BK}, kDLUInt, 8);
  }
  prefill_status run() {
    const DLTensor *inputs[PREFILL_IN_COUNT];
    DLTensor *outputs[PREFILL_OUT_COUNT];
    for (int i = 0; i < PREFILL_IN_COUNT; ++i)
      inputs[i] = in[i].get();
    for (int i = 0; i < PREFILL_OUT_COUNT; ++i)
      outputs[i] = out[i].get();
    return prefill_attention(&desc, &context, inputs, PREFILL_IN_COUNT, outputs,
                             PREFILL_OUT_COUNT);
  }

  int64_t integer(int slot, std::vector<int64_t> index) {
    Tensor &x = in[slot];
    if (x.dl.dtype.bits == 64)
      return x.template at<int64_t>(index);
    if (x.dl.dtype.bits == 32)
      return x.template at<int32_t>(index);
    return x.template at<uint8_t>(index);
  }
  int64_t position(int64_t bi, int64_t i) {
    if (Tensor &x = in[PREFILL_IN_Q_POSITIONS]; !x.absent)
      return integer(PREFILL_IN_Q_POSITIONS,
                     x.dl.ndim == 1
                         ? std::vector<int64_t>{i}
                         : std::vector<int64_t>{x.shape[0] == 1 ? 0 : bi, i});
    if (!in[PREFILL_IN_Q_OFFSET].absent)
      return i + integer(PREFILL_IN_Q_OFFSET, in[PREFILL_IN_Q_OFFSET].dl.ndim
                                                  ? std::vector<int64_t>{bi}
                                                  : std::vector<int64_t>{});
    return alignment == PREFILL_ALIGN_END ? i + t - s : i;
  }
  int64_t kvLen(int64_t bi) {
    Tensor &x = in[PREFILL_IN_KV_LENGTHS];
    return x.absent ? t
                    : integer(PREFILL_IN_KV_LENGTHS,
                              x.dl.ndim ? std::vector<int64_t>{bi}
                                        : std::vector<int64_t>{});
  }
  double biasAt(int64_t bi, int64_t h, int64_t i, int64_t j) {
    Tensor &x = in[PREFILL_IN_BIAS];
    if (x.absent)
      return 0;
    const int64_t full[4] = {bi, h, i, j};
    std::vector<int64_t> index;
    for (int r = 0; r < x.dl.ndim; ++r) {
      int64_t n = full[4 - x.dl.ndim + r];
      index.push_back(x.shape[r] == 1 ? 0 : n);
    }
    if (x.dl.dtype.bits == 8)
      return x.template at<uint8_t>(index) ? 0 : MinusInf;
    if (x.dl.dtype.bits == 32)
      return x.template at<float>(index);
    return x.dl.dtype.code == kDLBfloat ? widen(x.template at<bf16>(index))
                                        : widen(x.template at<_Float16>(index));
  }
  /// The segment of a pack that key `j` belongs to.
  int64_t segment(int64_t j) {
    int64_t i = 0;
    while (integer(PREFILL_IN_SEGMENT_STARTS, {i + 1}) <= j)
      ++i;
    return i;
  }
  bool visible(int64_t bi, int64_t i, int64_t j) {
    int64_t p = position(bi, i);
    if (j >= kvLen(bi))
      return false;
    if (!in[PREFILL_IN_SEGMENT_STARTS].absent && segment(p) != segment(j))
      return false;
    if (F & PREFILL_TILE_CAUSAL && j > p + windowRight)
      return false;
    if (F & PREFILL_TILE_WINDOW && j < p - windowLeft)
      return false;
    if (!in[PREFILL_IN_KEY_MASK].absent &&
        !integer(PREFILL_IN_KEY_MASK, {bi, j}))
      return false;
    return in[PREFILL_IN_Q_SEGMENT].absent ||
           integer(PREFILL_IN_Q_SEGMENT, {bi, i}) ==
               integer(PREFILL_IN_K_SEGMENT, {bi, j});
  }

  /// Rows of Q and K as the products see them. Tests with rotary replace it.
  std::function<double(bool ofQuery, int64_t bi, int64_t h, int64_t row,
                       int64_t c)>
      element =
          [this](bool ofQuery, int64_t bi, int64_t h, int64_t n, int64_t c) {
            return ofQuery ? widen(q(bi, h, n, c)) : widen(k(bi, h, n, c));
          };

  /// The attention of one row over the keys that `kept` allows.
  void expectedRow(int64_t bi, int64_t h, int64_t i, std::vector<double> &o,
                   double &lse,
                   const std::function<bool(int64_t)> &kept = nullptr) {
    const int64_t kh = h / (hq / hk);
    std::vector<double> logits(static_cast<size_t>(t), MinusInf);
    double m = MinusInf;
    auto score = [&](int64_t j) {
      double x = 0;
      for (int c = 0; c < D; ++c)
        x += element(true, bi, h, i, c) * element(false, bi, kh, j, c);
      x *= static_cast<double>(1.0f / std::sqrt(static_cast<float>(D)));
      if (F & PREFILL_TILE_SOFTCAP)
        x = softcap * std::tanh(x / softcap);
      return x;
    };
    for (int64_t j = 0; j < t; ++j) {
      if (!visible(bi, i, j) || (kept && !kept(j)))
        continue;
      double x = score(j) + biasAt(bi, h, i, j);
      // Models add in float32: next to a bias of -3.4e38 scores vanish.
      if (x < -1e30)
        x = static_cast<float>(x);
      // Then whatever hides is one finite number.
      if (x < -3e38 && maskedRow == PREFILL_MASKED_MEAN)
        continue;
      logits[static_cast<size_t>(j)] = x;
      m = std::max(m, logits[static_cast<size_t>(j)]);
    }
    bool sink = !in[PREFILL_IN_SINKS].absent;
    double sinkLogit = sink ? in[PREFILL_IN_SINKS].template at<float>({h}) : 0;
    if (sink)
      m = std::max(m, sinkLogit);
    o.assign(E, 0);
    if (m == MinusInf) {
      lse = MinusInf;
      if (t && maskedRow == PREFILL_MASKED_MEAN)
        for (int64_t j = 0; j < t; ++j)
          for (int c = 0; c < E; ++c)
            o[c] += widen(v(bi, kh, j, c)) / static_cast<double>(t);
      if (t && maskedRow == PREFILL_MASKED_NAN)
        o.assign(E, NAN);
      if (t && maskedRow == PREFILL_MASKED_SCORES) {
        // The softmax over all keys.
        double total = 0, most = MinusInf;
        for (int64_t j = 0; j < t; ++j)
          most = std::max(most, score(j));
        for (int64_t j = 0; j < t; ++j) {
          const double w = std::exp(score(j) - most);
          total += w;
          for (int c = 0; c < E; ++c)
            o[c] += w * widen(v(bi, kh, j, c));
        }
        for (double &x : o)
          x /= total;
      }
      return;
    }
    double l = sink ? std::exp(sinkLogit - m) : 0;
    for (int64_t j = 0; j < t; ++j) {
      double w = std::exp(logits[static_cast<size_t>(j)] - m);
      l += w;
      for (int c = 0; c < E; ++c)
        o[c] += w * widen(v(bi, kh, j, c));
    }
    for (double &x : o)
      x /= l;
    lse = m + std::log(l);
  }

  /// The largest difference between O (and LSE, if asked for) and the expected
  /// values; infinity where one is NaN and the other is not.
  double error(const std::function<bool(int64_t bi, int64_t h, int64_t i,
                                        int64_t j)> &kept = nullptr) {
    double worst = 0;
    auto compare = [&](double x, double y) {
      if (std::isnan(x) != std::isnan(y) || std::isinf(x) != std::isinf(y))
        worst = INFINITY;
      else if (std::isfinite(x))
        worst = std::max(worst, std::fabs(x - y) / std::max(1.0, std::fabs(y)));
    };
    std::vector<double> row;
    for (int64_t bi = 0; bi < b; ++bi)
      for (int64_t h = 0; h < hq; ++h)
        for (int64_t i = 0; i < s; ++i) {
          double lse;
          if (kept)
            expectedRow(bi, h, i, row, lse,
                        [&](int64_t j) { return kept(bi, h, i, j); });
          else
            expectedRow(bi, h, i, row, lse);
          for (int c = 0; c < E; ++c)
            compare(widen(o(bi, h, i, c)), row[c]);
          if (!out[PREFILL_OUT_LSE].absent)
            compare(out[PREFILL_OUT_LSE].template at<float>({bi, h, i}), lse);
        }
    return worst;
  }
};

} // namespace ref

#endif
