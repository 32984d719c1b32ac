//===- HostCall.h - Calls of a library with CUDA code -----------*- C++ -*-===//
//
// The whole path without a GPU: kernels are compiled into a library, the
// library is called with CUDA tensors, its launches arrive at a driver of ours
// and run in the emulator, and the results are compared with float64.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_UNITTESTS_CODEGEN_CUDA_HOSTCALL_H
#define PREFILL_UNITTESTS_CODEGEN_CUDA_HOSTCALL_H

#include "FakeDriver.h"
#include "KernelHarness.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/Codegen/CUDA/IndexKernels.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/Codegen/Library.h"
#include "prefill/Emulator/Emulator.h"
#include "prefill/cuda_abi.h"
#include "prefill/cuda_index.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include <cmath>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <random>

namespace prefill::harness {

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
    std::shared_ptr<emu::Program> program;
  };
  std::map<std::string, Kernel> kernels; ///< by function
  std::string error;

  /// By function of sm_90a, what it is compiled from.
  struct Source {
    std::string spec;
    bool tensorMaps, persistent;
  };
  std::map<std::string, Source> hopper;
  /// The kernel in the emulator; null, with `why`: there is none.
  emu::Program *find(const std::string &function, std::string &why) {
    auto found = kernels.find(function);
    if (found != kernels.end())
      return found->second.program.get();
    auto source = hopper.find(function);
    CudaOptions options;
    options.runPtxas = false;
    options.arch = 90;
    options.archSpecific = true;
    CudaKernel code;
    if (source == hopper.end()) {
      why = "no kernel " + function;
      return nullptr;
    }
    options.tensorMaps = source->second.tensorMaps;
    options.persistent = source->second.persistent;
    if (!compileCuda(getCudaSpec(specs[source->second.spec]), options, code,
                     error) ||
        !load(function, std::move(code))) {
      why = error;
      return nullptr;
    }
    return kernels[function].program.get();
  }

  void *library = nullptr;
  void *symbol(const char *name) { return dlsym(library, name); }

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
    const char *path = std::getenv("PREFILL_FAKE_DRIVER");
    void *driver =
        dlopen(path ? path : PREFILL_FAKE_DRIVER, RTLD_NOW | RTLD_GLOBAL);
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
    // Rows without keys that are not 0.
    add("mean", [](KernelSpec &spec) {
      spec.hasKeyMask = true;
      spec.maskedRow = MaskedRow::Mean;
    });
    add("nan", [](KernelSpec &spec) {
      spec.windowLeft = 40;
      spec.alignment = Alignment::Operand;
      spec.maskedRow = MaskedRow::NaN;
    });
    add("scores", [](KernelSpec &spec) {
      spec.hasKeyMask = true;
      spec.softcap = 20;
      spec.dtype = DType::BF16;
      spec.rotary = Rotary::Half;
      spec.rotaryDim = 32;
      spec.maskedRow = MaskedRow::Scores;
    });
    add("rotary", [](KernelSpec &spec) {
      spec.rotary = Rotary::Half;
      spec.rotaryDim = 32;
    });
    add("interleaved", [](KernelSpec &spec) {
      spec.rotary = Rotary::Interleaved;
      spec.rotaryDim = 64;
      spec.dtype = DType::BF16;
      spec.alignment = Alignment::Operand;
    });
    // Heads 0 to 2 by lists, head 3 by a pattern that GPUs do not know.
    for (auto [name, pattern] :
         {std::pair("vertical", SparsePattern::VerticalSlash),
          std::pair("ashape", SparsePattern::AShape),
          std::pair("blocks", SparsePattern::BlockSparse),
          std::pair("sale", SparsePattern::SALE),
          std::pair("xattention", SparsePattern::XAttention),
          std::pair("flexprefill", SparsePattern::FlexPrefill),
          std::pair("infllm", SparsePattern::InfLLMv2),
          std::pair("sampled", SparsePattern::Sampled)})
      add(name, [&](KernelSpec &spec) {
        HeadPlan plan;
        plan.pattern = pattern;
        plan.init = 64, plan.local = 128, plan.last = 64;
        plan.vertical = 40, plan.slash = 100, plan.topK = 3;
        if (pattern == SparsePattern::SALE) // auto's
          plan.topP = 0.3, plan.stride = 4, plan.values = 1, plan.topK = 0;
        if (pattern == SparsePattern::XAttention)
          plan.topP = 0.3, plan.stride = 8;
        if (pattern == SparsePattern::Sampled)
          plan.topP = 0.3, plan.stride = 8, plan.values = 1;
        if (pattern == SparsePattern::FlexPrefill)
          plan.topP = 0.3, plan.threshold = 0.2, plan.minBudget = 64;
        spec.heads.assign(4, plan);
        spec.heads[3].pattern = SparsePattern::Grid;
        spec.denseBelow = 200;
        if (pattern == SparsePattern::VerticalSlash) {
          spec.rotary = Rotary::Half;
          spec.rotaryDim = 64;
        }
      });
    add("float", [](KernelSpec &spec) { spec.dtype = DType::F32; });
    for (int size : {96, 128, 192, 256})
      add(("d" + std::to_string(size)).c_str(), [&](KernelSpec &spec) {
        spec.headDim = spec.vHeadDim = size;
        spec.dtype = size % 128 ? DType::BF16 : DType::F16;
        spec.causal = size != 192;
        if (size == 128)
          spec.alignment = Alignment::Operand;
        if (size == 256)
          spec.qLayout = spec.kLayout = spec.vLayout = spec.oLayout =
              Layout::BSHD;
      });
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
    cuda.targets = {*findCudaTarget("sm_80"), *findCudaTarget("sm_90a")};
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
    this->library = library;
    run = reinterpret_cast<Run>(symbol("prefill_run"));

    // The modules that the library's PTX was emitted from.
    CudaOptions plain;
    plain.runPtxas = false;
    for (const KernelSpec &spec : list) {
      CudaKernel code;
      if (spec.dtype != DType::F32 &&
          (!compileCuda(getCudaSpec(spec), plain, code, error) ||
           !load(std::string(code.name), std::move(code))))
        return false;
    }
    // Those of sm_90a when a test wants them.
    for (const KernelSpec &spec : list)
      for (auto [tensorMaps, persistent, suffix] :
           {std::tuple(false, false, "_sm_90a"),
            std::tuple(true, false, "_sm_90a_tma"),
            std::tuple(true, true, "_sm_90a_persistent_tma")}) {
        KernelSpec sized = getCudaSpec(spec);
        const CudaSchedule schedule = chooseWarpgroupSchedule(
            sized, /*lists=*/false, tensorMaps, persistent);
        sized.blockQ = schedule.blockQ;
        sized.blockK = schedule.blockK;
        hopper["prefill_" + getTileKey(sized) + suffix] = {
            spec.name, tensorMaps, persistent};
      }
    plain.lists = true;
    CudaKernel lists, index;
    if (!compileCuda(getCudaSpec(specs["ashape"]), plain, lists, error) ||
        !load(std::string(lists.name), std::move(lists)))
      return false;
    plain.lists = false;
    for (CudaKernelKind kind :
         {CudaKernelKind::RowSums, CudaKernelKind::LineSums}) {
      plain.kind = kind;
      CudaKernel sums;
      if (!compileCuda(getCudaSpec(specs["vertical"]), plain, sums, error) ||
          !load(std::string(sums.name), std::move(sums)))
        return false;
    }
    plain.kind = CudaKernelKind::Attention;
    if (!compileCudaIndex(plain, index, error))
      return false;
    std::vector<std::string> names;
    for (const llvm::Function &function : *index.module)
      if (function.getCallingConv() == llvm::CallingConv::PTX_Kernel)
        names.push_back(function.getName().str());
    if (!load("index", std::move(index)))
      return false;
    for (const std::string &name : names)
      kernels[name].program = kernels["index"].program;
    for (const char *name :
         {"prefill_rotate", "prefill_convert", "prefill_fill_rows"}) {
      CudaKernel code;
      if (!compileCudaInputs(plain, code, error) ||
          !load(name, std::move(code)))
        return false;
    }
    return true;
  }

  bool load(const std::string &name, CudaKernel code) {
    Kernel &kernel = kernels[name];
    if (kernel.program)
      return true;
    auto program = emu::Program::compile(*code.module);
    if (!program) {
      error = llvm::toString(program.takeError());
      return false;
    }
    kernel.code = std::move(code);
    kernel.program = std::move(*program);
    return true;
  }
};

