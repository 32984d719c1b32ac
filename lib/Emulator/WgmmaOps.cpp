//===- WgmmaOps.cpp - wgmma: issue, groups, execution ---------------------===//

#include "Machine.h"
#include "Product.h"
#include "Runtime.h"

using namespace llvm;
using namespace prefill::emu;

// A token is a signalling NaN, which no arithmetic yields (s32: next to the
// smallest number): 22 bits name operation and register.
static constexpr uint32_t kFloatTag = 0xff800000, kIntTag = 0x80000000,
                          kTagMask = 0xffc00000, kNumberModulus = 0x7fff;
static constexpr size_t kResults = 1024;

static uint32_t makeToken(uint32_t tag, uint32_t number, unsigned index) {
  return tag | (number % kNumberModulus + 1) << 7 | index;
}

namespace {
struct Token {
  bool valid = false;
  uint32_t number = 0;
  unsigned index = 0;
};
} // namespace

/// `issued` operations exist; the latest that fits is meant.
static Token readToken(uint32_t bits, uint32_t issued) {
  Token token;
  uint32_t tag = bits & kTagMask, payload = bits & ~kTagMask;
  if ((tag != kFloatTag && tag != kIntTag) || payload < 128 || !issued)
    return token;
  uint32_t residue = (payload >> 7) - 1, last = issued - 1;
  uint32_t back =
      (last % kNumberModulus + kNumberModulus - residue) % kNumberModulus;
  if (back > last)
    return token;
  token.valid = true;
  token.number = last - back;
  token.index = payload & 127;
  return token;
}

static WgmmaGroup &groupOf(Thread &thread) {
  return thread.block->groups[thread.index / 128];
}

static unsigned agentOf(const Thread &thread) {
  return kFirstGroupAgent + thread.index / 128;
}

/// The value of a token, if its operation is complete for the thread; else
/// none.
static bool lookUp(Machine &m, Site *site, uint32_t &bits, bool isUse) {
  Thread &thread = *m.current;
  WgmmaGroup &group = groupOf(thread);
  Token token = readToken(bits, group.numOps);
  if (!token.valid)
    return true;
  if (group.numOps - token.number > kResults) {
    m.report(FindingKind::PendingResult, site,
             "uses an accumulator of a wgmma long ago that no wait was given");
    return false;
  }
  std::shared_ptr<Accumulators> &result =
      group.results[token.number % kResults];
  if (token.number >= thread.wgmma.waited) {
    if (isUse)
      m.report(FindingKind::PendingResult, site,
               "uses accumulator register " + Twine(token.index) +
                   " of a wgmma that has not been waited for");
    return false;
  }
  if (result->lastOp != token.number) {
    m.report(FindingKind::PendingResult, site,
             "uses accumulator register " + Twine(token.index) +
                 " of a wgmma whose registers a later wgmma has overwritten");
    return false;
  }
  bits = result->values[thread.index % 128][token.index];
  return true;
}

uint32_t emu_resolve(Site *site, uint32_t bits) {
  uint32_t value = bits;
  // A pending value becomes an ordinary NaN: reported once, not everywhere.
  return lookUp(*machine, site, value, /*isUse=*/true) ? value : 0x7fffffff;
}

void emu_wgmma_fence(Site *site) {
  Thread &thread = *machine->current;
  if (thread.index % 128 == 0)
    ++site->count;
  thread.wgmma.fenced = true;
}

void emu_wgmma_commit(Site *site) {
  Thread &thread = *machine->current;
  if (thread.index % 128 == 0)
    ++site->count;
  thread.wgmma.groups.push_back(thread.wgmma.issued);
  thread.wgmma.fenced = false;
}

//===----------------------------------------------------------------------===//
// Operands in shared memory
//===----------------------------------------------------------------------===//

namespace {
/// A matrix descriptor: where 16 bytes (8 elements of 16 bits) begin.
struct Matrix {
  uint32_t start, leading, stride, span;

  explicit Matrix(uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4) {
    // 0: none, 1: 128 bytes, 2: 64, 3: 32.
    unsigned mode = bits >> 62;
    span = mode ? 256u >> mode : 0;
  }

