//===- Access.cpp - Checked accesses to shared and global memory ----------===//

#include "Machine.h"
#include "Runtime.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace prefill::emu;

static std::string hex(uint64_t value) { return "0x" + utohexstr(value, true); }

SharedMemory::Access Machine::threadAccess() {
  Warp &warp = *current->warp;
  warp.accessed = true;
  return {warp.index, warp.now(), &warp.clock, current->lane};
}

SharedMemory::Access Machine::warpAccess() {
  SharedMemory::Access access = threadAccess();
  access.lane = SharedMemory::kWholeWarp;
  return access;
}

void Machine::advance(Warp &warp) {
  if (!warp.accessed)
    return;
  warp.accessed = false;
  ++warp.clock.at[warp.index];
}

void Machine::releaseTo(Clock &target) {
  target.join(current->warp->clock);
  advance(*current->warp);
}

bool Machine::checkShared(Site *site, uint64_t address, size_t size,
                          size_t alignment) {
  if (!shared().contains(address, size)) {
    report(FindingKind::OutOfRange, site,
           Twine(size) + " bytes at shared address " + hex(address) +
               "; shared memory is " + hex(SharedMemory::kBase) + ".." +
               hex(shared().end()));
    return false;
  }
  if (address % alignment) {
    report(FindingKind::Misaligned, site,
           "shared address " + hex(address) + " is not a multiple of " +
               Twine(alignment));
    return false;
  }
  return true;
}

void Machine::reportConflict(Site *site, const SharedMemory::Conflict &conflict,
                             bool isWrite) {
  std::string other;
  unsigned agent = conflict.agent;
  bool pending = true;
  if (agent >= kFirstBulkAgent) {
    other = "a bulk (TMA) copy";
  } else if (agent >= kFirstCopyAgent) {
    other = "a cp.async of warp " + std::to_string(agent - kFirstCopyAgent);
  } else if (agent >= kFirstGroupAgent) {
    other = "a wgmma of warpgroup " + std::to_string(agent - kFirstGroupAgent);
  } else {
    pending = false;
    other = "warp " + std::to_string(agent);
    if (conflict.lane < 32)
      other += ", lane " + std::to_string(conflict.lane);
  }
  std::string verb = isWrite ? "writes" : "reads";
  std::string what = conflict.write ? " wrote" : " read";
  if (pending)
    what = conflict.write ? " writes and that has not been waited for"
                          : " reads and that has not been waited for";
  else
    what += " without synchronisation in between";
  report(pending && conflict.write && !isWrite ? FindingKind::MissingWait
                                               : FindingKind::Race,
         site,
         Twine(verb) + " shared address " + hex(conflict.address) + ", which " +
             other + what);
}

char *Machine::sharedRead(Site *site, uint64_t address, size_t size,
                          size_t alignment,
                          const SharedMemory::Access &access) {
  if (!checkShared(site, address, size, alignment))
    return nullptr;
  SharedMemory &memory = shared();
  if (options.checkRaces) {
    SharedMemory::Conflict conflict = memory.read(address, size, access);
    if (conflict.found)
      reportConflict(site, conflict, false);
  }
  if (options.checkUninitialised && !memory.isInitialised(address, size))
    report(FindingKind::Uninitialised, site,
           Twine(size) + " bytes at shared address " + hex(address) +
               " hold no value");
  return memory.data(address);
}

char *Machine::sharedWrite(Site *site, uint64_t address, size_t size,
                           size_t alignment, const SharedMemory::Access &access,
                           bool generic) {
  if (!checkShared(site, address, size, alignment))
    return nullptr;
  SharedMemory &memory = shared();
  if (options.checkRaces) {
    SharedMemory::Conflict conflict = memory.write(address, size, access);
    if (conflict.found)
      reportConflict(site, conflict, true);
  }
  memory.setInitialised(address, size);
  if (generic)
    memory.setGenericWrite(address, size, {++events, uint16_t(current->index)});
  else
    memory.clearGenericWrite(address, size);
  return memory.data(address);
}

void Machine::checkProxy(Site *site, uint32_t address, size_t size) {
  for (uint32_t at = address & ~15u; at < address + size; at += 16) {
    SharedMemory::GenericWrite write = shared().getGenericWrite(at);
    if (!write.event || current->proxyFence > write.event ||
        current->block->threads[write.thread].proxyFence > write.event)
      continue;
    report(FindingKind::MissingFence, site,
           "reads shared address " + hex(at) +
               " through the async proxy; thread " + Twine(write.thread) +
               " wrote it through the generic proxy and neither ran "
               "fence.proxy.async since");
    return;
  }
}

