//===- HostTest.cpp - Libraries with CUDA code, as hosts call them --------===//
//
// The whole path without a GPU: kernels are compiled into a library, the
// library is called with CUDA tensors, its launches arrive at a driver of ours
// and run in the emulator, and the results are compared with float64.
//
//===----------------------------------------------------------------------===//

#include "FakeDriver.h"
#include "KernelHarness.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/Codegen/Library.h"
#include "prefill/Emulator/Emulator.h"
#include "prefill/cuda_abi.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "gtest/gtest.h"
#include <cmath>
#include <dlfcn.h>
#include <map>
#include <random>
#include <thread>

using namespace prefill;

namespace {

using Run = prefill_status (*)(prefill_context *, const char *,
                               const DLTensor *const *, size_t,
                               DLTensor *const *, size_t);

/// What all tests share: one library, and the kernels it holds in the emulator.
struct World {
  llvm::SmallString<128> folder;
  fake_cuda *(*reset)() = nullptr;
  Run run = nullptr;
  std::map<std::string, KernelSpec> specs;
  CudaLibrary images;
  struct Kernel {
    CudaKernel code;
    std::unique_ptr<emu::Program> program;
  };
  std::map<std::string, Kernel> kernels; ///< by function
  std::string error;

  static World &get() {
    static World world;
    return world;
  }
  ~World() {
    if (!folder.empty())
      llvm::sys::fs::remove_directories(folder);
  }

private:
  World() {
    if (!build() && error.empty())
      error = "failed";
  }

  void add(const char *name, llvm::function_ref<void(KernelSpec &)> change) {
    KernelSpec spec;
    spec.name = name;
    spec.dtype = DType::F16;
    spec.causal = true;
    spec.qHeads = 4;
    spec.kvHeads = 2;
    change(spec);
    specs[name] = spec;
  }

  bool build() {
    void *driver = dlopen(PREFILL_FAKE_DRIVER, RTLD_NOW | RTLD_GLOBAL);
    if (!driver) {
      error = dlerror();
      return false;
    }
    reset =
        reinterpret_cast<fake_cuda *(*)()>(dlsym(driver, "fake_cuda_reset"));
    add("causal", [](KernelSpec &) {});
    add("bshd", [](KernelSpec &spec) {
      spec.qLayout = spec.kLayout = spec.vLayout = spec.oLayout = Layout::BSHD;
      spec.dtype = DType::BF16;
      spec.causal = false;
    });
    add("features", [](KernelSpec &spec) {
      spec.hasKeyMask = spec.hasSink = true;
      spec.windowLeft = 40;
      spec.softcap = 20;
      spec.alignment = Alignment::Operand;
    });
    add("mean", [](KernelSpec &spec) { spec.maskedRow = MaskedRow::Mean; });
    add("float", [](KernelSpec &spec) { spec.dtype = DType::F32; });
    std::vector<KernelSpec> list;
    for (auto &[name, spec] : specs)
      list.push_back(spec);

    if (llvm::sys::fs::createUniqueDirectory("prefill-test", folder))
      return false;
    auto in = [&](const char *name) {
      llvm::SmallString<128> path(folder);
      llvm::sys::path::append(path, name);
      return path.str().str();
    };
    CudaImageOptions cuda;
    cuda.targets = {*findCudaTarget("sm_80")};
    cuda.runPtxas = false;
    cuda.useCache = false;
    if (!compileCudaImages(list, cuda, images, error))
      return false;
    LibraryOptions options;
    options.output = in("libmodel.so");
    options.levels = {2};
    options.runtimeArchives = {PREFILL_RUNTIME_ARCHIVE};
    options.useCache = false;
    options.cuda = &images;
    if (!compileLibrary(list, options, error))
      return false;
    void *library = dlopen(options.output.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      error = dlerror();
      return false;
    }
    run = reinterpret_cast<Run>(dlsym(library, "prefill_run"));

    // The modules that the library's PTX was emitted from.
    for (const KernelSpec &spec : list) {
      if (spec.dtype == DType::F32)
        continue;
      CudaKernel code;
      CudaOptions plain;
      plain.runPtxas = false;
      if (!compileCuda(spec, plain, code, error))
        return false;
      Kernel &kernel = kernels[code.name];
      if (kernel.program)
        continue;
      auto program = emu::Program::compile(*code.module);
      if (!program) {
        error = llvm::toString(program.takeError());
        return false;
      }
      kernel.code = std::move(code);
      kernel.program = std::move(*program);
    }
    return true;
  }
};

/// A call with CUDA tensors, which lie in the host's memory.
struct Call {
  explicit Call(const char *kernel, int batch = 1, int queries = 100,
                int keys = 100)
      : spec(World::get().specs.at(kernel)), batch(batch), queries(queries),
        keys(keys) {
    const bool bshd = spec.qLayout == Layout::BSHD;
    auto rows = [&](int heads, int length, int size) -> std::vector<int64_t> {
      if (bshd)
        return {batch, length, heads, size};
      return {batch, heads, length, size};
    };
    shapes = {rows(spec.qHeads, queries, 64),
              rows(spec.kvHeads, keys, 64),
              rows(spec.kvHeads, keys, 64),
              rows(spec.qHeads, queries, 64),
              {batch, spec.qHeads, queries},
              {batch, keys},
              {spec.qHeads},
              {batch},
              {batch}};
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int i = 0; i < 4; ++i) {
      int64_t count = 1;
      for (int64_t dim : shapes[i])
        count *= dim;
      data[i].resize(count);
      for (uint16_t &x : data[i])
        x = i == 3 ? 0x7fff : harness::toStorage(normal(random), spec.dtype);
    }
    lse.assign(size_t(batch) * spec.qHeads * queries, NAN);
    mask.resize(size_t(batch) * keys);
    for (uint8_t &bit : mask)
      bit = random() % 5 != 0;
    for (int h = 0; h < spec.qHeads; ++h)
      sinks.push_back(normal(random));
    lengths.assign(batch, keys);
    offsets.assign(batch, keys - queries);

