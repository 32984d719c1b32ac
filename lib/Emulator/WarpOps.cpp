//===- WarpOps.cpp - Special registers and what a warp does together ------===//

#include "Machine.h"
#include "Numeric.h"
#include "Runtime.h"

using namespace llvm;
using namespace prefill::emu;

static uint32_t pick(const Dim3 &dim, uint32_t which) {
  return which == 0 ? dim.x : which == 1 ? dim.y : which == 2 ? dim.z : 1;
}

uint32_t emu_special(uint32_t which) {
  Machine &m = *machine;
  Thread &thread = *m.current;
  uint32_t bit = 1u << thread.lane;
  switch (SpecialRegister(which < 16 ? which & ~3u : which)) {
  case SpecialRegister::Tid:
    return pick(thread.id, which & 3);
  case SpecialRegister::Ntid:
    return pick(m.launch.block, which & 3);
  case SpecialRegister::Ctaid:
    return pick(thread.block->id, which & 3);
  case SpecialRegister::Nctaid:
    return pick(m.launch.grid, which & 3);
  case SpecialRegister::Laneid:
    return thread.lane;
  case SpecialRegister::Warpid:
    return thread.warp->index;
  case SpecialRegister::Nwarpid:
    return thread.block->warps.size();
  case SpecialRegister::LanemaskEq:
    return bit;
  case SpecialRegister::LanemaskLt:
    return bit - 1;
  case SpecialRegister::LanemaskLe:
    return bit | (bit - 1);
  case SpecialRegister::LanemaskGt:
    return ~(bit | (bit - 1));
  case SpecialRegister::LanemaskGe:
    return ~(bit - 1);
  case SpecialRegister::Zero:
    return 0;
  case SpecialRegister::One:
    return 1;
  case SpecialRegister::DynamicSmemSize:
    return m.launch.dynamicSharedBytes;
  case SpecialRegister::TotalSmemSize:
    return m.shared().end();
  case SpecialRegister::Clock:
    return ++m.events;
  }
  return 0;
}

uint32_t emu_active_mask() { return machine->current->warp->live; }

void emu_warp_sync(Site *site, uint32_t mask) {
  Machine &m = *machine;
  // Lanes that have left need not come.
  mask &= m.current->warp->live;
  m.collect(site, mask, 0, nullptr,
            [&](void **) { Machine::advance(*m.current->warp); });
}

uint64_t emu_shuffle(Site *site, uint32_t mode, uint32_t mask, uint32_t value,
                     uint32_t lane, uint32_t clamp) {
  struct Slot {
    uint32_t value, lane, clamp;
    uint64_t result;
  } slot = {value, lane, clamp, 0};
  Machine &m = *machine;
  m.collect(site, mask, mode, &slot, [&](void **slots) {
    for (uint32_t me = 0; me < 32; ++me) {
      if (!(mask >> me & 1))
        continue;
      Slot &mine = *static_cast<Slot *>(slots[me]);
      // As in the PTX ISA: segments by the upper bits of c, limits by the
      // lower.
      uint32_t segment = mine.clamp >> 8 & 31, limit = mine.clamp & 31;
      int32_t b = mine.lane & 31;
      int32_t maxLane = (me & segment) | (limit & ~segment);
      int32_t minLane = me & segment, from = me;
      bool inRange = false;
      switch (ShuffleMode(mode)) {
      case ShuffleMode::Up:
        from = int32_t(me) - b;
        inRange = from >= maxLane;
        break;
      case ShuffleMode::Down:
        from = int32_t(me) + b;
        inRange = from <= maxLane;
        break;
      case ShuffleMode::Bfly:
        from = int32_t(me) ^ b;
        inRange = from <= maxLane;
        break;
      case ShuffleMode::Idx:
        from = minLane | (b & int32_t(~segment & 31));
        inRange = from <= maxLane;
        break;
      }
      if (!inRange)
        from = me;
      uint32_t result = mine.value;
      if (mask >> from & 1)
        result = static_cast<Slot *>(slots[from])->value;
      else
        m.report(FindingKind::Collective, site,
                 "lane " + Twine(me) + " reads lane " + Twine(from) +
                     ", which is not in the mask 0x" + Twine::utohexstr(mask));
      mine.result = result | uint64_t(inRange) << 32;
    }
  });
  return slot.result;
}

uint32_t emu_vote(Site *site, uint32_t mode, uint32_t mask,
                  uint32_t predicate) {
  struct Slot {
    uint32_t predicate, result;
  } slot = {predicate, 0};
  machine->collect(site, mask, mode, &slot, [&](void **slots) {
    uint32_t ballot = 0;
    for (uint32_t lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1)
        ballot |= uint32_t(static_cast<Slot *>(slots[lane])->predicate != 0)
                  << lane;
    uint32_t result = ballot;
    if (VoteMode(mode) == VoteMode::All)
      result = ballot == mask;
    else if (VoteMode(mode) == VoteMode::Any)
      result = ballot != 0;
    else if (VoteMode(mode) == VoteMode::Uni)
      result = ballot == mask || ballot == 0;
    for (uint32_t lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1)
        static_cast<Slot *>(slots[lane])->result = result;
  });
  return slot.result;
}