/// A call with CUDA tensors, which lie in the host's memory.
struct Call {
  /// `otherLayout`: the tensors lie in memory as if the kernel had the other
  /// one of BHSD and BSHD, which their strides say.
  explicit Call(const char *kernel, int batch = 1, int queries = 100,
                int keys = 100, bool otherLayout = false)
      : spec(World::get().specs.at(kernel)), batch(batch), queries(queries),
        keys(keys), size(spec.headDim),
        rowsBesideHeads((spec.qLayout == Layout::BSHD) != otherLayout) {
    const bool bshd = spec.qLayout == Layout::BSHD;
    auto rows = [&](int heads, int length, int size) -> std::vector<int64_t> {
      if (bshd)
        return {batch, length, heads, size};
      return {batch, heads, length, size};
    };
    shapes = {rows(spec.qHeads, queries, size),
              rows(spec.kvHeads, keys, size),
              rows(spec.kvHeads, keys, size),
              rows(spec.qHeads, queries, size),
              {batch, spec.qHeads, queries},
              {batch, keys},
              {spec.qHeads},
              {batch},
              {batch},
              {keys + 8, rotaryWidth()},
              {keys + 8, rotaryWidth()}};
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

    for (int i = 0; i < 2; ++i)
      for (int64_t j = 0; j < shapes[9][0] * shapes[9][1]; ++j)
        tables[i].push_back(
            std::uniform_real_distribution<float>(-1, 1)(random));
    const DLDataType half{
        uint8_t(spec.dtype == DType::BF16 ? kDLBfloat : kDLFloat), 16, 1};
    for (int i = 0; i < 4; ++i) {
      tensors[i] = tensor(shapes[i], data[i].data(), half);
      const std::vector<int64_t> &dims = shapes[i];
      strides[i] = {dims[1] * dims[2] * dims[3], dims[3], dims[1] * dims[3], 1};
      if (otherLayout)
        tensors[i].strides = strides[i].data();
    }
    tensors[4] = tensor(shapes[4], lse.data(), {kDLFloat, 32, 1});
    tensors[5] = tensor(shapes[5], mask.data(), {kDLUInt, 8, 1});
    tensors[6] = tensor(shapes[6], sinks.data(), {kDLFloat, 32, 1});
    tensors[7] = tensor(shapes[7], lengths.data(), {kDLInt, 32, 1});
    tensors[8] = tensor(shapes[8], offsets.data(), {kDLInt, 64, 1});
    for (int i : {9, 10})
      tensors[i] = tensor(shapes[i], tables[i - 9].data(), {kDLFloat, 32, 1});
    inputs.assign(PREFILL_IN_COUNT, nullptr);
    if (spec.rotary != Rotary::None) {
      inputs[PREFILL_IN_COS] = &tensors[9];
      inputs[PREFILL_IN_SIN] = &tensors[10];
    }
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
    context.host = this;
    context.device_alloc = [](void *host, size_t bytes) -> void * {
      Call *call = static_cast<Call *>(host);
      ++call->live;
      char *memory = call->memory.emplace_back(bytes + 255, char(-1)).data();
      return reinterpret_cast<void *>(
          (reinterpret_cast<uintptr_t>(memory) + 255) / 256 * 256);
    };
    context.device_free = [](void *host, void *) {
      --static_cast<Call *>(host)->live;
    };
  }
  Call(const Call &) = delete;