  uint32_t swizzled(uint32_t address) const {
    address &= SharedMemory::kWindow - 1;
    return span ? address ^ ((address >> 7 & (span / 16 - 1)) << 4) : address;
  }
  /// Rows of k bytes: the chunk of 16 bytes at byte `at` of row `row`.
  uint32_t alongK(unsigned row, unsigned at) const {
    if (!span)
      return swizzled(start + row / 8 * stride + at / 16 * leading +
                      row % 8 * 16);
    return swizzled(start + row / 8 * stride + row % 8 * span + at);
  }
  /// Transposed (16-bit elements): 8 elements of rows `row`.. at depth k.
  uint32_t acrossK(unsigned row, unsigned k) const {
    if (!span)
      return swizzled(start + row / 8 * stride + k / 8 * leading + k % 8 * 16);
    unsigned atom = span / 2;
    return swizzled(start + row / atom * leading + k / 8 * stride +
                    k % 8 * span + row % atom * 2);
  }
};
} // namespace

/// Calls `chunk(row, element along k, address)` for all 16-byte chunks of the
/// operand; `row` and not k runs along a chunk if it is transposed.
template <typename Chunk>
static void forChunks(const Matrix &matrix, unsigned rows, unsigned k,
                      unsigned bits, bool transposed, Chunk chunk) {
  unsigned step = 128 / bits;
  if (transposed) {
    for (unsigned at = 0; at < k; ++at)
      for (unsigned row = 0; row < rows; row += step)
        chunk(row, at, matrix.acrossK(row, at));
  } else {
    for (unsigned row = 0; row < rows; ++row)
      for (unsigned at = 0; at < k; at += step)
        chunk(row, at, matrix.alongK(row, at * bits / 8));
  }
}

/// Reads rows x k elements into `to`, k-major (`to[k][row]`).
template <typename T>
static void fetch(SharedMemory &memory, uint64_t descriptor, Element element,
                  unsigned rows, unsigned k, bool transposed, T *to) {
  unsigned bits = bitsOfElement(element), step = 128 / bits, per = 32 / bits;
  forChunks(Matrix(descriptor), rows, k, bits, transposed,
            [&](unsigned row, unsigned at, uint32_t address) {
              uint32_t words[4];
              std::memset(words, 0xff, sizeof(words));
              if (memory.contains(address, 16))
                std::memcpy(words, memory.data(address), 16);
              for (unsigned e = 0; e < step; ++e) {
                T value = extract<T>(element, words[e / per], e % per);
                if (transposed)
                  to[at * rows + row + e] = value;
                else
                  to[(at + e) * rows + row] = value;
              }
            });
}

//===----------------------------------------------------------------------===//
// Execution
//===----------------------------------------------------------------------===//

/// sums[row][column] += a[k][row] * b[k][column]
// (Sanitizers are not ready yet when the loader chooses a clone.)
#if defined(__x86_64__) && defined(__clang__) &&                               \
    !__has_feature(address_sanitizer)
__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
static void multiplyFloat(float *sums, const float *a, const float *b,
                          unsigned n, unsigned depth) {
  for (unsigned row = 0; row < 64; ++row)
    for (unsigned k = 0; k < depth; ++k) {
      float factor = a[k * 64 + row];
      for (unsigned column = 0; column < n; ++column)
        sums[row * n + column] += factor * b[k * n + column];
    }
}

static void multiplyInt(int32_t *sums, const int32_t *a, const int32_t *b,
                        unsigned n, unsigned depth) {
  for (unsigned row = 0; row < 64; ++row)
    for (unsigned k = 0; k < depth; ++k)
      for (unsigned column = 0; column < n; ++column)
        sums[row * n + column] += a[k * 64 + row] * b[k * n + column];
}