    const DLDataType half{
        uint8_t(spec.dtype == DType::BF16 ? kDLBfloat : kDLFloat), 16, 1};
    for (int i = 0; i < 4; ++i)
      tensors[i] = tensor(shapes[i], data[i].data(), half);
    tensors[4] = tensor(shapes[4], lse.data(), {kDLFloat, 32, 1});
    tensors[5] = tensor(shapes[5], mask.data(), {kDLUInt, 8, 1});
    tensors[6] = tensor(shapes[6], sinks.data(), {kDLFloat, 32, 1});
    tensors[7] = tensor(shapes[7], lengths.data(), {kDLInt, 32, 1});
    tensors[8] = tensor(shapes[8], offsets.data(), {kDLInt, 64, 1});
    inputs.assign(PREFILL_IN_COUNT, nullptr);
    for (int i = 0; i < 3; ++i)
      inputs[i] = &tensors[i];
    if (spec.hasKeyMask)
      inputs[PREFILL_IN_KEY_MASK] = &tensors[5];
    if (spec.hasSink)
      inputs[PREFILL_IN_SINKS] = &tensors[6];
    if (spec.alignment == Alignment::Operand)
      inputs[PREFILL_IN_Q_OFFSET] = &tensors[8];
    outputs = {&tensors[3], &tensors[4]};
    context.struct_size = sizeof(context);
  }
  Call(const Call &) = delete;

  DLTensor tensor(std::vector<int64_t> &shape, void *pointer, DLDataType type) {
    DLTensor result = {};
    result.data = pointer;
    result.device = {kDLCUDA, 0};
    result.ndim = int32_t(shape.size());
    result.dtype = type;
    result.shape = shape.data();
    return result;
  }

  /// Runs launches in the emulator, too, unless told otherwise.
  prefill_status run(fake_cuda *driver, bool execute = true) {
    if (execute) {
      driver->launch = [](void *user, const fake_launch *launch) {
        return static_cast<Call *>(user)->execute(*launch);
      };
      driver->user = this;
    }
    return World::get().run(&context, spec.name.c_str(), inputs.data(),
                            inputs.size(), outputs.data(), outputs.size());
  }

