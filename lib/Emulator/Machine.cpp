//===- Machine.cpp - Scheduling of fibers, findings -----------------------===//

#include "Machine.h"
#include "llvm/Support/raw_ostream.h"
#include <algorithm>

using namespace llvm;
using namespace prefill::emu;

namespace prefill::emu {
thread_local Machine *machine = nullptr;
} // namespace prefill::emu

Machine::Machine(Device::State &device, const Launch &launch,
                 const Options &options, uint32_t sharedBytes,
                 void (*entry)(const void *), const void *paramPointers)
    : options(options), launch(launch), device(device),
      sharedBytes(sharedBytes), entry(entry), params(paramPointers),
      randomState(options.seed * 0x9e3779b97f4a7c15u + 1) {}

uint64_t Machine::random() {
  randomState ^= randomState << 13;
  randomState ^= randomState >> 7;
  randomState ^= randomState << 17;
  return randomState * 0x2545f4914f6cdd1du >> 16;
}

static void printDim(raw_ostream &os, const Dim3 &dim) {
  os << "(" << dim.x << "," << dim.y << "," << dim.z << ")";
}

void Machine::report(FindingKind kind, Site *site, const Twine &what) {
  ++result->numFindings;
  // One finding a kind and instruction: the others say the same of other
  // threads.
  std::pair<unsigned, const Site *> key(unsigned(kind), site);
  if (site && !seen.insert(key).second)
    return;
  if (result->findings.size() >= options.maxFindings)
    return;
  std::string text;
  raw_string_ostream os(text);
  os << getName(kind) << ": kernel " << launch.kernel;
  if (current) {
    os << ", block ";
    printDim(os, current->block->id);
    os << ", thread " << current->index;
  }
  os << ": " << what;
  if (site) {
    os << "; at " << site->opcode;
    if (!site->where.empty())
      os << ", " << site->where;
  }
  result->findings.push_back({kind, std::move(text)});
}

void Machine::fatal(FindingKind kind, Site *site, const Twine &what) {
  report(kind, site, what);
  stopped = true;
  // Never resumed: the launch is over.
  if (current)
    switchTo(current->context, scheduler);
}

void Machine::block(Wait wait, Site *site, uint64_t waitFor, uint32_t phase,
                    bool polls) {
  Thread &thread = *current;
  thread.wait = wait;
  thread.waitSite = site;
  thread.waitFor = waitFor;
  thread.waitPhase = phase;
  thread.polls = polls;
  if (polls)
    pollers.push_back(&thread);
  switchTo(thread.context, scheduler);
}

void Machine::wake(Thread *thread) {
  if (thread->wait == Wait::None)
    return;
  ++progress;
  if (thread->polls)
    pollers.erase(std::find(pollers.begin(), pollers.end(), thread));
  thread->wait = Wait::None;
  thread->polls = false;
  ready.push_back(thread);
}

void Machine::yield() { block(Wait::Memory, nullptr, 0, 0, true); }

Thread *Machine::pick() {
  size_t at = 0;
  if (options.seed) {
    at = random() % ready.size();
    std::swap(ready[at], ready.front());
  }
  Thread *thread = ready.front();
  ready.pop_front();
  return thread;
}

static void threadEntry() { machine->runThread(); }

void Machine::runThread() {
  entry(params);
  exitThread();
  abort();
}

void Machine::exitThread() {
  Thread &thread = *current;
  checkExit(thread);
  thread.done = true;
  ++progress;
  Block &block = *thread.block;
  --block.liveThreads;
  thread.warp->live &= ~(1u << thread.lane);
  threadGone(block, *thread.warp);
  switchTo(thread.context, scheduler);
}