uint32_t emu_match(Site *site, uint32_t mask, uint64_t value, uint32_t all) {
  struct Slot {
    uint64_t value;
    uint32_t result;
  } slot = {value, 0};
  machine->collect(site, mask, all, &slot, [&](void **slots) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1))
        continue;
      Slot &mine = *static_cast<Slot *>(slots[lane]);
      for (uint32_t other = 0; other < 32; ++other)
        if ((mask >> other & 1) &&
            static_cast<Slot *>(slots[other])->value == mine.value)
          mine.result |= 1u << other;
      if (all && mine.result != mask)
        mine.result = 0;
    }
  });
  return slot.result;
}

static uint32_t combine(ReduxOp op, uint32_t a, uint32_t b) {
  int32_t x = a, y = b;
  float f = bitsOf<float>(a), g = bitsOf<float>(b);
  switch (op) {
  case ReduxOp::Add:
    return a + b;
  case ReduxOp::UMin:
    return a < b ? a : b;
  case ReduxOp::UMax:
    return a > b ? a : b;
  case ReduxOp::Min:
    return x < y ? x : y;
  case ReduxOp::Max:
    return x > y ? x : y;
  case ReduxOp::And:
    return a & b;
  case ReduxOp::Or:
    return a | b;
  case ReduxOp::Xor:
    return a ^ b;
  case ReduxOp::FMin:
    return bitsOf<uint32_t>(std::fmin(f, g));
  case ReduxOp::FMax:
    return bitsOf<uint32_t>(std::fmax(f, g));
  }
  return 0;
}

uint32_t emu_redux(Site *site, uint32_t op, uint32_t mask, uint32_t value) {
  machine->collect(site, mask, op, &value, [&](void **slots) {
    bool first = true;
    uint32_t result = 0;
    for (uint32_t lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) {
        uint32_t other = *static_cast<uint32_t *>(slots[lane]);
        result = first ? other : combine(ReduxOp(op), result, other);
        first = false;
      }
    for (uint32_t lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1)
        *static_cast<uint32_t *>(slots[lane]) = result;
  });
  return value;
}

uint64_t emu_elect(Site *site, uint32_t mask) {
  machine->collect(site, mask, 0, nullptr, [](void **) {});
  uint32_t leader = __builtin_ctz(mask);
  return leader | uint64_t(machine->current->lane == leader) << 32;
}

//===----------------------------------------------------------------------===//
// ldmatrix, stmatrix: four 8x8 matrices of 16-bit elements, a row an address
//===----------------------------------------------------------------------===//

namespace {
struct MatrixSlot {
  uint64_t address;
  uint32_t *registers;
};
} // namespace

void emu_ldmatrix(Site *site, uint64_t address, uint32_t count,
                  uint32_t transpose, uint32_t *registers) {
  Machine &m = *machine;
  MatrixSlot slot = {address, registers};
  m.collect(site, ~0u, count << 1 | transpose, &slot, [&](void **slots) {
    SharedMemory::Access access = m.warpAccess();
    for (uint32_t matrix = 0; matrix < count; ++matrix) {
      uint16_t rows[8][8];
      for (uint32_t row = 0; row < 8; ++row) {
        auto &from = *static_cast<MatrixSlot *>(slots[8 * matrix + row]);
        const char *data = m.sharedRead(site, from.address, 16, 16, access);
        if (data)
          std::memcpy(rows[row], data, 16);
        else
          std::memset(rows[row], 0xff, 16);
      }
      for (uint32_t lane = 0; lane < 32; ++lane) {
        uint32_t r = lane / 4, c = 2 * (lane % 4);
        uint32_t low = transpose ? rows[c][r] : rows[r][c];
        uint32_t high = transpose ? rows[c + 1][r] : rows[r][c + 1];
        static_cast<MatrixSlot *>(slots[lane])->registers[matrix] =
            low | high << 16;
      }
    }
  });
}

void emu_stmatrix(Site *site, uint64_t address, uint32_t count,
                  uint32_t transpose, uint32_t *registers) {
  Machine &m = *machine;
  MatrixSlot slot = {address, registers};
  m.collect(site, ~0u, count << 1 | transpose, &slot, [&](void **slots) {
    SharedMemory::Access access = m.warpAccess();
    Thread *me = m.current;
    for (uint32_t matrix = 0; matrix < count; ++matrix) {
      uint16_t rows[8][8];
      for (uint32_t lane = 0; lane < 32; ++lane) {
        uint32_t r = lane / 4, c = 2 * (lane % 4);
        uint32_t bits =
            static_cast<MatrixSlot *>(slots[lane])->registers[matrix];
        (transpose ? rows[c][r] : rows[r][c]) = uint16_t(bits);
        (transpose ? rows[c + 1][r] : rows[r][c + 1]) = uint16_t(bits >> 16);
      }
      for (uint32_t row = 0; row < 8; ++row) {
        auto &to = *static_cast<MatrixSlot *>(slots[8 * matrix + row]);
        // The row's address comes from that lane, which counts as the writer.
        m.current =
            &me->block->threads[me->warp->index * 32 + 8 * matrix + row];
        if (char *data = m.sharedWrite(site, to.address, 16, 16, access, true))
          std::memcpy(data, rows[row], 16);
      }
    }
    m.current = me;
  });
}

