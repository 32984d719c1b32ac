//===- Barriers.cpp - Named barriers and mbarriers ------------------------===//

#include "Machine.h"
#include "Runtime.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace prefill::emu;

static std::string hex(uint64_t value) { return "0x" + utohexstr(value, true); }

//===----------------------------------------------------------------------===//
// Named barriers
//===----------------------------------------------------------------------===//

static void complete(Machine &m, Block &block, NamedBarrier &barrier) {
  // Lanes of a warp must have come by the same instruction.
  for (size_t i = 1; i < barrier.waiting.size(); ++i) {
    Thread *a = barrier.waiting[i - 1], *b = barrier.waiting[i];
    if (a->warp == b->warp && a->waitSite != b->waitSite)
      m.report(FindingKind::Divergence, b->waitSite,
               "lanes of warp " + Twine(a->warp->index) +
                   " reach the barrier at different instructions; the other: " +
                   a->waitSite->where);
  }
  for (Thread *thread : barrier.waiting) {
    thread->warp->clock.join(barrier.clock);
    m.wake(thread);
  }
  barrier.waiting.clear();
  barrier.arrived = 0;
  barrier.expected = 0;
  barrier.all = false;
  barrier.clock = Clock();
  barrier.members.assign(block.threads.size(), false);
}

void emu_barrier(Site *site, uint32_t id, uint32_t count, uint32_t arriveOnly) {
  Machine &m = *machine;
  Thread &thread = *m.current;
  Block &block = *thread.block;
  if (thread.lane == 0)
    ++site->count;
  if (id >= Block::kNumBarriers)
    return m.fatal(FindingKind::Barrier, site,
                   "barrier " + Twine(id) + " does not exist (0..15)");
  NamedBarrier &barrier = block.barriers[id];
  bool all = count == 0;
  if (all)
    count = block.liveThreads;
  else if (count % 32 || count > block.threads.size())
    return m.fatal(FindingKind::Barrier, site,
                   "barrier " + Twine(id) + " for " + Twine(count) +
                       " threads: not a multiple of 32 up to " +
                       Twine(block.threads.size()));
  if (barrier.arrived && !(barrier.all && all) && barrier.expected != count)
    m.report(FindingKind::Barrier, site,
             "barrier " + Twine(id) + " for " + Twine(count) +
                 " threads, others gave " + Twine(barrier.expected) + " at " +
                 barrier.site->where);
  if (barrier.members[thread.index])
    return m.fatal(FindingKind::OverArrival, site,
                   "arrives twice at barrier " + Twine(id) +
                       " before it completes (" + Twine(barrier.arrived) +
                       " of " + Twine(barrier.expected) + " threads arrived)");
  barrier.expected = count;
  barrier.all = all;
  barrier.site = site;
  barrier.members[thread.index] = true;
  m.releaseTo(barrier.clock);
  ++barrier.arrived;
  if (barrier.arrived >= barrier.expected) {
    if (!arriveOnly) {
      thread.waitSite = site;
      thread.warp->clock.join(barrier.clock);
      barrier.waiting.push_back(&thread);
    }
    return complete(m, block, barrier);
  }
  if (arriveOnly)
    return;
  barrier.waiting.push_back(&thread);
  m.block(Wait::Barrier, site, id);
}

void Machine::threadGone(Block &block, Warp &warp) {
  Thread &thread = *current;
  for (Collective &collective : warp.collectives)
    if (collective.mask >> thread.lane & 1)
      fatal(FindingKind::Divergence, collective.site,
            "lane " + Twine(thread.lane) +
                " exits while other lanes of the warp wait for it");
  for (NamedBarrier &barrier : block.barriers) {
    if (!barrier.all || !barrier.arrived)
      continue;
    barrier.expected = block.liveThreads;
    if (barrier.arrived >= barrier.expected)
      complete(*this, block, barrier);
  }
}

//===----------------------------------------------------------------------===//
// mbarriers
//===----------------------------------------------------------------------===//

MBarrier *Machine::findMBarrier(Site *site, uint64_t address) {
  if (!checkShared(site, address, 8, 8))
    return nullptr;
  auto &all = current->block->mbarriers;
  auto found = all.find(address);
  if (found == all.end() || !found->second.valid) {
    fatal(FindingKind::Barrier, site,
          "no mbarrier was initialised at shared address " + hex(address));
    return nullptr;
  }
  MBarrier &barrier = found->second;
  Thread &by = current->block->threads[barrier.initThread];
  if (by.warp != current->warp &&
      current->warp->clock.at[by.warp->index] < barrier.initTime &&
      options.checkRaces)
    report(FindingKind::Race, site,
           "mbarrier " + hex(address) + " was initialised by thread " +
               Twine(by.index) + " without synchronisation in between");
  return &barrier;
}