void Machine::startBlock(Block &block, Dim3 id, size_t slot) {
  block.id = id;
  block.shared.reset(sharedBytes);
  unsigned count = launch.block.x * launch.block.y * launch.block.z;
  block.threads = std::vector<Thread>(count);
  block.warps = std::vector<Warp>((count + 31) / 32);
  block.groups = std::vector<WgmmaGroup>((count + 127) / 128);
  block.liveThreads = count;
  unsigned perThread = options.registersPerThread;
  if (!perThread)
    perThread = std::min(248u, 65536 / std::max(count, 32u) / 8 * 8);
  block.freeRegisters = 65536 - std::min(65536u, perThread * count);
  for (NamedBarrier &barrier : block.barriers)
    barrier.members.assign(count, false);
  for (size_t i = 0; i < block.warps.size(); ++i) {
    Warp &warp = block.warps[i];
    warp.block = &block;
    warp.index = i;
    warp.clock.at[i] = 1;
    warp.registers = perThread;
  }
  for (unsigned i = 0; i < count; ++i) {
    Thread &thread = block.threads[i];
    thread.block = &block;
    thread.index = i;
    thread.lane = i % 32;
    thread.warp = &block.warps[i / 32];
    thread.warp->live |= 1u << thread.lane;
    thread.id = {i % launch.block.x, i / launch.block.x % launch.block.y,
                 i / launch.block.x / launch.block.y};
    void *stack = stacks.get(slot * count + i);
    thread.stackEnd = reinterpret_cast<uintptr_t>(stack) + Stacks::kBytes;
    prepare(thread.context, stack, Stacks::kBytes, threadEntry);
    ready.push_back(&thread);
  }
}

void Machine::run(Report &report) {
  result = &report;
  report.sharedBytes = sharedBytes;
  Machine *outer = machine;
  machine = this;
  uint64_t total = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  std::vector<uint64_t> order(total);
  for (uint64_t i = 0; i < total; ++i)
    order[i] = i;
  if (options.seed)
    for (uint64_t i = total; i > 1; --i)
      std::swap(order[i - 1], order[random() % i]);
  uint64_t next = 0;
  unsigned resident = std::max(1u, options.residentBlocks);
  blocks.resize(resident);
  for (unsigned i = 0; i < resident; ++i)
    sharedMemories.push_back(std::make_unique<SharedMemory>());
  uint64_t progressAtPoll = 0;
  unsigned idlePolls = 0;
  while (!stopped) {
    bool any = false;
    for (size_t slot = 0; slot < resident; ++slot) {
      std::unique_ptr<Block> &block = blocks[slot];
      if (block && block->liveThreads == 0) {
        checkBlockEnd(*block);
        block.reset();
      }
      if (!block && next < total) {
        uint64_t i = order[next++];
        block = std::make_unique<Block>(*sharedMemories[slot]);
        startBlock(*block,
                   {uint32_t(i % launch.grid.x),
                    uint32_t(i / launch.grid.x % launch.grid.y),
                    uint32_t(i / launch.grid.x / launch.grid.y)},
                   slot);
      }
      any |= block != nullptr;
    }
    if (!any)
      break;
    while (!ready.empty() && !stopped) {
      current = pick();
      ++report.fiberSwitches;
      switchTo(scheduler, current->context);
      current = nullptr;
    }
    if (stopped)
      break;
    bool alive = llvm::any_of(blocks, [](const std::unique_ptr<Block> &block) {
      return block && block->liveThreads;
    });
    if (!alive)
      continue;
    bool finished =
        llvm::any_of(blocks, [](const std::unique_ptr<Block> &block) {
          return block && !block->liveThreads;
        });
    if (finished && next < total)
      continue;
    // Nobody can run. What polls looks again; if nothing comes of it for a
    // while, nothing ever will.
    idlePolls = progress == progressAtPoll ? idlePolls + 1 : 0;
    if (pollers.empty() || idlePolls > 8) {
      reportDeadlock();
      break;
    }
    std::vector<Thread *> again(pollers.begin(), pollers.end());
    for (Thread *thread : again)
      wake(thread);
    progressAtPoll = progress;
  }
  blocks.clear();
  ready.clear();
  machine = outer;
}

