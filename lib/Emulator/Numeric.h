//===- Numeric.h - Small floating-point types on the host -------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_NUMERIC_H
#define PREFILL_LIB_EMULATOR_NUMERIC_H

#include <cmath>
#include <cstdint>
#include <cstring>

namespace prefill::emu {

template <typename To, typename From>
inline To bitsOf(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline float fromBF16(uint16_t bits) {
  return bitsOf<float>(uint32_t(bits) << 16);
}
/// Round to nearest even; every NaN becomes 0x7fff, as in PTX.
inline uint16_t toBF16(float value) {
  uint32_t bits = bitsOf<uint32_t>(value);
  if (value != value)
    return 0x7fff;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/// A small float: sign, `E` exponent bits with bias, `M` mantissa bits.
template <int E, int M>
inline float fromSmall(uint32_t bits) {
  uint32_t sign = bits >> (E + M) & 1, exponent = bits >> M & ((1 << E) - 1),
           mantissa = bits & ((1 << M) - 1);
  constexpr int bias = (1 << (E - 1)) - 1;
  float value = exponent ? std::ldexp(float((1 << M) | mantissa),
                                      int(exponent) - bias - M)
                         : std::ldexp(float(mantissa), 1 - bias - M);
  return sign ? -value : value;
}
inline float fromF16(uint16_t bits) {
  if ((bits & 0x7c00) == 0x7c00)
    return bitsOf<float>(uint32_t(bits & 0x8000) << 16 | 0x7f800000 |
                         uint32_t(bits & 0x3ff) << 13);
  uint32_t sign = uint32_t(bits & 0x8000) << 16, low = bits & 0x7fff;
  // 2^112 moves the exponent from half's bias to float's, also for subnormals.
  return bitsOf<float>(sign |
                       bitsOf<uint32_t>(bitsOf<float>(low << 13) * 0x1p112f));
}
inline float fromE4M3(uint8_t bits) {
  return (bits & 0x7f) == 0x7f ? NAN : fromSmall<4, 3>(bits);
}
inline float fromE5M2(uint8_t bits) { return fromF16(uint16_t(bits << 8)); }

/// Round to nearest even into a small float. `largest` is the largest finite
/// value; beyond it: `largest` if `saturate`, else `infinity`.
template <int E, int M>
inline uint32_t toSmall(float value, float largest, uint32_t infinity,
                        bool saturate) {
  constexpr int bias = (1 << (E - 1)) - 1;
  uint32_t sign = (bitsOf<uint32_t>(value) >> 31) << (E + M);
  double magnitude = std::fabs(double(value));
  int exponent = magnitude > 0 ? std::ilogb(magnitude) : -bias;
  if (exponent < 1 - bias)
    exponent = 1 - bias;
  double step = std::ldexp(1.0, exponent - M);
  double rounded = std::nearbyint(magnitude / step) * step;
  uint32_t top;
  if (rounded > largest) {
    if (!saturate)
      return sign | infinity;
    rounded = largest;
  }
  if (rounded == 0)
    return sign;
  exponent = std::ilogb(rounded);
  if (exponent < 1 - bias) {
    top = uint32_t(rounded / std::ldexp(1.0, 1 - bias - M));
  } else {
    uint32_t mantissa = uint32_t(rounded / std::ldexp(1.0, exponent - M));
    top = uint32_t(exponent + bias) << M | (mantissa & ((1 << M) - 1));
  }
  return sign | top;
}
inline uint16_t toF16(float value) {
  return value != value ? 0x7fff
                        : toSmall<5, 10>(value, 65504.f, 0x7c00, false);
}
inline uint8_t toE4M3(float value) {
  return value != value ? 0x7f : toSmall<4, 3>(value, 448.f, 0, true);
}
inline uint8_t toE5M2(float value) {
  return value != value ? 0x7f : toSmall<5, 2>(value, 57344.f, 0, true);
}

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_NUMERIC_H