template <typename T>
static void execute(SharedMemory &memory, WgmmaOp &op) {
  ProductKind kind = ProductKind::decode(op.kind);
  static thread_local std::vector<T> a, b, sums;
  a.resize(64 * kind.k);
  b.resize(size_t(kind.n) * kind.k);
  sums.assign(64 * size_t(kind.n), 0);
  if (!kind.fromRegisters) {
    fetch<T>(memory, op.descriptorA, kind.a, 64, kind.k, kind.transposeA,
             a.data());
  } else {
    unsigned per = 32 / bitsOfElement(kind.a);
    for (unsigned thread = 0; thread < 128; ++thread)
      for (unsigned reg = 0; reg < 4; ++reg)
        for (unsigned e = 0; e < per; ++e) {
          unsigned row = thread / 32 * 16 + thread % 32 / 4 + reg % 2 * 8;
          unsigned k = reg / 2 * 4 * per + thread % 4 * per + e;
          a[k * 64 + row] = extract<T>(kind.a, op.a[thread][reg], e);
        }
  }
  fetch<T>(memory, op.descriptorB, kind.b, kind.n, kind.k, kind.transposeB,
           b.data());
  if (kind.negateA != kind.negateB)
    for (T &value : a)
      value = -value;
  if constexpr (std::is_integral_v<T>)
    multiplyInt(sums.data(), a.data(), b.data(), kind.n, kind.k);
  else
    multiplyFloat(sums.data(), a.data(), b.data(), kind.n, kind.k);
  bool half = kind.accumulator == Element::F16;
  for (unsigned thread = 0; thread < 128; ++thread)
    for (unsigned i = 0; i < kind.n / 2u; ++i) {
      unsigned row = thread / 32 * 16 + thread % 32 / 4 + (i >> 1 & 1) * 8;
      unsigned column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      T value = sums[row * kind.n + column];
      uint32_t &word = op.accumulators->values[thread][half ? i / 2 : i];
      if (half) {
        unsigned shift = 16 * (i % 2);
        float old = op.scaleD ? fromF16(uint16_t(word >> shift)) : 0.f;
        word = (word & ~(0xffffu << shift)) |
               uint32_t(toF16(old + float(value))) << shift;
      } else {
        word = addTo<T>(op.scaleD ? word : 0, value, kind.saturate);
      }
    }
}

static void executeUntil(Machine &m, WgmmaGroup &group, uint32_t number) {
  while (!group.pending.empty() && group.pending.front()->number < number) {
    WgmmaOp &op = *group.pending.front();
    if (ProductKind::decode(op.kind).accumulator == Element::S32)
      execute<int32_t>(m.shared(), op);
    else
      execute<float>(m.shared(), op);
    group.pending.pop_front();
  }
}

/// All threads have issued `op`: check what it reads.
static void checkOperands(Machine &m, WgmmaOp &op) {
  ProductKind kind = ProductKind::decode(op.kind);
  Block &block = *m.current->block;
  unsigned first = m.current->index / 128 * 128;
  Clock known;
  for (unsigned warp = first / 32; warp < first / 32 + 4; ++warp)
    known.join(block.warps[warp].clock);
  SharedMemory::Access access = {agentOf(*m.current), op.number + 1, &known};
  auto check = [&](uint64_t descriptor, Element element, unsigned rows,
                   bool transposed) {
    bool bad = false;
    forChunks(Matrix(descriptor), rows, kind.k, bitsOfElement(element),
              transposed, [&](unsigned, unsigned, uint32_t address) {
                if (bad)
                  return;
                if (m.sharedRead(op.site, address, 16, 16, access))
                  m.checkProxy(op.site, address, 16);
                else
                  bad = true;
              });
  };
  if (!kind.fromRegisters)
    check(op.descriptorA, kind.a, 64, kind.transposeA);
  check(op.descriptorB, kind.b, kind.n, kind.transposeB);
  for (unsigned warp = first / 32; warp < first / 32 + 4; ++warp)
    Machine::advance(block.warps[warp]);
}

