//===- Product.h - Elements of matrix products ------------------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_PRODUCT_H
#define PREFILL_LIB_EMULATOR_PRODUCT_H

#include "Numeric.h"
#include "Wgmma.h"
#include <type_traits>

namespace prefill::emu {

inline unsigned bitsOfElement(Element element) {
  switch (element) {
  case Element::BF16:
  case Element::F16:
    return 16;
  case Element::E4M3:
  case Element::E5M2:
  case Element::S8:
  case Element::U8:
    return 8;
  case Element::S4:
  case Element::U4:
    return 4;
  default:
    return 32;
  }
}

/// Element `index` of a register.
template <typename T>
inline T extract(Element element, uint32_t word, unsigned index) {
  if constexpr (std::is_integral_v<T>) {
    switch (element) {
    case Element::S8:
      return int8_t(word >> (8 * index));
    case Element::U8:
      return uint8_t(word >> (8 * index));
    case Element::S4:
      return int32_t(word << (28 - 4 * index)) >> 28;
    default:
      return word >> (4 * index) & 15;
    }
  } else {
    switch (element) {
    case Element::BF16:
      return fromBF16(uint16_t(word >> (16 * index)));
    case Element::F16:
      return fromF16(uint16_t(word >> (16 * index)));
    case Element::E4M3:
      return fromE4M3(uint8_t(word >> (8 * index)));
    case Element::E5M2:
      return fromE5M2(uint8_t(word >> (8 * index)));
    default: // tf32: the lower 13 bits do not count
      return bitsOf<float>(word & ~0x1fffu);
    }
  }
}

/// An accumulator register plus `value`.
template <typename T>
inline uint32_t addTo(uint32_t word, T value, bool saturate) {
  if constexpr (std::is_integral_v<T>) {
    int64_t sum = int64_t(int32_t(word)) + value;
    if (saturate)
      sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
    return uint32_t(sum);
  } else {
    return bitsOf<uint32_t>(bitsOf<float>(word) + value);
  }
}

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_PRODUCT_H
