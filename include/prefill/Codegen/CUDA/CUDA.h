//===- CUDA.h - Kernels for NVIDIA GPUs -------------------------*- C++ -*-===//
//
// `tile.kernel` -> `warp.kernel` -> llvm and nvvm ops -> LLVM IR -> PTX ->
// ptxas -> cubin. docs/Warp.md has the order of passes.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CUDA_CUDA_H
#define PREFILL_CODEGEN_CUDA_CUDA_H

#include "mlir/Pass/Pass.h"
#include "prefill/Codegen/KernelSpec.h"
#include "prefill/Dialect/Warp/Warp.h"
#include <memory>
#include <string>

namespace llvm {
class LLVMContext;
class Module;
} // namespace llvm
namespace mlir {
class OpPassManager;
} // namespace mlir

namespace prefill {

/// Tile sizes and resources of one kernel on one architecture.
struct CudaSchedule {
  int arch = 80; ///< 80: sm_80
  /// sm_90a rather than sm_90: code for this architecture alone.
  bool archSpecific = false;
  int warps = 4;       ///< that compute
  int blockQ = 128;    ///< query rows of a thread block
  int blockK = 64;     ///< keys of a tile
  int stages = 1;      ///< of K's ring, and of V's
  bool lists = false;  ///< the launch names the tiles to visit
  bool chunks = false; ///< a thread block visits a chunk of the keys
  /// sm_90a: one warpgroup copies, the others (warps / 4) compute with wgmma.
  bool warpgroups = false;
  int copyRegisters = 0, computeRegisters = 0; ///< a thread, with warpgroups
  bool takeTurns = false; ///< warpgroups start products one after the other
  bool foldScale = false; ///< the scale of scores is known to be positive
  /// With warpgroups: copies by TMA. The kernel has a second parameter,
  /// prefill_cuda_tensor_maps, and takes no lengths by batch entry.
  bool tensorMaps = false;
  /// With warpgroups: a block takes tiles of query rows until there are none
  /// (prefill_cuda_attention says in which order).
  bool persistent = false;
  /// Threads of a block.
  int threads() const { return 32 * warps + (warpgroups ? 128 : 0); }
  /// "sm_80", "sm_90a".
  std::string chip() const;
};

/// Bytes of shared memory that a thread block may have; 0: no such target.
int getSharedLimit(int arch);

/// The schedule for a kernel; or why there is none in `error`. `lists` asks for
/// tiles of block_q x block_k as the launch's index has them.
bool chooseCudaSchedule(const KernelSpec &spec, int arch, bool lists,
                        CudaSchedule &schedule, std::string &error);

/// The schedule with warpgroups for sm_90a, for a kernel that
/// chooseCudaSchedule has one for.
CudaSchedule chooseWarpgroupSchedule(const KernelSpec &spec, bool lists,
                                     bool tensorMaps, bool persistent);

/// Whether a library carries the kernel with persistent thread blocks, too:
/// where its tiles are those of the other one, and lie under a causal mask.
bool isPersistentCarried(const KernelSpec &spec);

/// Why this kernel cannot run on tensor cores of this architecture, with what
/// could be done about it; empty when it can.
std::string checkCudaSpec(const KernelSpec &spec, int arch);

/// Which kernel of a specification. Sums are those of the last query rows, for
/// vertical-slash: one <sums rows>, one <sums columns> of prefill/cuda_index.h.
enum class CudaKernelKind { Attention, RowSums, LineSums };

/// Registers of a thread that copies and of one that computes, by the number of
/// computing warps and what they do.
void setRegisterBudgets(const KernelSpec &spec, CudaSchedule &schedule);

struct CudaOptions {
  CudaKernelKind kind = CudaKernelKind::Attention;
  /// 80, 86, 89 or 90, which run sm_80's instructions.
  int arch = 80;
  /// With arch 90: sm_90a, whose kernels use wgmma. Where that fails (a spill,
  /// say) the kernel is sm_90's, and the report's note says why.
  bool archSpecific = false;
  bool lists = false; ///< blocks and columns from the launch
  /// Copies by TMA where there are warpgroups and no lists, else as without.
  bool tensorMaps = false;
  /// One thread block a multiprocessor, which takes tiles of query rows one
  /// after the other, those with most keys first. Where there are warpgroups
  /// and no lists, else as without.
  bool persistent = false;
  std::string ptxas;        ///< empty: CUDA_HOME/bin, then PATH
  bool allowSpills = false; ///< spills and ptxas warnings are no errors
  bool runPtxas = true;
  int blockQ = 0, blockK = 0, warps = 0, stages = 0; ///< 0: by the table
};

/// What ptxas says about a kernel.
struct PtxasReport {
  int registers = 0;
  int spillStores = 0, spillLoads = 0; ///< bytes
  int stackBytes = 0;                  ///< local memory
  std::vector<std::string> messages;   ///< warnings and C75xx, one line each
};

struct CudaReport {
  CudaSchedule schedule;
  int threads = 0;
  int sharedBytes = 0; ///< dynamic
  bool assembled = false;
  PtxasReport ptxas;
  std::string note; ///< why there is no cubin
  double seconds = 0, ptxasSeconds = 0;
};

/// A kernel for one architecture.
struct CudaKernel {
  std::string name; ///< of the function
  std::string ptx, cubin;
  CudaReport report;
  /// The exact module that PTX was emitted from.
  std::unique_ptr<llvm::LLVMContext> context;
  std::unique_ptr<llvm::Module> module;
  CudaKernel();
  CudaKernel(CudaKernel &&);
  CudaKernel &operator=(CudaKernel &&);
  ~CudaKernel();
};

/// Compiles an attention kernel. Has an MLIR context of its own: calls may run
/// in parallel. `error` is one line that names the kernel.
bool compileCuda(const KernelSpec &spec, const CudaOptions &options,
                 CudaKernel &kernel, std::string &error);

enum class CudaText { Tile, Warp, NVVM, LLVM, PTX };
/// The kernel at one level, as text.
bool printCuda(const KernelSpec &spec, const CudaOptions &options,
               CudaText level, std::string &text, std::string &error);

/// Optimises a module for an architecture and emits PTX.
bool emitPTX(llvm::Module &module, int arch, std::string &ptx,
             std::string &error, bool archSpecific = false);

/// "sm_80"; "sm_90a" for code that runs on this architecture alone.
std::string getChip(int arch, bool archSpecific = false);

/// The ptxas to run: `given`, else CUDA_HOME/bin, else PATH; empty when there
/// is none.
std::string findPtxas(llvm::StringRef given);

/// Runs ptxas. False when it fails, or, unless `allowSpills`, when it spills,
/// uses local memory or warns; `error` then says so.
bool runPtxas(llvm::StringRef ptxas, llvm::StringRef ptx, int arch,
              llvm::StringRef kernel, bool allowSpills, std::string &cubin,
              PtxasReport &report, std::string &error,
              bool archSpecific = false);

/// Reads what `ptxas -v` printed.
PtxasReport parsePtxasLog(llvm::StringRef log);

/// From the output of `tile-to-tensor-cores` to the LLVM dialect.
void addCudaPasses(mlir::OpPassManager &manager, const CudaSchedule &schedule);
/// From the output of `convert-warp-to-nvvm` to the LLVM dialect.
void addCudaToLLVMPasses(mlir::OpPassManager &manager);

/// Dialects that lowering creates ops of, and their translation to LLVM IR.
void registerCudaDialects(mlir::DialectRegistry &registry);

/// The attribute of a lowered kernel that holds the bytes of dynamic shared
/// memory it needs.
inline constexpr llvm::StringLiteral kSharedBytesAttr = "prefill.shared_bytes";

#define GEN_PASS_DECL
#define GEN_PASS_REGISTRATION
#include "prefill/Codegen/CUDA/Passes.h.inc"

/// Registers the passes above and the pipeline `prefill-nvvm-to-llvm`.
void registerCudaPassesAndPipelines();

} // namespace prefill

#endif
