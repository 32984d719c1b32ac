//===- TensorMap.cpp - What cuTensorMapEncodeTiled checks -----------------===//

#include "TensorMap.h"
#include "prefill/Emulator/Emulator.h"

using namespace llvm;
using namespace prefill::emu;

static Error refuse(const Twine &what) {
  return createStringError("tensor map: " + what);
}

Expected<std::array<uint8_t, 128>>
prefill::emu::encodeTensorMap(const TensorMap &map) {
  size_t rank = map.dims.size();
  if (rank < 1 || rank > 5)
    return refuse("1 to 5 dimensions, not " + Twine(rank));
  if (map.strides.size() != rank - 1 || map.box.size() != rank)
    return refuse("one stride fewer than, and as many box sizes as dimensions");
  uint32_t element = map.elementBytes;
  if (element != 1 && element != 2 && element != 4 && element != 8)
    return refuse("elements of 1, 2, 4 or 8 bytes, not " + Twine(element));
  uint32_t swizzle = map.swizzleBytes;
  if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
    return refuse("swizzle 0, 32, 64 or 128 bytes, not " + Twine(swizzle));
  auto base = reinterpret_cast<uintptr_t>(map.base);
  if (base % 16)
    return refuse("the base address is not a multiple of 16");
  EncodedTensorMap encoded = {};
  encoded.magic = EncodedTensorMap::kMagic;
  encoded.rank = rank;
  encoded.elementBytes = element;
  encoded.swizzleBytes = swizzle;
  encoded.base = base;
  for (size_t i = 0; i < rank; ++i) {
    if (map.dims[i] == 0 || map.dims[i] > UINT32_MAX)
      return refuse("dimension " + Twine(i) + " is " + Twine(map.dims[i]) +
                    ", not in 1..2^32-1");
    if (map.box[i] == 0 || map.box[i] > 256)
      return refuse("box size " + Twine(i) + " is " + Twine(map.box[i]) +
                    ", not in 1..256");
    encoded.dims[i] = map.dims[i];
    encoded.sizes[i] = map.box[i];
    if (i == 0)
      continue;
    uint64_t stride = map.strides[i - 1];
    if (stride % 16 || stride >= uint64_t(1) << 40)
      return refuse("stride " + Twine(i) + " is " + Twine(stride) +
                    " bytes, not a multiple of 16 below 2^40");
    encoded.strides[i - 1] = stride;
  }
  uint32_t inner = map.box[0] * element;
  if (inner % 16)
    return refuse("the box is " + Twine(inner) +
                  " bytes wide, not a multiple of 16");
  if (swizzle && inner > swizzle)
    return refuse("the box is " + Twine(inner) + " bytes wide, more than the " +
                  Twine(swizzle) + " bytes of the swizzle");
  std::array<uint8_t, 128> bytes;
  std::memcpy(bytes.data(), &encoded, sizeof(encoded));
  return bytes;
}