static void describeWait(raw_ostream &os, const Thread &thread) {
  Block &block = *thread.block;
  switch (thread.wait) {
  case Wait::Warp:
    os << "for other lanes of their warp";
    break;
  case Wait::Barrier: {
    const NamedBarrier &barrier = block.barriers[thread.waitFor];
    os << "at barrier " << thread.waitFor << " (" << barrier.arrived << " of "
       << barrier.expected << " threads arrived)";
    break;
  }
  case Wait::MBarrier: {
    const MBarrier &barrier = block.mbarriers[thread.waitFor];
    os << "for phase " << thread.waitPhase << " of mbarrier 0x";
    os.write_hex(thread.waitFor);
    os << " (" << barrier.pending << " of " << barrier.expected
       << " arrivals and " << barrier.transactions << " bytes missing in phase "
       << (barrier.phase & 1) << ")";
    break;
  }
  case Wait::Wgmma:
    os << "for other warps of their warpgroup to issue the wgmma";
    break;
  case Wait::Registers:
    os << "for " << thread.waitFor << " registers (" << block.freeRegisters
       << " free)";
    break;
  case Wait::Memory:
    os << "for a value in memory";
    break;
  case Wait::None:
    os << "ready";
    break;
  }
  if (thread.waitSite)
    os << " at " << thread.waitSite->opcode << ", " << thread.waitSite->where;
}

void Machine::reportDeadlock() {
  for (const std::unique_ptr<Block> &block : blocks) {
    if (!block || !block->liveThreads)
      continue;
    // Threads that wait in the same way are named together.
    std::vector<std::pair<std::string, std::vector<unsigned>>> groups;
    for (Thread &thread : block->threads) {
      if (thread.done)
        continue;
      if (!current)
        current = &thread;
      std::string how;
      raw_string_ostream os(how);
      describeWait(os, thread);
      auto same = llvm::find_if(
          groups, [&](const auto &group) { return group.first == how; });
      if (same == groups.end())
        same = groups.insert(groups.end(), {how, {}});
      same->second.push_back(thread.index);
    }
    std::string text = "no thread can go on:";
    raw_string_ostream os(text);
    for (auto &[how, members] : groups) {
      os << (&how == &groups.front().first ? " " : "; ");
      os << members.size() << (members.size() == 1 ? " thread (" : " threads (")
         << members.front();
      if (members.size() > 1)
        os << ".." << members.back();
      os << (members.size() == 1 ? ") waits " : ") wait ") << how;
    }
    unsigned exited = block->threads.size() - block->liveThreads;
    if (exited)
      os << "; " << exited << " exited";
    report(FindingKind::Deadlock, nullptr, text);
    current = nullptr;
    break;
  }
  stopped = true;
}

//===----------------------------------------------------------------------===//
// Rendezvous of lanes
//===----------------------------------------------------------------------===//

Collective *Machine::arrive(Site *site, uint32_t mask, uint64_t key,
                            void *mine) {
  Thread &thread = *current;
  Warp &warp = *thread.warp;
  uint32_t bit = 1u << thread.lane;
  if (!(mask & bit)) {
    fatal(FindingKind::Divergence, site,
          "lane " + Twine(thread.lane) +
              " executes it but is not in its mask 0x" +
              Twine::utohexstr(mask));
  }
  if (mask & ~warp.live)
    fatal(FindingKind::Divergence, site,
          "lanes 0x" + Twine::utohexstr(mask & ~warp.live) +
              " of its mask have exited");
  Collective *open = nullptr;
  for (Collective &collective : warp.collectives) {
    if (!collective.mask) {
      if (!open)
        open = &collective;
      continue;
    }
    if (!(collective.mask & mask))
      continue;
    if (collective.mask != mask || collective.site != site)
      fatal(FindingKind::Divergence, site,
            "lanes 0x" + Twine::utohexstr(collective.arrived) +
                " of the warp are at " + collective.site->opcode + ", " +
                collective.site->where);
    if (collective.key != key)
      fatal(FindingKind::Collective, site,
            "operands that must be the same in all lanes differ");
    open = &collective;
    break;
  }
  if (!open)
    fatal(FindingKind::Divergence, site,
          "the warp is at more than four collective instructions at once");
  if (!open->mask) {
    open->mask = mask;
    open->arrived = 0;
    open->site = site;
    open->key = key;
  }
  open->slots[thread.lane] = mine;
  open->arrived |= bit;
  if (open->arrived == mask)
    return open;
  block(Wait::Warp, site, 0);
  return nullptr;
}

void Machine::release(Collective &collective) {
  Warp &warp = *current->warp;
  Thread *threads = &warp.block->threads[warp.index * 32];
  uint32_t mask = collective.mask & ~(1u << current->lane);
  collective.mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1)
      wake(&threads[lane]);
}
