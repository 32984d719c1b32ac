//===- Memory.cpp - Registered global memory ------------------------------===//

#include "Memory.h"
#include <algorithm>

using namespace prefill::emu;

bool Region::isWritten(size_t offset, size_t count) const {
  if (written.empty())
    return true;
  for (size_t i = offset; i < offset + count;) {
    // Whole words where possible.
    size_t bit = i % 64, take = std::min(count - (i - offset), 64 - bit);
    uint64_t mask = (take == 64 ? ~uint64_t(0) : (uint64_t(1) << take) - 1)
                    << bit;
    if ((written[i / 64] & mask) != mask)
      return false;
    i += take;
  }
  return true;
}

void Region::setWritten(size_t offset, size_t count) {
  if (written.empty())
    return;
  for (size_t i = offset; i < offset + count;) {
    size_t bit = i % 64, take = std::min(count - (i - offset), 64 - bit);
    written[i / 64] |= (take == 64 ? ~uint64_t(0) : (uint64_t(1) << take) - 1)
                       << bit;
    i += take;
  }
}

size_t Region::countUninitialised() const {
  size_t count = 0;
  for (uint64_t word : written)
    count += __builtin_popcountll(~word);
  // The last word has bits beyond the end.
  return written.empty() ? 0 : count - (written.size() * 64 - bytes);
}

void Device::State::add(void *base, size_t bytes, llvm::StringRef name,
                        bool initialised, bool readOnly) {
  Region region;
  region.base = reinterpret_cast<uintptr_t>(base);
  region.bytes = bytes;
  region.name = name.str();
  region.readOnly = readOnly;
  if (!initialised)
    region.written.assign((bytes + 63) / 64, 0);
  auto at = std::upper_bound(
      regions.begin(), regions.end(), region.base,
      [](uintptr_t value, const Region &other) { return value < other.base; });
  regions.insert(at, std::move(region));
}

void Device::State::remove(const void *base) {
  auto address = reinterpret_cast<uintptr_t>(base);
  regions.erase(std::remove_if(regions.begin(), regions.end(),
                               [&](const Region &region) {
                                 return region.base == address;
                               }),
                regions.end());
}

Region *Device::State::find(uintptr_t address, size_t bytes) {
  auto after = std::upper_bound(
      regions.begin(), regions.end(), address,
      [](uintptr_t value, const Region &other) { return value < other.base; });
  if (after == regions.begin())
    return nullptr;
  Region &region = *std::prev(after);
  size_t offset = address - region.base;
  return offset <= region.bytes && bytes <= region.bytes - offset ? &region
                                                                  : nullptr;
}

const Region *Device::State::nearest(uintptr_t address) const {
  const Region *best = nullptr;
  uintptr_t distance = UINTPTR_MAX;
  for (const Region &region : regions) {
    uintptr_t end = region.base + region.bytes;
    uintptr_t away = address < region.base ? region.base - address
                     : address >= end      ? address - end
                                           : 0;
    if (away < distance) {
      distance = away;
      best = &region;
    }
  }
  return best;
}
