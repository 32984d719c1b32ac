//===- Machine.h - The state of a running launch ----------------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_MACHINE_H
#define PREFILL_LIB_EMULATOR_MACHINE_H

#include "Fiber.h"
#include "Memory.h"
#include "Shared.h"
#include "Wgmma.h"
#include "prefill/Emulator/Emulator.h"
#include "llvm/ADT/Twine.h"
#include <deque>
#include <functional>
#include <set>

namespace prefill::emu {

/// An instruction of the kernel that the emulator executes or checks.
struct Site {
  std::string opcode;
  /// "%12 in block %bb3", with a source line if there is one.
  std::string where;
  uint64_t count = 0;
};

struct Block;
struct Warp;

enum class Wait { None, Warp, Barrier, MBarrier, Wgmma, Registers, Memory };

/// A copy of cp.async, kept until done.
struct CopyOp {
  uint32_t destination;
  const void *source;
  uint32_t size, sourceSize;
  /// Of the thread's cp.async agent.
  uint32_t time;
  Site *site;
};

struct TensorOp;

struct Thread {
  Context context;
  Block *block = nullptr;
  Warp *warp = nullptr;
  unsigned index = 0, lane = 0;
  uintptr_t stackEnd = 0; ///< of its private memory
  Dim3 id;
  bool done = false;
  Wait wait = Wait::None;
  Site *waitSite = nullptr;
  uint64_t waitFor = 0; ///< barrier or mbarrier
  uint32_t waitPhase = 0;
  /// Waits, but goes on if nothing else can (try_wait).
  bool polls = false;
  uint64_t iterations = 0;
  /// Event number of the last fence.proxy.async.
  uint32_t proxyFence = 0;

  // cp.async: time of the open group, those committed, and copies not done.
  uint32_t copyTime = 1;
  std::vector<uint32_t> copyGroups;
  size_t copyGroupsDone = 0;
  std::deque<CopyOp> copies;

  // cp.async.bulk out of shared memory.
  std::vector<std::shared_ptr<TensorOp>> openStores;
  std::deque<std::vector<std::shared_ptr<TensorOp>>> storeGroups;

  WgmmaThread wgmma;
};

/// A rendezvous of lanes; the last one does the work.
struct Collective {
  uint32_t mask = 0, arrived = 0;
  Site *site = nullptr;
  uint64_t key = 0;
  uint64_t generation = 0;
  void *slots[32];
};

struct Warp {
  Block *block = nullptr;
  unsigned index = 0;
  uint32_t live = 0;
  Clock clock;
  bool accessed = false;
  Collective collectives[4];
  unsigned registers = 0;
  uint32_t now() const { return clock.at[index]; }
};

struct NamedBarrier {
  unsigned expected = 0, arrived = 0;
  bool all = false;
  uint64_t generation = 0;
  Clock clock;
  /// Bit a thread that arrived in this generation.
  std::vector<bool> members;
  std::vector<Thread *> waiting;
  Site *site = nullptr;
};

struct MBarrier {
  bool valid = false;
  uint32_t expected = 0;
  int32_t pending = 0;
  int64_t transactions = 0;
  uint64_t phase = 0;
  uint32_t initThread = 0;
  bool fenced = false;
  uint32_t initTime = 0; ///< of the initialising warp
  Clock arriving, completed;
  /// Late mode: work that signals this barrier.
  std::deque<std::function<void()>> late;
  std::vector<Thread *> waiting;
};

struct Block {
  Dim3 id;
  SharedMemory &shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<WgmmaGroup> groups;
  unsigned liveThreads = 0;
  /// The last one is the cluster's.
  static constexpr unsigned kNumBarriers = 17;
  NamedBarrier barriers[kNumBarriers];
  std::map<uint32_t, MBarrier> mbarriers;
  uint32_t bulkTime[kBulkAgents] = {};
  unsigned nextBulkAgent = 0;
  unsigned freeRegisters = 0;
  std::vector<Thread *> registerWaiters;