//===----------------------------------------------------------------------===//
// Registers, ends, numbers
//===----------------------------------------------------------------------===//

void emu_setmaxnreg(Site *site, uint32_t count, uint32_t increase) {
  Machine &m = *machine;
  Warp &warp = *m.current->warp;
  Block &block = *warp.block;
  if (count < 24 || count > 256 || count % 8)
    return m.fatal(FindingKind::Registers, site,
                   Twine(count) + " registers: not a multiple of 8 in 24..256");
  m.collect(site, warp.live, count, nullptr, [](void **) {});
  // The first lane to come acts for its warp; the others find it done.
  if (warp.registers == count)
    return;
  if (increase ? warp.registers > count : warp.registers < count) {
    m.report(FindingKind::Registers, site,
             "the warp has " + Twine(warp.registers) + " registers a thread, " +
                 (increase ? "more" : "less") + " than " + Twine(count));
    return;
  }
  if (!increase) {
    block.freeRegisters += (warp.registers - count) * 32;
    warp.registers = count;
    std::vector<Thread *> waiting;
    std::swap(waiting, block.registerWaiters);
    for (Thread *thread : waiting)
      m.wake(thread);
    return;
  }
  while (warp.registers != count) {
    uint32_t wanted = (count - warp.registers) * 32;
    if (block.freeRegisters >= wanted) {
      block.freeRegisters -= wanted;
      warp.registers = count;
      return;
    }
    block.registerWaiters.push_back(m.current);
    m.block(Wait::Registers, site, wanted);
  }
}

void emu_trap(Site *site) {
  machine->fatal(FindingKind::Trap, site, "the kernel stops itself");
}

void emu_unreachable(Site *site) {
  machine->fatal(FindingKind::Trap, site,
                 "the kernel goes on where its code says that nobody comes");
}

void emu_division(Site *site, uint32_t wrong) {
  ++site->count;
  if (wrong)
    machine->report(FindingKind::Division, site,
                    wrong == 1 ? "divides an integer by zero"
                               : "divides the least integer by -1");
}

void emu_exit() { machine->exitThread(); }
void emu_yield() { machine->yield(); }

void emu_copy(Site *site, uint64_t to, uint64_t from, uint64_t size) {
  for (uint64_t i = 0; i < size; ++i) {
    void *source = emu_global_access(site, from + i, 1, 1, kGenericAccess);
    void *target =
        emu_global_access(site, to + i, 1, 1, kWriteAccess | kGenericAccess);
    std::memcpy(target, source, 1);
  }
}

void emu_fill(Site *site, uint64_t to, uint32_t value, uint64_t size) {
  for (uint64_t i = 0; i < size; ++i)
    *static_cast<char *>(emu_global_access(
        site, to + i, 1, 1, kWriteAccess | kGenericAccess)) = char(value);
}

static float flush(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.f, value) : value;
}
float emu_ex2(float value) { return flush(std::exp2(flush(value))); }
float emu_lg2(float value) { return std::log2(flush(value)); }

static float rectify(float value, uint32_t relu) {
  return relu && value < 0 ? 0.f : value;
}
uint32_t emu_pack_bf16(float high, float low, uint32_t relu) {
  return uint32_t(toBF16(rectify(high, relu))) << 16 |
         toBF16(rectify(low, relu));
}
uint32_t emu_pack_f16(float high, float low, uint32_t relu) {
  return uint32_t(toF16(rectify(high, relu))) << 16 | toF16(rectify(low, relu));
}
uint32_t emu_pack_e4m3(float high, float low, uint32_t relu) {
  return uint32_t(toE4M3(rectify(high, relu))) << 8 |
         toE4M3(rectify(low, relu));
}
uint32_t emu_pack_e5m2(float high, float low, uint32_t relu) {
  return uint32_t(toE5M2(rectify(high, relu))) << 8 |
         toE5M2(rectify(low, relu));
}
uint32_t emu_unpack_f8(uint32_t bits, uint32_t isE5M2) {
  auto convert = [&](uint8_t byte) {
    return toF16(isE5M2 ? fromE5M2(byte) : fromE4M3(byte));
  };
  return uint32_t(convert(bits >> 8)) << 16 | convert(bits);
}

/// Generic mode only (0): four selector nibbles choose bytes of b:a.
uint32_t emu_prmt(uint32_t a, uint32_t b, uint32_t selector, uint32_t mode) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    unsigned nibble = selector >> (4 * i) & 15;
    uint8_t byte = bytes >> (8 * (nibble & 7));
    if (nibble & 8)
      byte = byte & 0x80 ? 0xff : 0;
    result |= uint32_t(byte) << (8 * i);
  }
  return result;
}