char *Machine::globalAccess(Site *site, uint64_t address, size_t size,
                            size_t alignment, bool isWrite, bool isAtomic) {
  Region *region = device.find(address, size);
  if (!region) {
    std::string where = "no buffer is registered";
    if (const Region *near = device.nearest(address)) {
      int64_t offset = address - near->base;
      where = "nearest buffer: '" + near->name + "' of " +
              std::to_string(near->bytes) + " bytes, offset " +
              std::to_string(offset);
    }
    report(FindingKind::OutOfRange, site,
           Twine(size) + " bytes at global address " + hex(address) + "; " +
               where);
    return nullptr;
  }
  size_t offset = address - region->base;
  if (address % alignment) {
    report(FindingKind::Misaligned, site,
           "offset " + Twine(offset) + " of '" + region->name +
               "' is not a multiple of " + Twine(alignment));
    return nullptr;
  }
  if (isWrite && region->readOnly) {
    report(FindingKind::OutOfRange, site,
           "writes offset " + Twine(offset) + " of the read-only '" +
               region->name + "'");
    return nullptr;
  }
  if ((!isWrite || isAtomic) && options.checkUninitialised &&
      !region->isWritten(offset, size))
    report(FindingKind::Uninitialised, site,
           Twine(size) + " bytes at offset " + Twine(offset) + " of '" +
               region->name + "' hold no value");
  if (isWrite)
    region->setWritten(offset, size);
  return reinterpret_cast<char *>(address);
}

//===----------------------------------------------------------------------===//
// Called by generated code
//===----------------------------------------------------------------------===//

void *emu_shared_access(Site *site, uint64_t address, uint32_t size,
                        uint32_t alignment, uint32_t flags) {
  ++site->count;
  Machine &m = *machine;
  char *at;
  // Volatile accesses are relaxed ones (PTX ISA): no race among themselves;
  // what they share with weak accesses is not looked at.
  bool isStrong = flags & (kAtomicAccess | kVolatileAccess);
  if (isStrong) {
    at = m.checkShared(site, address, size, alignment)
             ? m.shared().data(address)
             : nullptr;
    bool reads = !(flags & kWriteAccess) || (flags & kAtomicAccess);
    if (at && reads && !m.shared().isInitialised(address, size))
      at = m.sharedRead(site, address, size, alignment, m.threadAccess());
    if (at && (flags & kWriteAccess)) {
      m.shared().setInitialised(address, size);
      m.shared().setGenericWrite(address, size,
                                 {++m.events, uint16_t(m.current->index)});
    }
  } else if (flags & kWriteAccess) {
    at = m.sharedWrite(site, address, size, alignment, m.threadAccess(), true);
  } else {
    at = m.sharedRead(site, address, size, alignment, m.threadAccess());
  }
  if ((flags & kVolatileAccess) && !(flags & kWriteAccess))
    m.yield();
  return at ? at : m.scratch;
}

void *emu_global_access(Site *site, uint64_t address, uint32_t size,
                        uint32_t alignment, uint32_t flags) {
  Machine &m = *machine;
  if (flags & kGenericAccess) {
    auto window = reinterpret_cast<uintptr_t>(m.shared().windowBase());
    if (address - window < SharedMemory::kWindow)
      return emu_shared_access(site, address - window, size, alignment, flags);
    auto stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    // Buffers may lie right behind it.
    if (address >= stack && address < m.current->stackEnd)
      return reinterpret_cast<void *>(address);
  }
  ++site->count;
  // Spinning on memory must let the writer run.
  if ((flags & (kVolatileAccess | kAtomicAccess)) && !(flags & kWriteAccess))
    m.yield();
  char *at = m.globalAccess(site, address, size, alignment,
                            flags & kWriteAccess, flags & kAtomicAccess);
  return at ? at : m.scratch;
}

uint64_t emu_shared_window() {
  return reinterpret_cast<uintptr_t>(machine->shared().windowBase());
}

void emu_tick(Site *site) {
  Machine &m = *machine;
  if (++m.current->iterations > m.options.maxIterations)
    m.fatal(FindingKind::Endless, site,
            "went round its loops " + Twine(m.current->iterations) + " times");
}
