//===- Program.cpp - Compiles a rewritten module and launches it ----------===//

#include "Lowering.h"
#include "Numeric.h"
#include "Runtime.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/Bitcode/BitcodeWriter.h"
#include "llvm/ExecutionEngine/Orc/AbsoluteSymbols.h"
#include "llvm/ExecutionEngine/Orc/ExecutionUtils.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/IR/Verifier.h"
#include "llvm/Support/TargetSelect.h"

#ifdef __x86_64__
#include <emmintrin.h>
#endif

using namespace llvm;
using namespace prefill::emu;

struct Program::Impl {
  ModuleInfo info;
  std::unique_ptr<orc::LLJIT> jit;
};

Program::Program(std::unique_ptr<Impl> impl) : impl(std::move(impl)) {}
Program::~Program() = default;

#ifdef __x86_64__
// Conversions that x86 has no instruction for. They return a bfloat in xmm0.
static __m128i truncateFloat(float value) {
  return _mm_cvtsi32_si128(toBF16(value));
}
static __m128i truncateDouble(double value) {
  return _mm_cvtsi32_si128(toBF16(float(value)));
}
#endif

static orc::SymbolMap runtimeSymbols(orc::MangleAndInterner mangle) {
  orc::SymbolMap symbols;
  auto add = [&](const char *name, auto *function) {
    symbols[mangle(name)] = {orc::ExecutorAddr::fromPtr(function),
                             JITSymbolFlags::Exported |
                                 JITSymbolFlags::Callable};
  };
#define PREFILL_EMU_ADD(name) add(#name, &name);
  PREFILL_EMU_RUNTIME(PREFILL_EMU_ADD)
#undef PREFILL_EMU_ADD
#ifdef __x86_64__
  add("__truncsfbf2", &truncateFloat);
  add("__truncdfbf2", &truncateDouble);
#endif
  return symbols;
}

static Expected<std::unique_ptr<orc::LLJIT>> makeJit() {
  static bool initialised = [] {
    InitializeNativeTarget();
    InitializeNativeTargetAsmPrinter();
    return true;
  }();
  (void)initialised;
  auto host = orc::JITTargetMachineBuilder::detectHost();
  if (!host)
    return host.takeError();
  // The same results on every CPU that has fused multiply-add.
  for (const char *feature : {"-avx512f", "-avx512bf16", "-avxneconvert"})
    host->getFeatures().AddFeature(feature);
  // Kernels are big and run on small shapes: compiling them is the larger part.
  host->setCodeGenOptLevel(CodeGenOptLevel::None);
  auto jit = orc::LLJITBuilder().setJITTargetMachineBuilder(*host).create();
  if (!jit)
    return jit.takeError();
  orc::JITDylib &library = (*jit)->getMainJITDylib();
  orc::MangleAndInterner mangle((*jit)->getExecutionSession(),
                                (*jit)->getDataLayout());
  if (Error error =
          library.define(orc::absoluteSymbols(runtimeSymbols(mangle))))
    return std::move(error);
  auto process = orc::DynamicLibrarySearchGenerator::GetForCurrentProcess(
      (*jit)->getDataLayout().getGlobalPrefix());
  if (!process)
    return process.takeError();
  library.addGenerator(std::move(*process));
  return jit;
}

Expected<std::unique_ptr<Program>> Program::compile(const Module &original) {
  if (!original.getTargetTriple().isNVPTX())
    return createStringError("the module is for '" +
                             original.getTargetTriple().str() +
                             "', not for nvptx64");
  // A copy in a context of its own, which the JIT takes over.
  SmallVector<char, 0> bitcode;
  raw_svector_ostream os(bitcode);
  WriteBitcodeToFile(original, os);
  auto context = std::make_unique<LLVMContext>();
  auto module = parseBitcodeFile(
      MemoryBufferRef(StringRef(bitcode.data(), bitcode.size()), "kernel"),
      *context);
  if (!module)
    return module.takeError();
  auto impl = std::make_unique<Impl>();
  if (Error error = rewriteModule(**module, impl->info))
    return std::move(error);
  auto jit = makeJit();
  if (!jit)
    return jit.takeError();
  (*module)->setDataLayout((*jit)->getDataLayout());
  std::string problems;
  raw_string_ostream problemStream(problems);
  if (verifyModule(**module, &problemStream))
    return createStringError("the emulator rewrote the module wrongly: " +
                             problems);
  if (Error error = (*jit)->addIRModule(
          orc::ThreadSafeModule(std::move(*module), std::move(context))))
    return std::move(error);
  impl->jit = std::move(*jit);
  return std::unique_ptr<Program>(new Program(std::move(impl)));
}