  int execute(const fake_launch &launch) {
    auto found = World::get().kernels.find(launch.function);
    if (found == World::get().kernels.end()) {
      emulation = std::string("no kernel ") + launch.function;
      return 500;
    }
    streams.push_back(launch.stream);
    batches.push_back(launch.grid[2]);
    emu::Device device;
    for (int i = 0; i < 3; ++i)
      device.addInput(data[i].data(), data[i].size() * 2, "qkv");
    device.addOutput(data[3].data(), data[3].size() * 2, "o");
    device.addOutput(lse.data(), lse.size() * 4, "lse");
    device.addInput(mask.data(), mask.size(), "mask");
    device.addInput(sinks.data(), sinks.size() * 4, "sinks");
    device.addInput(lengths.data(), lengths.size() * 4, "lengths");
    device.addInput(offsets.data(), offsets.size() * 8, "offsets");
    emu::Launch emulated;
    emulated.kernel = launch.function;
    emulated.grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
    emulated.block = {launch.block[0], launch.block[1], launch.block[2]};
    emulated.dynamicSharedBytes = launch.shared_bytes;
    emulated.addScalar(
        *static_cast<const prefill_cuda_attention *>(launch.params));
    auto report = found->second.program->run(device, emulated);
    if (!report)
      emulation = llvm::toString(report.takeError());
    else if (!report->clean())
      emulation = report->str();
    return emulation.empty() ? 0 : 700;
  }

  size_t at(bool ofQuery, int b, int h, int row) const {
    const int heads = ofQuery ? spec.qHeads : spec.kvHeads;
    const int length = ofQuery ? queries : keys;
    return spec.qLayout == Layout::BSHD
               ? ((size_t(b) * length + row) * heads + h) * 64
               : ((size_t(b) * heads + h) * length + row) * 64;
  }

  /// The largest error against float64, of the result and the LSE.
  double error() const {
    double worst = 0;
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < spec.qHeads; ++h)
        for (int row = 0; row < queries; ++row) {
          std::vector<double> want(64);
          const int64_t position = offsets[b] + row;
          double sum = 0, max = spec.hasSink ? sinks[h] : -INFINITY;
          std::vector<std::pair<int, double>> scores;
          for (int key = 0; key < std::min(keys, lengths[b]); ++key) {
            if ((spec.causal && key > position) ||
                key < position - spec.windowLeft ||
                (spec.hasKeyMask && !mask[size_t(b) * keys + key]))
              continue;
            double score = 0;
            for (int c = 0; c < 64; ++c)
              score += value(0, at(true, b, h, row) + c) *
                       value(1, at(false, b, h / 2, key) + c);
            score /= 8;
            if (spec.softcap)
              score = spec.softcap * std::tanh(score / spec.softcap);
            scores.push_back({key, score});
            max = std::max(max, score);
          }
          sum = spec.hasSink ? std::exp(sinks[h] - max) : 0;
          for (auto [key, score] : scores) {
            const double p = std::exp(score - max);
            sum += p;
            for (int c = 0; c < 64; ++c)
              want[c] += p * value(2, at(false, b, h / 2, key) + c);
          }
          for (int c = 0; c < 64; ++c)
            worst =
                std::max(worst, std::fabs(value(3, at(true, b, h, row) + c) -
                                          (sum > 0 ? want[c] / sum : 0)));
          const double got = lse[(size_t(b) * spec.qHeads + h) * queries + row];
          if (sum > 0)
            worst = std::max(worst, std::fabs(got - (max + std::log(sum))));
          else if (got != -INFINITY)
            return INFINITY;
          if (std::isnan(got))
            return INFINITY;
        }
    return worst;
  }
  double value(int tensor, size_t i) const {
    return harness::fromStorage(data[tensor][i], spec.dtype);
  }

  KernelSpec spec;
  int batch, queries, keys;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<uint16_t> data[4];
  std::vector<float> lse, sinks;
  std::vector<uint8_t> mask;
  std::vector<int32_t> lengths;
  std::vector<int64_t> offsets;
  DLTensor tensors[9];
  std::vector<const DLTensor *> inputs;
  std::vector<DLTensor *> outputs;
  prefill_context context = {};
  std::vector<void *> streams;
  std::vector<unsigned> batches; ///< of each launch
  std::string emulation;
};

