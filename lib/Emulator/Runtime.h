//===- Runtime.h - What generated code calls --------------------*- C++ -*-===//
///
/// One function an operation; `Site` is the instruction. Shared addresses are
/// offsets in the window, registers of fragments pass through a buffer.
//===----------------------------------------------------------------------===//

#ifndef PREFILL_LIB_EMULATOR_RUNTIME_H
#define PREFILL_LIB_EMULATOR_RUNTIME_H

#include <cstdint>

namespace prefill::emu {

struct Site;

enum AccessFlags : uint32_t {
  kWriteAccess = 1,
  kAtomicAccess = 2,
  kVolatileAccess = 4,
  /// The address may also be one of shared or private memory.
  kGenericAccess = 8
};

/// Special registers, the low two bits choose x, y, z.
enum class SpecialRegister : uint32_t {
  Tid = 0,
  Ntid = 4,
  Ctaid = 8,
  Nctaid = 12,
  Laneid = 16,
  Warpid,
  Nwarpid,
  LanemaskEq,
  LanemaskLt,
  LanemaskLe,
  LanemaskGt,
  LanemaskGe,
  Zero,
  One,
  DynamicSmemSize,
  TotalSmemSize,
  Clock,
};

enum class ShuffleMode : uint32_t { Up, Down, Bfly, Idx };
enum class VoteMode : uint32_t { All, Any, Uni, Ballot };
enum class ReduxOp : uint32_t {
  Add,
  UMin,
  UMax,
  Min,
  Max,
  And,
  Or,
  Xor,
  FMin,
  FMax
};
#define PREFILL_EMU_RUNTIME(X)                                                 \
  X(emu_shared_access)                                                         \
  X(emu_global_access)                                                         \
  X(emu_shared_window)                                                         \
  X(emu_copy)                                                                  \
  X(emu_fill)                                                                  \
  X(emu_tick)                                                                  \
  X(emu_special)                                                               \
  X(emu_shuffle)                                                               \
  X(emu_vote)                                                                  \
  X(emu_match)                                                                 \
  X(emu_redux)                                                                 \
  X(emu_elect)                                                                 \
  X(emu_active_mask)                                                           \
  X(emu_warp_sync)                                                             \
  X(emu_barrier)                                                               \
  X(emu_ldmatrix)                                                              \
  X(emu_stmatrix)                                                              \
  X(emu_mma)                                                                   \
  X(emu_cp_async)                                                              \
  X(emu_cp_async_commit)                                                       \
  X(emu_cp_async_wait)                                                         \
  X(emu_cp_async_mbar)                                                         \
  X(emu_mbar_init)                                                             \
  X(emu_mbar_inval)                                                            \
  X(emu_mbar_arrive)                                                           \
  X(emu_mbar_expect_tx)                                                        \
  X(emu_mbar_complete_tx)                                                      \
  X(emu_mbar_wait)                                                             \
  X(emu_tensor_load)                                                           \
  X(emu_tensor_store)                                                          \
  X(emu_bulk_load)                                                             \
  X(emu_bulk_store)                                                            \
  X(emu_bulk_commit)                                                           \
  X(emu_bulk_wait)                                                             \
  X(emu_fence_proxy)                                                           \
  X(emu_fence_mbarrier_init)                                                   \
  X(emu_wgmma_fence)                                                           \
  X(emu_wgmma)                                                                 \
  X(emu_wgmma_commit)                                                          \
  X(emu_wgmma_wait)                                                            \
  X(emu_resolve)                                                               \
  X(emu_setmaxnreg)                                                            \
  X(emu_division)                                                              \
  X(emu_trap)                                                                  \
  X(emu_unreachable)                                                           \
  X(emu_exit)                                                                  \
  X(emu_yield)                                                                 \
  X(emu_ex2)                                                                   \
  X(emu_lg2)                                                                   \
  X(emu_pack_bf16)                                                             \
  X(emu_pack_f16)                                                              \
  X(emu_pack_e4m3)                                                             \
  X(emu_pack_e5m2)                                                             \
  X(emu_unpack_f8)                                                             \
  X(emu_prmt)

} // namespace prefill::emu

