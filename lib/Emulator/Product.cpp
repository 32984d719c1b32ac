//===- Product.cpp - mma.sync, and numbers in registers -------------------===//

#include "Product.h"
#include "Machine.h"
#include "Runtime.h"

using namespace llvm;
using namespace prefill::emu;

uint64_t ProductKind::encode() const {
  return uint64_t(m) | uint64_t(n) << 10 | uint64_t(k) << 20 |
         uint64_t(a) << 30 | uint64_t(b) << 34 | uint64_t(accumulator) << 38 |
         uint64_t(fromRegisters) << 42 | uint64_t(transposeA) << 43 |
         uint64_t(transposeB) << 44 | uint64_t(negateA) << 45 |
         uint64_t(negateB) << 46 | uint64_t(saturate) << 47;
}

ProductKind ProductKind::decode(uint64_t word) {
  ProductKind kind;
  kind.m = word & 1023;
  kind.n = word >> 10 & 1023;
  kind.k = word >> 20 & 1023;
  kind.a = Element(word >> 30 & 15);
  kind.b = Element(word >> 34 & 15);
  kind.accumulator = Element(word >> 38 & 15);
  kind.fromRegisters = word >> 42 & 1;
  kind.transposeA = word >> 43 & 1;
  kind.transposeB = word >> 44 & 1;
  kind.negateA = word >> 45 & 1;
  kind.negateB = word >> 46 & 1;
  kind.saturate = word >> 47 & 1;
  return kind;
}

namespace {
/// One warp's operands: rows of A, columns of B, both along k.
template <typename T>
struct WarpTile {
  T a[16][64], b[64][8];
};
} // namespace

/// D = A B + C for m16n8; register r of lane l holds consecutive elements along
/// k, as many as fit in 32 bits.
template <typename T>
static void multiply(const ProductKind &kind, void **slots) {
  WarpTile<T> tile;
  unsigned bits = bitsOfElement(kind.a), perRegister = 32 / bits;
  unsigned halves = kind.k / (4 * perRegister);
  unsigned numA = 2 * halves, numB = halves;
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto *registers = static_cast<uint32_t *>(slots[lane]);
    unsigned group = lane / 4, first = lane % 4 * perRegister;
    for (unsigned half = 0; half < halves; ++half)
      for (unsigned e = 0; e < perRegister; ++e) {
        unsigned k = half * 4 * perRegister + first + e;
        tile.a[group][k] = extract<T>(kind.a, registers[2 * half], e);
        tile.a[group + 8][k] = extract<T>(kind.a, registers[2 * half + 1], e);
        tile.b[k][group] = extract<T>(kind.b, registers[numA + half], e);
      }
  }
  T sum[16][8] = {};
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned k = 0; k < kind.k; ++k)
      for (unsigned column = 0; column < 8; ++column)
        sum[row][column] += tile.a[row][k] * tile.b[k][column];
  bool halfAccumulator = kind.accumulator == Element::F16;
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto *registers = static_cast<uint32_t *>(slots[lane]);
    uint32_t c[4];
    unsigned numC = halfAccumulator ? 2 : 4;
    std::memcpy(c, registers + numA + numB, numC * 4);
    for (unsigned i = 0; i < 4; ++i) {
      T value = sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
      if (halfAccumulator) {
        uint32_t &word = c[i / 2];
        unsigned shift = 16 * (i % 2);
        uint16_t result =
            toF16(float(value) + fromF16(uint16_t(word >> shift)));
        word = (word & ~(0xffffu << shift)) | uint32_t(result) << shift;
      } else {
        c[i] = addTo<T>(c[i], value, kind.saturate);
      }
    }
    std::memcpy(registers, c, numC * 4);
  }
}

void emu_mma(Site *site, uint64_t kind, uint32_t *registers) {
  machine->collect(site, ~0u, kind, registers, [&](void **slots) {
    ProductKind product = ProductKind::decode(kind);
    if (product.accumulator == Element::S32)
      multiply<int32_t>(product, slots);
    else
      multiply<float>(product, slots);
  });
}
