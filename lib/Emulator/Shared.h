//===- Shared.h - Shared memory with what is known of each byte -*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_SHARED_H
#define PREFILL_LIB_EMULATOR_SHARED_H

#include "Clock.h"
#include <cstddef>
#include <string>
#include <vector>

namespace prefill::emu {

/// Shared memory of one block. Addresses are those that the kernel sees: the
/// window begins at kBase (the first KiB belongs to the system on sm_90).
class SharedMemory {
public:
  static constexpr uint32_t kBase = 1024, kWindow = 1 << 18;
  /// Lanes of a record that are none: all lanes at once, several lanes.
  static constexpr unsigned kWholeWarp = 32, kMixed = 33;

  struct Access {
    unsigned agent;
    uint32_t time;
    /// What the agent knows of the others.
    const Clock *known;
    unsigned lane = kWholeWarp;
  };
  /// Another access that is not ordered with this one.
  struct Conflict {
    bool found = false;
    unsigned agent = 0, lane = 0;
    bool write = false;
    uint32_t address = 0;
  };

  /// Everything is uninitialised and holds NaN.
  void reset(uint32_t bytes);
  uint32_t end() const { return kBase + bytes; }
  bool contains(uint64_t address, size_t count) const {
    return address >= kBase && address <= end() && count <= end() - address;
  }
  char *data(uint32_t address) { return memory.data() + address; }
  /// Generic address of shared address 0; the whole window belongs to it.
  char *windowBase() { return memory.data(); }

  bool isInitialised(uint32_t address, size_t count) const;
  void setInitialised(uint32_t address, size_t count);
  void setUninitialised(uint32_t address, size_t count);

  /// Checks the access against earlier ones, then remembers it.
  Conflict read(uint32_t address, size_t count, const Access &access) {
    return record(address, count, access, false);
  }
  Conflict write(uint32_t address, size_t count, const Access &access) {
    return record(address, count, access, true);
  }

  /// The last writer through the generic proxy: thread and event number.
  struct GenericWrite {
    uint32_t event = 0;
    uint16_t thread = 0;
  };
  void setGenericWrite(uint32_t address, size_t count, GenericWrite write);
  void clearGenericWrite(uint32_t address, size_t count);
  const GenericWrite &getGenericWrite(uint32_t address) const {
    return generic[address / 16];
  }

private:
  static constexpr unsigned kWrites = 4, kReads = 8;
  /// agent 8 bits, lane 8 bits, bytes of the granule 16 bits, time 32 bits.
  using Record = uint64_t;
  struct Granule {
    Record writes[kWrites], reads[kReads];
  };

  Conflict record(uint32_t address, size_t count, const Access &access,
                  bool isWrite);

  uint32_t bytes = 0;
  std::vector<char> memory;
  /// One bit a byte.
  std::vector<uint16_t> initialised;
  std::vector<GenericWrite> generic;
  std::vector<Granule> granules;
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_SHARED_H
