//===- Shared.cpp - Shared memory: initialised bytes and races ------------===//

#include "Shared.h"
#include <algorithm>
#include <cstring>

using namespace prefill::emu;

void SharedMemory::reset(uint32_t newBytes) {
  bytes = newBytes;
  size_t size = kBase + bytes, count = (size + 15) / 16;
  memory.resize(kWindow);
  std::memset(memory.data(), 0xff, count * 16);
  initialised.assign(count, 0);
  generic.assign(count, {});
  granules.resize(count);
  std::memset(granules.data(), 0, count * sizeof(Granule));
}

/// The bytes of granule `index` that [address, address + count) covers.
static uint16_t maskOf(uint32_t address, size_t count, uint32_t index) {
  uint32_t begin = std::max(address, index * 16) - index * 16;
  uint32_t end =
      std::min<uint64_t>(address + count, index * 16 + 16) - index * 16;
  return uint16_t(((1u << (end - begin)) - 1) << begin);
}

bool SharedMemory::isInitialised(uint32_t address, size_t count) const {
  for (uint32_t i = address / 16; i * 16 < address + count; ++i) {
    uint16_t mask = maskOf(address, count, i);
    if ((initialised[i] & mask) != mask)
      return false;
  }
  return true;
}

void SharedMemory::setInitialised(uint32_t address, size_t count) {
  for (uint32_t i = address / 16; i * 16 < address + count; ++i)
    initialised[i] |= maskOf(address, count, i);
}

void SharedMemory::setUninitialised(uint32_t address, size_t count) {
  for (uint32_t i = address / 16; i * 16 < address + count; ++i)
    initialised[i] &= uint16_t(~maskOf(address, count, i));
}

void SharedMemory::setGenericWrite(uint32_t address, size_t count,
                                   GenericWrite write) {
  for (uint32_t i = address / 16; i * 16 < address + count; ++i)
    generic[i] = write;
}

void SharedMemory::clearGenericWrite(uint32_t address, size_t count) {
  for (uint32_t i = address / 16; i * 16 < address + count; ++i)
    generic[i] = {};
}

SharedMemory::Conflict SharedMemory::record(uint32_t address, size_t count,
                                            const Access &access,
                                            bool isWrite) {
  Conflict conflict;
  const Clock &known = *access.known;
  auto pack = [](unsigned agent, unsigned lane, uint16_t mask, uint32_t time) {
    return uint64_t(agent) | uint64_t(lane) << 8 | uint64_t(mask) << 16 |
           uint64_t(time) << 32;
  };
  for (uint32_t i = address / 16; i * 16 < address + count; ++i) {
    uint16_t mask = maskOf(address, count, i);
    Granule &granule = granules[i];
    auto isOrdered = [&](Record other) {
      unsigned agent = other & 0xff, lane = other >> 8 & 0xff;
      uint32_t time = other >> 32;
      if (agent != access.agent || agent >= kMaxWarps)
        return known.at[agent] >= time;
      // Lanes of one warp: ordered by a synchronisation of the warp, which
      // advances its time.
      return time < access.time || lane == access.lane || lane >= kWholeWarp ||
             access.lane >= kWholeWarp;
    };
    auto check = [&](Record other, bool otherWrites) {
      if (!other || !(uint16_t(other >> 16) & mask) || isOrdered(other))
        return;
      if (!conflict.found)
        conflict = {true, unsigned(other & 0xff), unsigned(other >> 8 & 0xff),
                    otherWrites, std::max(address, i * 16)};
    };
    for (Record other : granule.writes)
      check(other, true);
    if (isWrite)
      for (Record other : granule.reads)
        check(other, false);

    Record *begin = isWrite ? granule.writes : granule.reads;
    Record *end = begin + (isWrite ? kWrites : kReads);
    if (isWrite) {
      // What this write covers is history; a conflict was reported above.
      for (Record &other : granule.writes)
        if (other && !(uint16_t(other >> 16) & ~mask))
          other = 0;
      for (Record &other : granule.reads)
        if (other && !(uint16_t(other >> 16) & ~mask))
          other = 0;
    }
    Record *slot = nullptr;
    for (Record *at = begin; at != end && !slot; ++at)
      if (*at && (*at & 0xff) == access.agent &&
          uint32_t(*at >> 32) == access.time &&
          ((*at >> 8 & 0xff) == access.lane || !isWrite)) {
        unsigned lane =
            (*at >> 8 & 0xff) == access.lane ? access.lane : unsigned(kMixed);
        *at = pack(access.agent, lane, uint16_t(*at >> 16) | mask, access.time);
        slot = at;
      }
    if (slot)
      continue;
    for (Record *at = begin; at != end && !slot; ++at)
      if (!*at || ((*at & 0xff) == access.agent && !isWrite &&
                   !(uint16_t(*at >> 16) & ~mask)))
        slot = at;
    // Full: forget one that is ordered before, else any; a race may be missed.
    for (Record *at = begin; at != end && !slot; ++at)
      if (isOrdered(*at))
        slot = at;
    if (!slot)
      slot = begin;
    *slot = pack(access.agent, access.lane, mask, access.time);
  }
  return conflict;
}
