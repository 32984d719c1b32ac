//===- Copies.cpp - cp.async, bulk and tensor copies ----------------------===//

#include "Machine.h"
#include "Runtime.h"
#include "TensorMap.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace prefill::emu;

static std::string hex(uint64_t value) { return "0x" + utohexstr(value, true); }

//===----------------------------------------------------------------------===//
// cp.async
//===----------------------------------------------------------------------===//

static unsigned copyAgent(const Thread &thread) {
  return kFirstCopyAgent + thread.warp->index;
}

static void perform(Block &block, const CopyOp &copy) {
  char *to = block.shared.data(copy.destination);
  if (copy.sourceSize)
    std::memcpy(to, copy.source, copy.sourceSize);
  std::memset(to + copy.sourceSize, 0, copy.size - copy.sourceSize);
}

/// Performs the thread's copies up to `time`.
static void performUntil(Thread &thread, uint32_t time) {
  while (!thread.copies.empty() && thread.copies.front().time <= time) {
    perform(*thread.block, thread.copies.front());
    thread.copies.pop_front();
  }
}

void emu_cp_async(Site *site, uint64_t to, uint64_t from, uint32_t size,
                  uint32_t sourceSize) {
  ++site->count;
  Machine &m = *machine;
  Thread &thread = *m.current;
  if (sourceSize > size)
    return m.report(FindingKind::OutOfRange, site,
                    "copies " + Twine(sourceSize) + " of " + Twine(size) +
                        " bytes");
  // Both ends are aligned to the full size, also when less is copied.
  const char *source = m.scratch;
  if (sourceSize) {
    source = m.globalAccess(site, from, sourceSize, size, false);
    if (!source)
      return;
  }
  SharedMemory::Access access = {copyAgent(thread), thread.copyTime,
                                 &thread.warp->clock};
  if (!m.sharedWrite(site, to, size, size, access, true))
    return;
  CopyOp copy = {uint32_t(to), source, size, sourceSize, thread.copyTime, site};
  if (!m.options.late)
    return perform(*thread.block, copy);
  std::memset(m.shared().data(to), 0xff, size);
  thread.copies.push_back(copy);
}

void emu_cp_async_commit(Site *site) {
  ++site->count;
  Thread &thread = *machine->current;
  thread.copyGroups.push_back(thread.copyTime++);
}

void emu_cp_async_wait(Site *site, uint32_t pending) {
  ++site->count;
  Thread &thread = *machine->current;
  uint32_t time = 0;
  if (pending == ~0u) {
    time = thread.copyTime++;
  } else if (thread.copyGroups.size() > pending) {
    time = thread.copyGroups[thread.copyGroups.size() - 1 - pending];
  }
  performUntil(thread, time);
  thread.warp->clock.learn(copyAgent(thread), time);
}

void emu_cp_async_mbar(Site *site, uint64_t address, uint32_t noinc) {
  ++site->count;
  Machine &m = *machine;
  Thread *thread = m.current;
  MBarrier *barrier = m.findMBarrier(site, address);
  if (!barrier)
    return;
  if (!noinc)
    ++barrier->pending;
  uint32_t time = thread->copyTime++;
  // The arrival comes when all copies of the thread are done.
  Clock issuer = thread->warp->clock;
  auto arrival = [=, &m] {
    performUntil(*thread, time);
    if (barrier->pending < 1)
      return m.fatal(FindingKind::OverArrival, site,
                     "mbarrier " + hex(address) + " for " +
                         Twine(barrier->expected) + " arrivals gets more");
    --barrier->pending;
    barrier->arriving.join(issuer);
    barrier->arriving.learn(copyAgent(*thread), time);
    m.completeIfDue(*barrier);
  };
  Machine::advance(*thread->warp);
  if (m.options.late && barrier->waiting.empty())
    barrier->late.push_back(arrival);
  else
    arrival();
}

//===----------------------------------------------------------------------===//
// Bulk copies, of tensors and of plain bytes
//===----------------------------------------------------------------------===//

namespace prefill::emu {
struct TensorOp {
  EncodedTensorMap map = {};
  /// Plain copies.
  uint64_t global = 0;
  uint32_t shared = 0, bytes = 0;
  int32_t coordinates[5] = {};
  Block *block = nullptr;
  unsigned agent = 0;
  uint32_t time = 0;
  Site *site = nullptr;
  bool done = false;

  void load(Machine &m);
  void store(Machine &m);
  template <typename Row>
  void forRows(Machine &m, bool write, Row row);
};
} // namespace prefill::emu