class CudaHost : public ::testing::Test {
protected:
  void SetUp() override {
    ASSERT_EQ(World::get().error, "");
    driver = World::get().reset();
    // Code of earlier tests is not in this test's context.
    static unsigned long long contexts = 100;
    driver->context = ++contexts;
  }
  /// The message contains `word`, nothing was launched, and the next call
  /// works.
  void refused(Call &call, prefill_status status, const char *word) {
    EXPECT_EQ(call.run(driver, false), status) << call.context.message;
    EXPECT_NE(std::string(call.context.message).find(word), std::string::npos)
        << call.context.message;
    EXPECT_NE(std::string(call.context.message).find(call.spec.name),
              std::string::npos)
        << call.context.message;
    EXPECT_EQ(driver->launches, 0);
  }
  fake_cuda *driver = nullptr;
};

#define EXPECT_RUNS(call)                                                      \
  do {                                                                         \
    EXPECT_EQ((call).run(driver), PREFILL_OK) << (call).context.message;       \
    EXPECT_EQ((call).emulation, "");                                           \
    EXPECT_LT((call).error(), tolerance);                                      \
  } while (0)
constexpr double tolerance = 2.5e-2; // bf16; probabilities are rounded too

TEST_F(CudaHost, Causal) {
  Call call("causal", 2, 100, 130);
  int stream;
  call.context.stream = &stream;
  EXPECT_RUNS(call);
  EXPECT_EQ(driver->launches, 1);
  EXPECT_EQ(call.streams, std::vector<void *>{&stream});
  EXPECT_EQ(call.batches, std::vector<unsigned>{2});
}

TEST_F(CudaHost, RowsOfAllHeadsBesideEachOther) {
  Call call("bshd", 2, 70, 90);
  call.offsets = {0, 0};
  EXPECT_RUNS(call);
}

TEST_F(CudaHost, MaskSinksWindowSoftcapOffset) {
  Call call("features", 2, 60, 90);
  EXPECT_RUNS(call);
  EXPECT_EQ(driver->launches, 1);
}

/// Numbers on the host: entries that differ are launches of their own.
TEST_F(CudaHost, LengthsAndOffsetsOnTheHost) {
  Call call("features", 3, 60, 90);
  call.lengths = {90, 90, 33};
  call.offsets = {30, 30, 20};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  call.tensors[7].device = call.tensors[8].device = {kDLCPU, 0};
  EXPECT_RUNS(call);
  EXPECT_EQ(call.batches, (std::vector<unsigned>{2, 1}));
}

/// Numbers on the device: read there, and never trusted.
TEST_F(CudaHost, LengthsAndOffsetsOnTheDevice) {
  Call call("features", 3, 60, 90);
  call.lengths = {90, 1000, 33};
  call.offsets = {30, 25, 20};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  EXPECT_RUNS(call);
  EXPECT_EQ(call.batches, std::vector<unsigned>{3});
  call.lengths[1] = -5;
  EXPECT_RUNS(call);
}

TEST_F(CudaHost, NothingToDo) {
  Call rows("causal", 1, 0, 10), entries("causal", 0, 10, 10);
  EXPECT_EQ(rows.run(driver), PREFILL_OK) << rows.context.message;
  EXPECT_EQ(entries.run(driver), PREFILL_OK) << entries.context.message;
  EXPECT_EQ(driver->launches, 0);
  Call keys("causal", 1, 10, 0);
  keys.offsets = {-10};
  EXPECT_RUNS(keys);
}

TEST_F(CudaHost, LoadsOnceAContext) {
  Call first("causal"), second("causal");
  EXPECT_RUNS(first);
  EXPECT_RUNS(second);
  EXPECT_EQ(driver->loads, 1);
  driver->context += 1000;
  Call third("causal");
  EXPECT_RUNS(third);
  EXPECT_EQ(driver->loads, 2);
}

