//===- KernelHarness.cpp - Compile, load and call tile functions ----------===//

#include "KernelHarness.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/Codegen/Link.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include <cmath>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <tuple>

using namespace prefill;
using namespace prefill::harness;

static void *loadObject(const std::string &object, const std::string &symbol,
                        std::string &error) {
  llvm::SmallString<128> file, library;
  int descriptor;
  if (llvm::sys::fs::createTemporaryFile("kernel", "o", descriptor, file)) {
    error = "cannot create a temporary file";
    return nullptr;
  }
  {
    llvm::raw_fd_ostream stream(descriptor, /*shouldClose=*/true);
    stream << object;
  }
  library = file;
  library += ".so";
  std::vector<std::string> objects{file.str().str()};
  LinkOptions options;
  options.output = library.str().str();
  options.objects = objects;
  void *address = nullptr;
  if (linkSharedLibrary(options, error)) {
    if (void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL))
      address = dlsym(handle, symbol.c_str());
    if (!address)
      error = dlerror();
  }
  llvm::sys::fs::remove(file);
  llvm::sys::fs::remove(library);
  return address;
}

const LoadedKernel *prefill::harness::getKernel(const KernelSpec &spec,
                                                const CpuTarget &target,
                                                std::string &error,
                                                bool wantText) {
  using Key = std::tuple<std::string, int, int, int>;
  static std::map<Key, std::unique_ptr<LoadedKernel>> kernels;
  Key key(getTileKey(spec), target.level, target.tileRows, target.tileVectors);
  std::unique_ptr<LoadedKernel> &kernel = kernels[key];
  if (kernel)
    return kernel.get();
  auto fresh = std::make_unique<LoadedKernel>();
  EmittedKernel score;
  if (!emitKernel(spec, KernelKind::Attention, target, wantText, fresh->emitted,
                  error) ||
      !emitKernel(spec, KernelKind::Score, target, /*wantText=*/false, score,
                  error))
    return nullptr;
  fresh->attentionWorkspace = fresh->emitted.workspaceBytes;
  fresh->scoreWorkspace = score.workspaceBytes;
  fresh->attention = reinterpret_cast<prefill_tile_fn>(loadObject(
      fresh->emitted.object, getTileSymbol(getTileKey(spec), target), error));
  fresh->score = reinterpret_cast<prefill_score_fn>(loadObject(
      score.object, getTileSymbol(getScoreKey(spec), target), error));
  if (!fresh->attention || !fresh->score)
    return nullptr;
  kernel = std::move(fresh);
  return kernel.get();
}

int prefill::harness::machineLevel() {
  if (__builtin_cpu_supports("x86-64-v4"))
    return 4;
  return __builtin_cpu_supports("x86-64-v3") ? 3 : 2;
}

float prefill::harness::fromStorage(uint16_t value, DType type) {
  uint32_t bits;
  float result;
  if (type == DType::BF16) {
    bits = uint32_t(value) << 16;
    std::memcpy(&result, &bits, 4);
    return result;
  }
  int exponent = value >> 10 & 31, mantissa = value & 1023;
  float sign = value & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31)
    return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25)
                          : std::ldexp(float(mantissa), -24));
}

uint16_t prefill::harness::toStorage(float value, DType type) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (type == DType::BF16) {
    if (std::isnan(value))
      return 0x7fc0;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  uint16_t sign = bits >> 16 & 0x8000;
  if (std::isnan(value))
    return sign | 0x7e00;
  float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f)
    return sign | 0x7c00;
  if (magnitude < std::ldexp(1.0f, -14))
    return sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24)));
  int exponent;
  float fraction = std::frexp(magnitude, &exponent); // in [1/2, 1)
  auto mantissa = uint32_t(std::nearbyint(std::ldexp(fraction, 11)));
  // A mantissa that rounds up to the next power carries into the exponent.
  return sign | uint16_t(((exponent + 14) << 10) + mantissa - 1024);
}