void emu_mbar_init(Site *site, uint64_t address, uint32_t count) {
  Machine &m = *machine;
  ++site->count;
  if (count == 0 || count > 0xfffff)
    return m.fatal(FindingKind::Barrier, site,
                   "an mbarrier for " + Twine(count) + " arrivals");
  if (!m.sharedWrite(site, address, 8, 8, m.threadAccess(), true))
    return;
  m.shared().clearGenericWrite(address, 8);
  MBarrier &barrier = m.current->block->mbarriers[address];
  if (barrier.valid && !barrier.waiting.empty())
    m.report(FindingKind::Barrier, site,
             "mbarrier " + hex(address) +
                 " is initialised while threads wait for it");
  barrier = MBarrier();
  barrier.valid = true;
  barrier.expected = count;
  barrier.pending = count;
  barrier.initThread = m.current->index;
  barrier.initTime = m.current->warp->now();
}

void emu_mbar_inval(Site *site, uint64_t address) {
  Machine &m = *machine;
  ++site->count;
  MBarrier *barrier = m.findMBarrier(site, address);
  if (!barrier)
    return;
  if (!barrier->waiting.empty() || !barrier->late.empty())
    m.report(FindingKind::Barrier, site,
             "mbarrier " + hex(address) + " is invalidated while in use");
  barrier->valid = false;
  m.shared().setUninitialised(address, 8);
}

void Machine::completeIfDue(MBarrier &barrier) {
  if (barrier.pending != 0 || barrier.transactions != 0)
    return;
  barrier.pending = barrier.expected;
  ++barrier.phase;
  barrier.completed.join(barrier.arriving);
  std::vector<Thread *> waiting;
  std::swap(waiting, barrier.waiting);
  for (Thread *thread : waiting)
    wake(thread);
}

/// One arrival of `count`, and bytes still to come. Returns the phase.
uint64_t emu_mbar_arrive(Site *site, uint64_t address, uint32_t count,
                         uint32_t bytes, uint32_t drop) {
  Machine &m = *machine;
  ++site->count;
  MBarrier *barrier = m.findMBarrier(site, address);
  if (!barrier)
    return 0;
  uint64_t phase = barrier->phase;
  barrier->transactions += bytes;
  if (barrier->pending < int32_t(count)) {
    m.fatal(FindingKind::OverArrival, site,
            "mbarrier " + hex(address) + " for " + Twine(barrier->expected) +
                " arrivals gets more in phase " + Twine(phase & 1) +
                (barrier->transactions ? " (" + Twine(barrier->transactions) +
                                             " bytes are still to come)"
                                       : Twine("")));
    return 0;
  }
  barrier->pending -= count;
  if (drop)
    barrier->expected -= count;
  m.releaseTo(barrier->arriving);
  m.completeIfDue(*barrier);
  return phase;
}

void emu_mbar_expect_tx(Site *site, uint64_t address, uint32_t bytes) {
  ++site->count;
  if (MBarrier *barrier = machine->findMBarrier(site, address))
    barrier->transactions += bytes;
}

void emu_mbar_complete_tx(Site *site, uint64_t address, uint32_t bytes) {
  ++site->count;
  MBarrier *barrier = machine->findMBarrier(site, address);
  if (!barrier)
    return;
  barrier->transactions -= bytes;
  machine->completeIfDue(*barrier);
}

void Machine::runLate(MBarrier &barrier) {
  while (!barrier.late.empty()) {
    std::function<void()> work = std::move(barrier.late.front());
    barrier.late.pop_front();
    work();
  }
}

uint32_t emu_mbar_wait(Site *site, uint64_t address, uint64_t phase,
                       uint32_t isParity) {
  Machine &m = *machine;
  ++site->count;
  MBarrier *barrier = m.findMBarrier(site, address);
  if (!barrier)
    return 1;
  auto isComplete = [&] {
    return isParity ? (barrier->phase & 1) != (phase & 1)
                    : barrier->phase != phase;
  };
  if (!isComplete())
    m.runLate(*barrier);
  if (!isComplete()) {
    barrier->waiting.push_back(m.current);
    m.block(Wait::MBarrier, site, address, phase & 1, /*polls=*/true);
    barrier->waiting.erase(std::remove(barrier->waiting.begin(),
                                       barrier->waiting.end(), m.current),
                           barrier->waiting.end());
    if (!isComplete())
      m.runLate(*barrier);
  }
  if (!isComplete())
    return 0;
  m.acquire(barrier->completed);
  return 1;
}

//===----------------------------------------------------------------------===//
// Fences
//===----------------------------------------------------------------------===//

void emu_fence_proxy(Site *site) {
  ++site->count;
  Machine &m = *machine;
  m.current->proxyFence = ++m.events;
  // Covers the initialisation of mbarriers too.
  emu_fence_mbarrier_init(nullptr);
}

void emu_fence_mbarrier_init(Site *site) {
  if (site)
    ++site->count;
  Machine &m = *machine;
  for (auto &[address, barrier] : m.current->block->mbarriers)
    if (barrier.initThread == m.current->index)
      barrier.fenced = true;
}