  /// Half tables for rotated halves, one entry an element for pairs.
  int64_t rotaryWidth() const {
    return spec.rotary == Rotary::Half ? spec.rotaryDim / 2 : spec.rotaryDim;
  }

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
    this->driver = driver;
    if (execute) {
      driver->launch = [](void *user, const fake_launch *launch) {
        return static_cast<Call *>(user)->execute(*launch);
      };
      driver->encode = [](void *user, const fake_tensor_map *asked, void *map) {
        return static_cast<Call *>(user)->encode(*asked, map);
      };
      driver->user = this;
    }
    return World::get().run(&context, spec.name.c_str(), inputs.data(),
                            inputs.size(), outputs.data(), outputs.size());
  }

  int execute(const fake_launch &launch) {
    const llvm::StringRef function = launch.function;
    emu::Program *program = World::get().find(function.str(), emulation);
    if (!program)
      return 500;
    streams.push_back(launch.stream);
    functions.push_back(launch.function);
    batches.push_back(launch.grid[2]);
    blocks.push_back(launch.grid[0]);
    emu::Device device;
    for (int i = 0; i < 3; ++i)
      device.addInput(data[i].data(), data[i].size() * 2, "qkv");
    device.addOutput(data[3].data(), data[3].size() * 2, "o");
    if (function == "prefill_fill_rows") // reads what attention wrote
      device.addInput(lse.data(), lse.size() * 4, "lse");
    else
      device.addOutput(lse.data(), lse.size() * 4, "lse");
    if (extra)
      device.addBuffer(extra->data(), extra->size() * 2, "extra");
    // Workspace: what one launch writes the next one reads.
    for (auto &bytes : memory)
      device.addBuffer(bytes.data(), bytes.size(), "workspace");
    for (int i = 0; driver && i < driver->pool_count; ++i)
      device.addBuffer(driver->pool[i], driver->pool_bytes[i], "pool");
    for (auto &table : tables)
      device.addInput(table.data(), table.size() * 4, "table");
    device.addInput(wideMask.data(), wideMask.size() * 8, "mask");
    device.addInput(halfSinks.data(), halfSinks.size() * 2, "sinks");
    device.addInput(mask.data(), mask.size(), "mask");
    device.addInput(sinks.data(), sinks.size() * 4, "sinks");
    device.addInput(lengths.data(), lengths.size() * 4, "lengths");
    device.addInput(offsets.data(), offsets.size() * 8, "offsets");
    emu::Launch emulated;
    emulated.kernel = launch.function;
    emulated.grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
    emulated.block = {launch.block[0], launch.block[1], launch.block[2]};
    emulated.dynamicSharedBytes = launch.shared_bytes;
    if (function == "prefill_rotate")
      emulated.addScalar(
          *static_cast<const prefill_cuda_rotate *>(launch.params));
    else if (function == "prefill_convert")
      emulated.addScalar(
          *static_cast<const prefill_cuda_convert *>(launch.params));
    else if (function == "prefill_fill_rows")
      emulated.addScalar(
          *static_cast<const prefill_cuda_fill *>(launch.params));
    else if (function.starts_with("prefill_attention"))
      emulated.addScalar(
          last = *static_cast<const prefill_cuda_attention *>(launch.params));
    else
      emulated.addScalar(
          *static_cast<const prefill_cuda_index *>(launch.params));
    if (launch.maps)
      emulated.addScalar(
          *static_cast<const prefill_cuda_tensor_maps *>(launch.maps));
    emu::Options how;
    how.late = late;
    auto report = program->run(device, emulated, how);
    if (!report)
      emulation = llvm::toString(report.takeError());
    else if (!report->clean())
      emulation = report->str();
    return emulation.empty() ? 0 : 700;
  }

  /// What the driver's cuTensorMapEncodeTiled does; 1: it refuses.
  int encode(const fake_tensor_map &asked, void *map) {
    emu::TensorMap wanted;
    wanted.base = asked.data;
    wanted.dims.assign(asked.dims, asked.dims + asked.rank);
    wanted.strides.assign(asked.strides, asked.strides + asked.rank - 1);
    wanted.box.assign(asked.box, asked.box + asked.rank);
    wanted.swizzleBytes = asked.swizzle ? 16 << asked.swizzle : 0;
    const int type = spec.dtype == DType::BF16 ? 9 : 6;
    for (unsigned i = 0; i < asked.rank; ++i)
      if (asked.steps[i] != 1)
        return 1;
    if (asked.type != type || asked.interleave || asked.fill)
      return 1;
    auto bytes = emu::encodeTensorMap(wanted);
    if (!bytes) {
      llvm::consumeError(bytes.takeError());
      return 1;
    }
    std::memcpy(map, bytes->data(), bytes->size());
    ++maps;
    return 0;
  }

  size_t at(bool ofQuery, int b, int h, int row) const {
    const int heads = ofQuery ? spec.qHeads : spec.kvHeads;
    const int length = ofQuery ? queries : keys;
    return (rowsBesideHeads ? (size_t(b) * length + row) * heads + h
                            : (size_t(b) * heads + h) * length + row) *
           size;
  }

  /// Element c of a row of Q (0) or K (1) as attention sees it.
  double rotated(int tensor, size_t row, int64_t position, int c) const {
    const int n = spec.rotary == Rotary::None ? 0 : spec.rotaryDim;
    if (c >= n)
      return value(tensor, row + c);
    const bool pairs = spec.rotary == Rotary::Interleaved;
    const int i = pairs ? c / 2 : c % (n / 2);
    const bool second = pairs ? c % 2 : c >= n / 2;
    const int first = pairs ? 2 * i : i, other = pairs ? first + 1 : i + n / 2;
    const size_t at = position * rotaryWidth() + (pairs ? c : i);
    const double cosine = tables[0][at], sine = tables[1][at];
    const double x = value(tensor, row + first), y = value(tensor, row + other);
    const double result =
        second ? y * cosine + x * sine : x * cosine - y * sine;
    return harness::fromStorage(harness::toStorage(float(result), spec.dtype),
                                spec.dtype);
  }

  /// Scores of the keys that a row sees, or, `all`, of all keys.
  std::vector<std::pair<int, double>> scoresOf(int b, int h, int row,
                                               bool all) const {
    const int64_t position = offsets[b] + row;
    std::vector<std::pair<int, double>> scores;
    for (int key = 0; key < (all ? keys : std::min(keys, lengths[b])); ++key) {
      if (!all && ((spec.causal && key > position) ||
                   key < position - spec.windowLeft ||
                   (spec.hasKeyMask && !mask[size_t(b) * keys + key]) ||
                   !isVisited(b, h, row, key)))
        continue;
      double score = 0;
      for (int c = 0; c < size; ++c)
        score += rotated(0, at(true, b, h, row), position, c) *
                 rotated(1, at(false, b, h / 2, key), key, c);
      score /= std::sqrt(double(size));
      if (spec.softcap)
        score = spec.softcap * std::tanh(score / spec.softcap);
      scores.push_back({key, score});
    }
    return scores;
  }

  /// The largest error against float64, of the result and the LSE; infinite
  /// where one of them is not a number and should be.
  double error() const {
    double worst = 0;
    auto grow = [&](double error) {
      if (!(error <= worst))
        worst = std::isnan(error) ? INFINITY : error;
    };
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < spec.qHeads; ++h)
        for (int row = 0; row < queries; ++row) {
          auto scores = scoresOf(b, h, row, /*all=*/false);
          const bool empty = scores.empty() && !spec.hasSink;
          const float got = lse[(size_t(b) * spec.qHeads + h) * queries + row];
          if (empty && got != -INFINITY)
            return INFINITY;
          if (empty && spec.maskedRow == MaskedRow::Scores)
            scores = scoresOf(b, h, row, /*all=*/true);
          if (empty && spec.maskedRow == MaskedRow::Mean)
            for (int key = 0; key < keys; ++key)
              scores.push_back({key, 0});
          double max = spec.hasSink ? sinks[h] : -INFINITY;
          for (auto [key, score] : scores)
            max = std::max(max, score);
          double sum = spec.hasSink ? std::exp(sinks[h] - max) : 0;
          std::vector<double> want(size);
          for (auto [key, score] : scores) {
            const double p = std::exp(score - max);
            sum += p;
            for (int c = 0; c < size; ++c)
              want[c] += p * value(2, at(false, b, h / 2, key) + c);
          }
          const bool isNumber = !empty || spec.maskedRow != MaskedRow::NaN;
          for (int c = 0; c < size; ++c) {
            const double found = value(3, at(true, b, h, row) + c);
            grow(isNumber ? std::fabs(found - (sum > 0 ? want[c] / sum : 0))
                          : (std::isnan(found) ? 0 : INFINITY));
          }
          if (!empty)
            grow(std::fabs(got - (max + std::log(sum))));
        }
    return worst;
  }
  /// Whether the last launch visited a key: always without lists.
  bool isVisited(int b, int h, int row, int key) const {
    if (!last.block_begin)
      return true;
    const int r = (b * spec.qHeads + h) * last.block_rows + row / 128;
    for (int i = last.block_begin[r]; i < last.block_begin[r + 1]; ++i)
      if (last.block_ids[i] == key / 64)
        return true;
    for (int i = last.col_begin[r]; i < last.col_begin[r + 1]; ++i)
      if (last.col_pos[i] == key)
        return true;
    return false;
  }
  /// The share of a head's visible keys that is visited.
  double density(int h) const {
    int64_t visited = 0, visible = 0;
    for (int row = 0; row < queries; ++row)
      for (int key = 0; key <= offsets[0] + row; ++key, ++visible)
        visited += isVisited(0, h, row, key);
    return double(visited) / double(visible);
  }
  double value(int tensor, size_t i) const {
    return harness::fromStorage(data[tensor][i], spec.dtype);
  }

  KernelSpec spec;
  int batch, queries, keys, size; ///< size: of a row
  bool rowsBesideHeads;           ///< in memory: BSHD
  bool late = false;              ///< the emulator's mode
  int maps = 0;                   ///< tensor maps that were encoded
  std::vector<std::vector<int64_t>> shapes;
  std::vector<int64_t> strides[4]; ///< with `otherLayout`
  std::vector<uint16_t> data[4];
  std::vector<float> lse, sinks;
  std::vector<uint8_t> mask;
  std::vector<int32_t> lengths;
  std::vector<int64_t> offsets;
  std::vector<float> tables[2];  ///< cosines, sines
  std::vector<int64_t> wideMask; ///< the mask and the sinks in other types
  std::vector<uint16_t> halfSinks;
  std::vector<std::vector<char>> memory = {}; ///< workspace
  fake_cuda *driver = nullptr;
  prefill_cuda_attention last = {};
  std::vector<uint16_t> *extra = nullptr; ///< another output
  int live = 0;                           ///< of it that is not freed
  std::vector<std::string> functions;     ///< of each launch
  DLTensor tensors[11];
  std::vector<const DLTensor *> inputs;
  std::vector<DLTensor *> outputs;
  prefill_context context = {};
  std::vector<void *> streams;
  std::vector<unsigned> batches, blocks; ///< z and x of each launch's grid
  std::string emulation;
};

} // namespace prefill::harness

#endif
