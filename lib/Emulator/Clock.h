//===- Clock.h - Vector clocks of a thread block ----------------*- C++ -*-===//
///
/// What is ordered before what, for the race check. An agent is a warp or a
/// unit that works asynchronously for one; an access is stamped with its
/// agent's time. Threads of a warp share a clock, so that a race is never
/// reported wrongly, and may be missed where a synchronisation of one lane is
/// taken for all.
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EMULATOR_CLOCK_H
#define PREFILL_LIB_EMULATOR_CLOCK_H

#include <cstdint>

namespace prefill::emu {

constexpr unsigned kMaxWarps = 32, kMaxGroups = 8, kBulkAgents = 32;
constexpr unsigned kFirstGroupAgent = kMaxWarps,
                   kFirstCopyAgent = kFirstGroupAgent + kMaxGroups,
                   kFirstBulkAgent = kFirstCopyAgent + kMaxWarps,
                   kNumAgents = kFirstBulkAgent + kBulkAgents;

struct Clock {
  uint32_t at[kNumAgents] = {};

  void join(const Clock &other) {
    for (unsigned i = 0; i < kNumAgents; ++i)
      at[i] = at[i] < other.at[i] ? other.at[i] : at[i];
  }
  void learn(unsigned agent, uint32_t time) {
    if (at[agent] < time)
      at[agent] = time;
  }
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_CLOCK_H
