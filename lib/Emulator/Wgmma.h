//===- Wgmma.h - Products of warpgroups -------------------------*- C++ -*-===//
///
/// A wgmma is complete when all 128 threads have issued it. Its result does not
/// exist in the issuing instruction: SSA values hold tokens, NaNs that name the
/// operation and the register, until a wait (or a use after one) turns them
/// into numbers. So a use of a pending accumulator is recognised in every mode.
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EMULATOR_WGMMA_H
#define PREFILL_LIB_EMULATOR_WGMMA_H

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

namespace prefill::emu {

struct Site;
struct Thread;

enum class Element : uint8_t {
  BF16,
  F16,
  TF32,
  E4M3,
  E5M2,
  S8,
  U8,
  S4,
  U4,
  F32,
  S32
};

/// What a product computes, as one word in generated code.
struct ProductKind {
  uint16_t m, n, k;
  Element a, b, accumulator;
  bool fromRegisters = false, transposeA = false, transposeB = false;
  bool negateA = false, negateB = false;
  bool saturate = false;

  uint64_t encode() const;
  static ProductKind decode(uint64_t word);
};

/// Accumulators of a chain of operations on the same registers.
struct Accumulators {
  static constexpr unsigned kRegisters = 128;
  uint32_t values[128][kRegisters];
  /// The last operation that writes them, and the last that did.
  uint32_t lastOp = 0;
};

struct WgmmaOp {
  uint32_t number = 0;
  uint64_t kind = 0;
  uint64_t descriptorA = 0, descriptorB = 0;
  bool scaleD = false;
  Site *site = nullptr;
  unsigned deposited = 0;
  /// It continues the accumulators of operation `previous`.
  bool chained = false;
  uint32_t previous = 0;
  std::shared_ptr<Accumulators> accumulators;
  /// A operands of threads, if they come from registers.
  uint32_t a[128][4];
};

/// A thread's view of its warpgroup's operations.
struct WgmmaThread {
  uint32_t issued = 0; ///< operations
  uint32_t waited = 0; ///< of those, complete for this thread
  bool fenced = false;
  std::vector<uint32_t> groups; ///< `issued` at each commit
};

struct WgmmaGroup {
  /// Operations not executed yet, in order of their numbers.
  std::deque<std::unique_ptr<WgmmaOp>> pending;
  uint32_t numOps = 0;
  /// Operations that all threads have issued.
  uint32_t complete = 0;
  std::vector<Thread *> waiting;
  /// Results by operation number modulo its size.
  std::vector<std::shared_ptr<Accumulators>> results;
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_WGMMA_H