/// Where the byte at `address` goes under a swizzle of `span` bytes: its
/// 16-byte chunk number within the span is XORed with the number of its
/// 128-byte line.
static uint32_t swizzle(uint32_t address, uint32_t span) {
  if (!span)
    return address;
  return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

/// Calls `row(shared offset, global bytes, first, last)` for each row of the
/// box: bytes [first, last) of the row lie in the tensor, at `global`.
template <typename Row>
void TensorOp::forRows(Machine &m, bool write, Row row) {
  uint32_t element = map.elementBytes, inner = map.sizes[0] * element;
  uint32_t rows = 1;
  for (unsigned i = 1; i < map.rank; ++i)
    rows *= map.sizes[i];
  int64_t first = std::max<int64_t>(0, -int64_t(coordinates[0]));
  int64_t last = std::min<int64_t>(map.sizes[0], int64_t(map.dims[0]) -
                                                     int64_t(coordinates[0]));
  for (uint32_t r = 0; r < rows; ++r) {
    uint32_t rest = r;
    int64_t at = map.base + (int64_t(coordinates[0]) + first) * element;
    bool inside = first < last;
    for (unsigned i = 1; i < map.rank; ++i) {
      int64_t x = int64_t(coordinates[i]) + rest % map.sizes[i];
      rest /= map.sizes[i];
      inside &= x >= 0 && x < int64_t(map.dims[i]);
      at += x * int64_t(map.strides[i - 1]);
    }
    char *global = nullptr;
    uint32_t begin = 0, end = 0;
    if (inside) {
      begin = first * element;
      end = last * element;
      global = m.globalAccess(site, at, end - begin, 1, write);
      if (!global)
        begin = end = 0;
    }
    row(r * inner, global, begin, end);
  }
}

void TensorOp::load(Machine &m) {
  SharedMemory &memory = block->shared;
  if (!map.magic) {
    std::memcpy(memory.data(shared), reinterpret_cast<void *>(global), bytes);
    return;
  }
  uint32_t inner = map.sizes[0] * map.elementBytes;
  forRows(m, false,
          [&](uint32_t offset, const char *from, uint32_t begin, uint32_t end) {
            char row[2048] = {};
            if (end > begin)
              std::memcpy(row + begin, from, end - begin);
            for (uint32_t i = 0; i < inner; i += 16)
              std::memcpy(
                  memory.data(swizzle(shared + offset + i, map.swizzleBytes)),
                  row + i, 16);
          });
}

void TensorOp::store(Machine &m) {
  if (done)
    return;
  done = true;
  SharedMemory &memory = block->shared;
  if (!map.magic) {
    std::memcpy(reinterpret_cast<void *>(global), memory.data(shared), bytes);
    return;
  }
  uint32_t inner = map.sizes[0] * map.elementBytes;
  forRows(
      m, true, [&](uint32_t offset, char *to, uint32_t begin, uint32_t end) {
        char row[2048];
        for (uint32_t i = 0; i < inner; i += 16)
          std::memcpy(
              row + i,
              memory.data(swizzle(shared + offset + i, map.swizzleBytes)), 16);
        if (end > begin)
          std::memcpy(to, row + begin, end - begin);
      });
}

/// The operation, or null if its descriptor or shared end is not usable.
static std::shared_ptr<TensorOp> makeTensorOp(Machine &m, Site *site,
                                              uint64_t shared, const void *map,
                                              uint32_t rank,
                                              const int32_t *coordinates) {
  ++site->count;
  auto op = std::make_shared<TensorOp>();
  std::memcpy(&op->map, map, sizeof(op->map));
  if (op->map.magic != EncodedTensorMap::kMagic) {
    m.fatal(FindingKind::OutOfRange, site, "the operand is no tensor map");
    return nullptr;
  }
  if (op->map.rank != rank) {
    m.fatal(FindingKind::OutOfRange, site,
            "the tensor map has " + Twine(op->map.rank) + " dimensions, not " +
                Twine(rank));
    return nullptr;
  }
  op->bytes = op->map.elementBytes;
  for (unsigned i = 0; i < rank; ++i) {
    op->bytes *= op->map.sizes[i];
    op->coordinates[i] = coordinates[i];
  }
  op->shared = shared;
  op->site = site;
  op->block = m.current->block;
  if (!m.checkShared(site, shared, op->bytes, 128))
    return nullptr;
  return op;
}

static SharedMemory::Access bulkAccess(Machine &m, TensorOp &op) {
  Block &block = *op.block;
  unsigned slot = block.nextBulkAgent++ % kBulkAgents;
  op.agent = kFirstBulkAgent + slot;
  op.time = ++block.bulkTime[slot];
  return {op.agent, op.time, &m.current->warp->clock};
}

static void startLoad(Machine &m, std::shared_ptr<TensorOp> op, Site *site,
                      uint64_t address) {
  MBarrier *barrier = m.findMBarrier(site, address);
  if (!barrier)
    return;
  if (!barrier->fenced)
    m.report(FindingKind::MissingFence, site,
             "signals mbarrier " + hex(address) + ", and thread " +
                 Twine(barrier->initThread) +
                 " ran no fence.mbarrier_init or fence.proxy.async after "
                 "initialising it");
  SharedMemory::Access access = bulkAccess(m, *op);
  if (!m.sharedWrite(site, op->shared, op->bytes, 16, access, false))
    return;
  Clock issuer = m.current->warp->clock;
  Machine::advance(*m.current->warp);
  auto arrival = [=, &m] {
    op->load(m);
    barrier->transactions -= op->bytes;
    barrier->arriving.join(issuer);
    barrier->arriving.learn(op->agent, op->time);
    m.completeIfDue(*barrier);
  };
  if (m.options.late && barrier->waiting.empty()) {
    std::memset(op->block->shared.data(op->shared), 0xff, op->bytes);
    barrier->late.push_back(arrival);
  } else {
    arrival();
  }
}

void emu_tensor_load(Site *site, uint64_t to, uint64_t mbarrier,
                     const void *map, uint32_t rank,
                     const int32_t *coordinates) {
  Machine &m = *machine;
  if (auto op = makeTensorOp(m, site, to, map, rank, coordinates))
    startLoad(m, op, site, mbarrier);
}

/// A plain copy; both ends are checked here, for global memory may go late.
static std::shared_ptr<TensorOp> makeBulkOp(Machine &m, Site *site,
                                            uint64_t shared, uint64_t global,
                                            uint32_t size, bool store) {
  ++site->count;
  auto op = std::make_shared<TensorOp>();
  op->shared = shared;
  op->global = global;
  op->bytes = size;
  op->site = site;
  op->block = m.current->block;
  if (size % 16) {
    m.report(FindingKind::Misaligned, site,
             Twine(size) + " bytes are not a multiple of 16");
    return nullptr;
  }
  if (!m.checkShared(site, shared, size, 16) ||
      !m.globalAccess(site, global, size, 16, store))
    return nullptr;
  return op;
}

void emu_bulk_load(Site *site, uint64_t to, uint64_t from, uint32_t size,
                   uint64_t mbarrier) {
  Machine &m = *machine;
  if (auto op = makeBulkOp(m, site, to, from, size, false))
    startLoad(m, op, site, mbarrier);
}

static void startStore(Machine &m, std::shared_ptr<TensorOp> op, Site *site) {
  m.checkProxy(site, op->shared, op->bytes);
  SharedMemory::Access access = bulkAccess(m, *op);
  if (!m.sharedRead(site, op->shared, op->bytes, 16, access))
    return;
  if (!m.options.late)
    op->store(m);
  m.current->openStores.push_back(std::move(op));
}

void emu_tensor_store(Site *site, uint64_t from, const void *map, uint32_t rank,
                      const int32_t *coordinates) {
  Machine &m = *machine;
  if (auto op = makeTensorOp(m, site, from, map, rank, coordinates))
    startStore(m, op, site);
}

void emu_bulk_store(Site *site, uint64_t to, uint64_t from, uint32_t size) {
  Machine &m = *machine;
  if (auto op = makeBulkOp(m, site, from, to, size, true))
    startStore(m, op, site);
}

void emu_bulk_commit(Site *site) {
  ++site->count;
  Thread &thread = *machine->current;
  thread.storeGroups.push_back(std::move(thread.openStores));
  thread.openStores.clear();
}

void emu_bulk_wait(Site *site, uint32_t pending) {
  ++site->count;
  Machine &m = *machine;
  Thread &thread = *m.current;
  while (thread.storeGroups.size() > pending) {
    for (auto &op : thread.storeGroups.front()) {
      op->store(m);
      thread.warp->clock.learn(op->agent, op->time);
    }
    thread.storeGroups.pop_front();
  }
}

//===----------------------------------------------------------------------===//
// What must not be left behind
//===----------------------------------------------------------------------===//

void Machine::checkExit(Thread &thread) {
  size_t stores = thread.openStores.size();
  Site *site = stores ? thread.openStores.front()->site : nullptr;
  for (auto &group : thread.storeGroups)
    for (auto &op : group) {
      ++stores;
      site = op->site;
      op->store(*this);
    }
  if (stores)
    report(FindingKind::MissingWait, site,
           "the thread exits with " + Twine(stores) +
               " bulk stores that read shared memory and were not waited for");
  if (thread.wgmma.waited < thread.wgmma.issued)
    report(FindingKind::MissingWait, nullptr,
           "the thread exits with " +
               Twine(thread.wgmma.issued - thread.wgmma.waited) +
               " wgmma operations that were not waited for");
  performUntil(thread, ~0u);
}

void Machine::checkBlockEnd(Block &block) {
  current = &block.threads.front();
  for (auto &[address, barrier] : block.mbarriers) {
    runLate(barrier);
    if (barrier.valid && barrier.transactions)
      report(FindingKind::MissingWait, nullptr,
             "the block ends with " + Twine(barrier.transactions) +
                 " bytes outstanding on mbarrier " + hex(address));
  }
  current = nullptr;
}
