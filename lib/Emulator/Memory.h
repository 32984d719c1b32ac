//===- Memory.h - Registered global memory ----------------------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_MEMORY_H
#define PREFILL_LIB_EMULATOR_MEMORY_H

#include "prefill/Emulator/Emulator.h"
#include <vector>

namespace prefill::emu {

/// A range of addresses that a kernel may touch, with one bit per byte that
/// says whether it holds a value.
struct Region {
  uintptr_t base = 0;
  size_t bytes = 0;
  std::string name;
  bool readOnly = false;
  /// Empty if everything holds a value.
  std::vector<uint64_t> written;

  bool isWritten(size_t offset, size_t count) const;
  void setWritten(size_t offset, size_t count);
  size_t countUninitialised() const;
};

struct Device::State {
  /// Sorted by base, not overlapping.
  std::vector<Region> regions;

  void add(void *base, size_t bytes, llvm::StringRef name, bool initialised,
           bool readOnly);
  void remove(const void *base);
  /// The region that holds all of [address, address + bytes), or null.
  Region *find(uintptr_t address, size_t bytes);
  /// The region that ends or begins nearest to `address`, for messages.
  const Region *nearest(uintptr_t address) const;
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_MEMORY_H