extern "C" {
void *emu_shared_access(prefill::emu::Site *, uint64_t address, uint32_t size,
                        uint32_t alignment, uint32_t flags);
void *emu_global_access(prefill::emu::Site *, uint64_t address, uint32_t size,
                        uint32_t alignment, uint32_t flags);
/// Generic address of shared address 0.
uint64_t emu_shared_window();
void emu_copy(prefill::emu::Site *, uint64_t to, uint64_t from, uint64_t size);
void emu_fill(prefill::emu::Site *, uint64_t to, uint32_t value, uint64_t size);
void emu_tick(prefill::emu::Site *);
uint32_t emu_special(uint32_t which);
/// Value, and the predicate in bit 32.
uint64_t emu_shuffle(prefill::emu::Site *, uint32_t mode, uint32_t mask,
                     uint32_t value, uint32_t lane, uint32_t clamp);
uint32_t emu_vote(prefill::emu::Site *, uint32_t mode, uint32_t mask,
                  uint32_t predicate);
uint32_t emu_match(prefill::emu::Site *, uint32_t mask, uint64_t value,
                   uint32_t all);
uint32_t emu_redux(prefill::emu::Site *, uint32_t op, uint32_t mask,
                   uint32_t value);
/// Leader's lane, and the predicate in bit 32.
uint64_t emu_elect(prefill::emu::Site *, uint32_t mask);
uint32_t emu_active_mask();
void emu_warp_sync(prefill::emu::Site *, uint32_t mask);
/// `count` 0: all threads.
void emu_barrier(prefill::emu::Site *, uint32_t id, uint32_t count,
                 uint32_t arriveOnly);
void emu_ldmatrix(prefill::emu::Site *, uint64_t address, uint32_t count,
                  uint32_t transpose, uint32_t *registers);
void emu_stmatrix(prefill::emu::Site *, uint64_t address, uint32_t count,
                  uint32_t transpose, uint32_t *registers);
/// Registers: A, B, C; D replaces them from the front.
void emu_mma(prefill::emu::Site *, uint64_t kind, uint32_t *registers);
void emu_cp_async(prefill::emu::Site *, uint64_t to, uint64_t from,
                  uint32_t size, uint32_t sourceSize);
void emu_cp_async_commit(prefill::emu::Site *);
/// All groups but the last `pending`; ~0: also what was not committed.
void emu_cp_async_wait(prefill::emu::Site *, uint32_t pending);
void emu_cp_async_mbar(prefill::emu::Site *, uint64_t mbarrier, uint32_t noinc);
void emu_mbar_init(prefill::emu::Site *, uint64_t address, uint32_t count);
void emu_mbar_inval(prefill::emu::Site *, uint64_t address);
uint64_t emu_mbar_arrive(prefill::emu::Site *, uint64_t address, uint32_t count,
                         uint32_t bytes, uint32_t drop);
void emu_mbar_expect_tx(prefill::emu::Site *, uint64_t address, uint32_t bytes);
void emu_mbar_complete_tx(prefill::emu::Site *, uint64_t address,
                          uint32_t bytes);
uint32_t emu_mbar_wait(prefill::emu::Site *, uint64_t address, uint64_t phase,
                       uint32_t isParity);
void emu_tensor_load(prefill::emu::Site *, uint64_t to, uint64_t mbarrier,
                     const void *map, uint32_t rank,
                     const int32_t *coordinates);
void emu_tensor_store(prefill::emu::Site *, uint64_t from, const void *map,
                      uint32_t rank, const int32_t *coordinates);
void emu_bulk_load(prefill::emu::Site *, uint64_t to, uint64_t from,
                   uint32_t size, uint64_t mbarrier);
void emu_bulk_store(prefill::emu::Site *, uint64_t to, uint64_t from,
                    uint32_t size);
void emu_bulk_commit(prefill::emu::Site *);
void emu_bulk_wait(prefill::emu::Site *, uint32_t pending);
void emu_fence_proxy(prefill::emu::Site *);
void emu_fence_mbarrier_init(prefill::emu::Site *);
void emu_wgmma_fence(prefill::emu::Site *);
/// Registers: accumulators in, tokens out; A at [128..131].
void emu_wgmma(prefill::emu::Site *, uint64_t kind, uint32_t scaleD,
               uint32_t *registers, uint64_t descriptorA, uint64_t descriptorB);
void emu_wgmma_commit(prefill::emu::Site *);
void emu_wgmma_wait(prefill::emu::Site *, uint32_t pending, uint32_t *registers,
                    uint32_t count);
/// The number that a token stands for.
uint32_t emu_resolve(prefill::emu::Site *, uint32_t bits);
void emu_setmaxnreg(prefill::emu::Site *, uint32_t count, uint32_t increase);
/// `wrong`: 0, or 1 for a divisor of zero, or 2 for a quotient that is too large.
void emu_division(prefill::emu::Site *, uint32_t wrong);
void emu_trap(prefill::emu::Site *);
void emu_unreachable(prefill::emu::Site *);
void emu_exit();
void emu_yield();
float emu_ex2(float);
float emu_lg2(float);
uint32_t emu_pack_bf16(float high, float low, uint32_t relu);
uint32_t emu_pack_f16(float high, float low, uint32_t relu);
uint32_t emu_pack_e4m3(float high, float low, uint32_t relu);
uint32_t emu_pack_e5m2(float high, float low, uint32_t relu);
/// Two fp8 to two halves.
uint32_t emu_unpack_f8(uint32_t bits, uint32_t isE5M2);
uint32_t emu_prmt(uint32_t a, uint32_t b, uint32_t selector, uint32_t mode);
}

#endif // PREFILL_LIB_EMULATOR_RUNTIME_H
