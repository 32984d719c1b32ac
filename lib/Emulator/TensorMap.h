//===- TensorMap.h - The emulator's own tensor map format -------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_TENSORMAP_H
#define PREFILL_LIB_EMULATOR_TENSORMAP_H

#include <cstdint>

namespace prefill::emu {

/// What the opaque 128 bytes hold. Dimension 0 is dense.
struct EncodedTensorMap {
  static constexpr uint32_t kMagic = 0x70616d54; // "Tmap"
  uint32_t magic;
  uint8_t rank, elementBytes, swizzleBytes, pad;
  uint64_t base;
  uint64_t strides[4];
  uint32_t dims[5];
  uint32_t sizes[5]; ///< of the box
  uint32_t reserved[10];
};
static_assert(sizeof(EncodedTensorMap) == 128, "as large as CUtensorMap");

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_TENSORMAP_H