TEST_F(CudaHost, Threads) {
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      Call call("causal");
      for (int j = 0; j < 20; ++j)
        failures += call.run(driver, false) != PREFILL_OK;
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(driver->loads, 1);
  EXPECT_EQ(driver->launches, 160);
}

/// PTX for sm_80 serves all later GPUs.
TEST_F(CudaHost, OtherGpus) {
  driver->major = 12;
  Call later("causal");
  EXPECT_RUNS(later);
  driver->major = 7;
  driver->minor = 5;
  driver->launches = 0;
  Call earlier("causal");
  refused(earlier, PREFILL_UNSUPPORTED, "sm_75, only for sm_80 as PTX");
}

TEST_F(CudaHost, NoCodeForGpus) {
  Call call("float");
  for (int i = 0; i < 4; ++i)
    call.tensors[i].dtype.bits = 32;
  refused(call, PREFILL_UNSUPPORTED, "no code for GPUs");
}

TEST_F(CudaHost, WrongArguments) {
  {
    Call call("causal");
    call.tensors[2].device.device_id = 1;
    refused(call, PREFILL_INVALID_ARGUMENT, "input V");
  }
  {
    Call call("causal");
    call.tensors[1].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "input K");
  }
  {
    Call call("causal");
    call.tensors[3].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "output O");
  }
  {
    Call call("causal");
    driver->device = 3;
    refused(call, PREFILL_INVALID_ARGUMENT, "GPU 0, but GPU 3");
    driver->device = 0;
  }
  {
    Call call("causal");
    call.tensors[0].dtype = {kDLBfloat, 16, 1};
    refused(call, PREFILL_INVALID_TYPE, "input Q: expected float16");
  }
  {
    Call call("causal");
    call.inputs[PREFILL_IN_V] = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "input V: expected a tensor");
  }
  {
    Call call("causal");
    call.tensors[1].data = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "input K: expected data, got null");
  }
  {
    Call call("causal");
    call.shapes[2][2] = 99;
    refused(call, PREFILL_INVALID_SHAPE, "input V");
  }
  {
    Call call("causal");
    int64_t strides[] = {4 * 100 * 64, 100 * 60, 60, 1};
    call.tensors[0].strides = strides;
    refused(call, PREFILL_INVALID_SHAPE, "multiple of 8");
  }
  {
    Call call("causal");
    call.tensors[2].byte_offset = 2;
    refused(call, PREFILL_INVALID_ARGUMENT, "aligned to 16 bytes");
  }
  {
    Call call("features");
    call.tensors[5].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "KEY_MASK");
  }
  {
    Call call("features");
    call.inputs[PREFILL_IN_SINKS] = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "SINKS");
  }
  {
    Call call("features");
    call.tensors[8].dtype.bits = 32;
    refused(call, PREFILL_INVALID_TYPE, "Q_OFFSET: expected int64");
  }
  {
    Call call("causal");
    call.context.struct_size = offsetof(prefill_context, stream);
    refused(call, PREFILL_INVALID_ARGUMENT, "struct_size");
  }
  {
    Call call("mean", 1, 100, 50); // the first 50 rows see nothing
    refused(call, PREFILL_UNSUPPORTED, "give 0 on GPUs");
  }
  Call call("causal");
  EXPECT_RUNS(call);
}

TEST_F(CudaHost, NoContext) {
  driver->context = 0;
  Call call("causal");
  refused(call, PREFILL_INVALID_ARGUMENT, "no CUDA context");
}

/// A driver that fails is named, and the next call works.
TEST_F(CudaHost, DriverErrors) {
  for (const char *name : {"cuModuleLoadDataEx", "cuModuleGetFunction",
                           "cuFuncSetAttribute", "cuLaunchKernel"}) {
    Call call("causal");
    driver->failing = name;
    driver->code = 2;
    refused(call, PREFILL_DEVICE_ERROR, name);
    EXPECT_NE(
        std::string(call.context.message).find("CUDA_ERROR_OUT_OF_MEMORY"),
        std::string::npos);
    driver->failing = nullptr;
  }
  Call call("causal");
  EXPECT_RUNS(call);
}

} // namespace
