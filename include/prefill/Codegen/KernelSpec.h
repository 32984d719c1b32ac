//===- KernelSpec.h - What one compiled attention kernel computes -*- C++ -*-=//
//
// Plain data between the driver, which derives it from `prefill.attention` ops,
// and the code generator. It mirrors prefill_attention_desc of
// runtime/include/prefill/kernel_abi.h; see there for the meaning of each
// field.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_KERNELSPEC_H
#define PREFILL_CODEGEN_KERNELSPEC_H

#include "prefill/Dialect/Prefill/HeadPlan.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace prefill {

enum class DType : int32_t { F32 = 0, F16 = 1, BF16 = 2 };
enum class Layout : int32_t { BHSD = 0, BSHD = 1 };
enum class MaskedRow : int32_t { Zero = 0, Mean = 1, NaN = 2, Scores = 3 };
enum class Alignment : int32_t { End = 0, Start = 1, Operand = 2 };
enum class Rotary : int32_t { None = 0, Half = 1, Interleaved = 2 };
/// One exported kernel (prefill_attention_desc). Two specs that agree in
/// everything the generated code depends on (`tileKey`) share tile functions.
struct KernelSpec {
  static constexpr int64_t Unbounded = std::numeric_limits<int64_t>::max() / 4;

  std::string name; ///< a C identifier, unique in the library
  DType dtype = DType::F32;
  Layout qLayout = Layout::BHSD, kLayout = Layout::BHSD, vLayout = Layout::BHSD,
         oLayout = Layout::BHSD;
  int32_t oRank = 4;
  int32_t qHeads = 1, kvHeads = 1, headDim = 64, vHeadDim = 64;
  int32_t blockQ = 64, blockK = 64;
  bool causal = false;
  int64_t windowLeft = Unbounded; ///< keys >= position - windowLeft
  int64_t windowRight =
      Unbounded; ///< keys <= position + windowRight; causal: 0
  float scale = std::numeric_limits<float>::quiet_NaN(); ///< NaN: 1/sqrt(d)
  float softcap = 0;
  bool hasBias = false, hasKeyMask = false, hasSink = false,
       hasSegments = false;
  MaskedRow maskedRow = MaskedRow::Zero;
  Alignment alignment = Alignment::End;
  Rotary rotary = Rotary::None;
  int32_t rotaryDim = 0;
  float contextTemperature = 0, contextScale = 0; ///< 0: takes no contexts
  int32_t denseBelow = -1;                        ///< prefill_plan::dense_below
  std::vector<HeadPlan> heads;                    ///< empty: dense

  /// Every field but the name and the heads, for comparisons.
  auto fields() const {
    return std::tuple_cat(
        std::tie(dtype, qLayout, kLayout, vLayout, oLayout, oRank, qHeads,
                 kvHeads, headDim, vHeadDim, blockQ, blockK, causal, windowLeft,
                 windowRight),
        // As bits: a scale may be NaN.
        std::make_tuple(bitsOf(scale), bitsOf(softcap)),
        std::tie(hasBias, hasKeyMask, hasSink, hasSegments, maskedRow,
                 alignment, rotary, rotaryDim, contextTemperature, contextScale,
                 denseBelow));
  }
  /// Whether another kernel computes the same; names do not count.
  bool isSame(const KernelSpec &other) const {
    return fields() == other.fields() && heads == other.heads;
  }
  /// What `isSame` compares, in 64 bits. Kernels of different models have the
  /// same names; this tells them apart.
  uint64_t digest() const;

private:
  static uint32_t bitsOf(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
};

} // namespace prefill

#endif
