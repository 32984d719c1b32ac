//===- Emulator.h - Runs generated GPU kernels on the CPU -------*- C++ -*-===//
///
/// Executes the LLVM IR (nvptx64 with llvm.nvvm.* intrinsics and inline PTX)
/// that is handed to the PTX emitter, thread by thread, and reports what a GPU
/// would punish: deadlocks, divergent collectives, races, missing waits and
/// fences, reads of uninitialised and accesses of foreign memory. What is
/// modelled, and how, is in docs/Emulator.md; its semantics are a reading of
/// the PTX ISA that has not been compared with hardware yet.
///
/// \code
///   auto program = emu::Program::compile(module);          // once a module
///   emu::Device device;
///   device.addBuffer(q.data(), q.size() * 2, "q");
///   emu::Launch launch;
///   launch.kernel = "attention"; launch.grid = {6, 2}; launch.block = {384};
///   launch.dynamicSharedBytes = 164 << 10;
///   launch.addPointer(q.data()); launch.addScalar<int32_t>(384);
///   launch.addTensorMap(*emu::encodeTensorMap(map));
///   auto report = (*program)->run(device, launch, {});     // as often as
///   wanted
/// \endcode
//===----------------------------------------------------------------------===//

#ifndef PREFILL_EMULATOR_EMULATOR_H
#define PREFILL_EMULATOR_EMULATOR_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace llvm {
class Module;
} // namespace llvm

namespace prefill::emu {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

/// How a launch is executed; every combination must give the same result for a
/// correct kernel.
struct Options {
  /// Asynchronous work (cp.async, TMA, wgmma) happens at the last moment that
  /// the program allows instead of the first; destinations hold NaN until then.
  bool late = false;
  /// 0: threads run in order. Otherwise: a pseudo-random order of its own.
  uint64_t seed = 0;
  bool checkRaces = true;
  bool checkUninitialised = true;
  /// Further findings are counted but not kept.
  unsigned maxFindings = 20;
  /// Thread blocks (clusters) that run interleaved; what spins on another
  /// block's result needs more than one.
  unsigned residentBlocks = 1;
  /// Registers a thread is launched with, for setmaxnreg; 0: the most that the
  /// register file has for a block of this size.
  unsigned registersPerThread = 0;
  /// A thread that goes round its loops more often is reported as not ending.
  uint64_t maxIterations = 50'000'000;
};

/// One kernel launch. `params` holds the bytes of each kernel parameter in
/// order; pointers are host addresses, usually into buffers of the Device.
struct Launch {
  std::string kernel;
  Dim3 grid, block, cluster;
  uint32_t dynamicSharedBytes = 0;
  std::vector<std::vector<uint8_t>> params;

  template <typename T>
  void addScalar(T value) {
    std::vector<uint8_t> bytes(sizeof(T));
    std::memcpy(bytes.data(), &value, sizeof(T));
    params.push_back(std::move(bytes));
  }
  void addPointer(const void *pointer) { addScalar(pointer); }
  void addTensorMap(const std::array<uint8_t, 128> &map) {
    params.emplace_back(map.begin(), map.end());
  }
};

enum class FindingKind {
  Deadlock,
  OverArrival,
  Divergence,
  PendingResult,
  MissingWait,
  MissingFence,
  Race,
  Uninitialised,
  Misaligned,
  OutOfRange,
  Barrier,    ///< misuse of a named barrier or an mbarrier
  Collective, ///< non-uniform descriptor, lane outside its mask, ...
  Registers,  ///< setmaxnreg
  Division,   ///< of an integer by zero, or of the least one by -1
  Trap,
  Endless,
};
llvm::StringRef getName(FindingKind kind);

/// One line: "kind: kernel K, block (x,y,z), thread t: what; at instruction".
struct Finding {
  FindingKind kind;
  std::string message;
};

struct Report {
  std::vector<Finding> findings;
  /// All findings, also those beyond Options::maxFindings.
  uint64_t numFindings = 0;
  /// Executed intrinsics and PTX instructions by name; those of a warp count
  /// once a warp, wgmma once a warpgroup, the others once a thread.
  std::map<std::string, uint64_t> instructions;
  uint64_t fiberSwitches = 0;
  /// Shared memory of a block, static and dynamic, in bytes.
  uint32_t sharedBytes = 0;

  bool clean() const { return numFindings == 0; }
  bool has(FindingKind kind) const;
  /// All findings, one a line.
  std::string str() const;
};

/// The global memory that kernels may touch. Buffers belong to the caller and
/// must outlive the launches; which of their bytes hold a value is remembered
/// from launch to launch.
class Device {
public:
  Device();
  ~Device();
  Device(Device &&) noexcept;
  Device &operator=(Device &&) noexcept;

  /// Registers `bytes` bytes at `base`. `initialised` says that they hold
  /// values already (an output buffer does not); `readOnly` that a store is an
  /// error.
  void addBuffer(void *base, size_t bytes, llvm::StringRef name,
                 bool initialised = true, bool readOnly = false);
  void addInput(const void *base, size_t bytes, llvm::StringRef name) {
    addBuffer(const_cast<void *>(base), bytes, name, true, true);
  }
  void addOutput(void *base, size_t bytes, llvm::StringRef name) {
    addBuffer(base, bytes, name, false, false);
  }
  void clear();
  /// Number of bytes of the buffer at `base` that nothing has written yet.
  size_t countUninitialised(const void *base) const;

  struct State;
  State &getState() { return *state; }

private:
  std::unique_ptr<State> state;
};

/// What cuTensorMapEncodeTiled gets. Innermost dimension first.
struct TensorMap {
  void *base = nullptr;
  uint32_t elementBytes = 2;
  std::vector<uint64_t> dims;    ///< 1 to 5, in elements
  std::vector<uint64_t> strides; ///< bytes, of dims 1..; one fewer than dims
  std::vector<uint32_t> box;     ///< elements per dimension, 1..256
  uint32_t swizzleBytes = 128;   ///< 0 (none), 32, 64 or 128
};
/// The 128 bytes of a descriptor, understood by the emulator only; fails where
/// the driver would (alignment, strides, box).
llvm::Expected<std::array<uint8_t, 128>> encodeTensorMap(const TensorMap &map);

/// A module made ready to run: rewritten for the host and compiled.
class Program {
public:
  /// Leaves `module` as it is. Fails with the name of the first intrinsic, PTX
  /// instruction or external function that the emulator does not know.
  static llvm::Expected<std::unique_ptr<Program>>
  compile(const llvm::Module &module);
  ~Program();

  /// Runs all blocks. Fails for a launch that a driver would refuse; what the
  /// kernel does wrong is in the report. Not to be called concurrently on one
  /// program.
  llvm::Expected<Report> run(Device &device, const Launch &launch,
                             const Options &options = {});

  struct Impl;

private:
  explicit Program(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl;
};

} // namespace prefill::emu

#endif // PREFILL_EMULATOR_EMULATOR_H