static Error checkLaunch(const Launch &launch, const KernelInfo &kernel,
                         uint32_t sharedBytes) {
  auto refuse = [&](const Twine &why) {
    return createStringError("kernel '" + launch.kernel + "': " + why);
  };
  uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  if (threads == 0 || threads > 1024)
    return refuse("a block of " + Twine(threads) + " threads; 1 to 1024");
  if (kernel.maxThreads && threads > kernel.maxThreads)
    return refuse("a block of " + Twine(threads) +
                  " threads, compiled for at most " + Twine(kernel.maxThreads));
  if (!launch.grid.x || !launch.grid.y || !launch.grid.z)
    return refuse("an empty grid");
  if (kernel.clusterSize != 1 || launch.cluster.x != 1 ||
      launch.cluster.y != 1 || launch.cluster.z != 1)
    return refuse("clusters of several blocks are not emulated");
  if (sharedBytes > 227 << 10)
    return refuse(Twine(sharedBytes) +
                  " bytes of shared memory; a block has at most 232448");
  if (launch.params.size() != kernel.paramBytes.size())
    return refuse(Twine(launch.params.size()) + " parameters given, it has " +
                  Twine(kernel.paramBytes.size()));
  for (size_t i = 0; i < launch.params.size(); ++i)
    if (launch.params[i].size() != kernel.paramBytes[i])
      return refuse("parameter " + Twine(i) + " has " +
                    Twine(kernel.paramBytes[i]) + " bytes, " +
                    Twine(launch.params[i].size()) + " given");
  return Error::success();
}

Expected<Report> Program::run(Device &device, const Launch &launch,
                              const Options &options) {
  auto kernel = impl->info.kernels.find(launch.kernel);
  if (kernel == impl->info.kernels.end()) {
    std::string names;
    for (auto &[name, info] : impl->info.kernels)
      names += (names.empty() ? "" : ", ") + name;
    return createStringError("the module has no kernel '" + launch.kernel +
                             "'; it has: " + names);
  }
  uint32_t sharedBytes =
      impl->info.staticSharedBytes + launch.dynamicSharedBytes;
  if (Error error = checkLaunch(launch, kernel->second, sharedBytes))
    return std::move(error);
  auto entry = impl->jit->lookup("emu.entry." + launch.kernel);
  if (!entry)
    return entry.takeError();

  // Parameters, 64-byte aligned as tensor maps want, are read-only memory.
  Device::State &state = device.getState();
  std::vector<std::vector<uint8_t>> storage;
  std::vector<const void *> pointers;
  for (const std::vector<uint8_t> &bytes : launch.params) {
    storage.emplace_back(bytes.size() + 64);
    auto address = reinterpret_cast<uintptr_t>(storage.back().data());
    auto *at = reinterpret_cast<uint8_t *>((address + 63) & ~uintptr_t(63));
    std::memcpy(at, bytes.data(), bytes.size());
    pointers.push_back(at);
  }
  std::vector<const void *> added(pointers);
  for (size_t i = 0; i < pointers.size(); ++i)
    state.add(const_cast<void *>(pointers[i]), launch.params[i].size(),
              "parameter " + std::to_string(i), true, true);
  for (const ModuleInfo::Global &global : impl->info.globals) {
    auto address = impl->jit->lookup(global.name);
    if (!address)
      return address.takeError();
    added.push_back(address->toPtr<void *>());
    state.add(address->toPtr<void *>(), global.bytes, global.name, true,
              global.isConstant);
  }

  for (Site &site : impl->info.sites)
    site.count = 0;
  Report report;
  Machine(state, launch, options, sharedBytes,
          entry->toPtr<void (*)(const void *)>(), pointers.data())
      .run(report);
  for (const void *base : added)
    state.remove(base);
  for (const Site &site : impl->info.sites)
    if (site.count)
      report.instructions[site.opcode] += site.count;
  return report;
}