void emu_wgmma(Site *site, uint64_t kindWord, uint32_t scaleD,
               uint32_t *registers, uint64_t descriptorA,
               uint64_t descriptorB) {
  Machine &m = *machine;
  Thread &thread = *m.current;
  WgmmaGroup &group = groupOf(thread);
  ProductKind kind = ProductKind::decode(kindWord);
  unsigned mine = thread.index % 128, count = kind.n / 2;
  if (kind.accumulator == Element::F16)
    count = kind.n / 4;
  if (kind.fromRegisters)
    descriptorA = 0;
  if (thread.index / 128 * 128 + 128 > thread.block->threads.size())
    return m.fatal(FindingKind::Divergence, site,
                   "the last warpgroup of the block is not complete");
  if (group.results.empty())
    group.results.resize(kResults);

  // Operations are numbered alike in all threads of the warpgroup.
  uint32_t number = thread.wgmma.issued;
  bool isNew = number == group.numOps;
  Token chain;
  if (scaleD) {
    chain = readToken(registers[0], number);
    if (chain.valid && chain.index != 0)
      chain.valid = false;
  }
  if (isNew) {
    ++group.numOps;
    auto created = std::make_unique<WgmmaOp>();
    created->number = number;
    created->kind = kindWord;
    created->descriptorA = descriptorA;
    created->descriptorB = descriptorB;
    created->scaleD = scaleD;
    created->site = site;
    std::shared_ptr<Accumulators> &last =
        group.results[chain.number % kResults];
    if (chain.valid && last && last->lastOp == chain.number)
      created->accumulators = last;
    else
      created->accumulators = std::make_shared<Accumulators>();
    created->chained = chain.valid;
    created->previous = chain.number;
    created->accumulators->lastOp = number;
    group.results[number % kResults] = created->accumulators;
    group.pending.push_back(std::move(created));
  }
  if (group.pending.empty() || number < group.pending.front()->number)
    return m.fatal(FindingKind::Divergence, site,
                   "the other warps of the warpgroup are elsewhere");
  WgmmaOp &op = *group.pending[number - group.pending.front()->number];
  if (op.site != site)
    return m.fatal(FindingKind::Divergence, site,
                   "other threads of the warpgroup are at " + op.site->opcode +
                       ", " + op.site->where);
  if (op.kind != kindWord || op.descriptorA != descriptorA ||
      op.descriptorB != descriptorB || op.scaleD != bool(scaleD))
    return m.fatal(FindingKind::Collective, site,
                   "descriptors or scale-d differ within the warpgroup");
  if (!thread.wgmma.fenced)
    m.report(FindingKind::MissingFence, site,
             "no wgmma.fence since the last commit_group");
  if (scaleD) {
    for (unsigned i = 0; i < count; ++i) {
      Token token = readToken(registers[i], number);
      bool inPlace = token.valid && op.chained && token.index == i &&
                     token.number == op.previous;
      if (inPlace)
        continue;
      uint32_t value = registers[i];
      if (op.chained || !lookUp(m, site, value, /*isUse=*/true)) {
        m.report(FindingKind::PendingResult, site,
                 "accumulator register " + Twine(i) +
                     " is not the one of the pending wgmma it continues");
        value = 0x7fffffff;
      }
      op.accumulators->values[mine][i] = value;
    }
  }
  if (kind.fromRegisters)
    std::memcpy(op.a[mine], registers + 128, 16);
  uint32_t tag = kind.accumulator == Element::S32 ? kIntTag : kFloatTag;
  for (unsigned i = 0; i < count; ++i)
    registers[i] = makeToken(tag, number, i);
  ++thread.wgmma.issued;
  if (++op.deposited < 128)
    return;
  ++site->count;
  checkOperands(m, op);
  group.complete = number + 1;
  if (!m.options.late)
    executeUntil(m, group, number + 1);
  std::vector<Thread *> waiting;
  std::swap(waiting, group.waiting);
  for (Thread *other : waiting)
    m.wake(other);
}

void emu_wgmma_wait(Site *site, uint32_t pending, uint32_t *registers,
                    uint32_t count) {
  Machine &m = *machine;
  Thread &thread = *m.current;
  WgmmaGroup &group = groupOf(thread);
  if (thread.index % 128 == 0)
    ++site->count;
  std::vector<uint32_t> &groups = thread.wgmma.groups;
  if (groups.size() > pending) {
    uint32_t until = groups[groups.size() - 1 - pending];
    while (group.complete < until) {
      group.waiting.push_back(&thread);
      m.block(Wait::Wgmma, site, 0);
    }
    executeUntil(m, group, until);
    if (until > thread.wgmma.waited) {
      thread.wgmma.waited = until;
      thread.warp->clock.learn(agentOf(thread), until);
    }
    groups.erase(groups.begin(), groups.end() - pending);
  }
  // With none left pending, a register that is was never committed.
  for (uint32_t i = 0; i < count; ++i)
    if (!lookUp(m, site, registers[i], /*isUse=*/pending == 0) && pending == 0)
      registers[i] = 0x7fffffff;
}