  explicit Block(SharedMemory &shared) : shared(shared) {}
};

/// One launch. Runtime functions find it in `machine`.
class Machine {
public:
  /// `entry(params)` runs a thread of the kernel.
  Machine(Device::State &device, const Launch &launch, const Options &options,
          uint32_t sharedBytes, void (*entry)(const void *),
          const void *params);

  void run(Report &report);

  /// Reports and goes on.
  void report(FindingKind kind, Site *site, const llvm::Twine &what);
  /// Reports and ends the launch; does not return to a fiber.
  void fatal(FindingKind kind, Site *site, const llvm::Twine &what);

  /// Puts the current thread to sleep until wake(); one that `polls` is also
  /// woken when nothing else can run.
  void block(Wait wait, Site *site, uint64_t waitFor, uint32_t phase = 0,
             bool polls = false);
  void wake(Thread *thread);
  /// Lets others run; for what polls memory.
  void yield();
  void exitThread();
  void runThread();

  /// Joins the lanes of `mask` at `site`; the last one calls `work(slots)`,
  /// with `mine` of each lane. `key` must be equal in all lanes.
  template <typename Work>
  void collect(Site *site, uint32_t mask, uint64_t key, void *mine, Work work) {
    Collective *collective = arrive(site, mask, key, mine);
    if (!collective)
      return;
    ++site->count;
    work(collective->slots);
    release(*collective);
  }

  /// Checked accesses; a bad one is reported and yields null.
  char *sharedRead(Site *site, uint64_t address, size_t size, size_t alignment,
                   const SharedMemory::Access &access);
  /// `generic`: through the generic proxy, not by an asynchronous unit.
  char *sharedWrite(Site *site, uint64_t address, size_t size, size_t alignment,
                    const SharedMemory::Access &access, bool generic);
  char *globalAccess(Site *site, uint64_t address, size_t size,
                     size_t alignment, bool isWrite, bool isAtomic = false);
  bool checkShared(Site *site, uint64_t address, size_t size, size_t alignment);
  /// Is what an asynchronous unit reads visible to it?
  void checkProxy(Site *site, uint32_t address, size_t size);
  SharedMemory::Access threadAccess();
  SharedMemory::Access warpAccess();

  /// The current warp's knowledge goes to `target`; the warp's time advances.
  void releaseTo(Clock &target);
  void acquire(const Clock &source) { current->warp->clock.join(source); }
  static void advance(Warp &warp);

  MBarrier *findMBarrier(Site *site, uint64_t address);
  void completeIfDue(MBarrier &barrier);
  /// Whoever asks for the state of `barrier` makes late work visible.
  static void runLate(MBarrier &barrier);

  SharedMemory &shared() { return current->block->shared; }

  const Options &options;
  const Launch &launch;
  Device::State &device;
  Thread *current = nullptr;
  /// Stamps fences and writes.
  uint32_t events = 1;
  /// Where a bad access goes.
  alignas(128) char scratch[4096];

private:
  Collective *arrive(Site *site, uint32_t mask, uint64_t key, void *mine);
  void release(Collective &collective);
  void startBlock(Block &block, Dim3 id, size_t slot);
  void threadGone(Block &block, Warp &warp);
  void checkExit(Thread &thread);
  void checkBlockEnd(Block &block);
  void reportConflict(Site *site, const SharedMemory::Conflict &conflict,
                      bool isWrite);
  void reportDeadlock();
  Thread *pick();
  uint64_t random();

  uint32_t sharedBytes;
  void (*entry)(const void *);
  const void *params;
  Report *result = nullptr;
  std::set<std::pair<unsigned, const Site *>> seen;
  std::deque<Thread *> ready;
  std::vector<Thread *> pollers;
  std::vector<std::unique_ptr<Block>> blocks;
  /// Of each resident block; used again by the next one in its place.
  std::vector<std::unique_ptr<SharedMemory>> sharedMemories;
  Stacks stacks;
  Context scheduler;
  uint64_t randomState;
  uint64_t progress = 0;
  bool stopped = false;
};

extern thread_local Machine *machine;

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_MACHINE_H
