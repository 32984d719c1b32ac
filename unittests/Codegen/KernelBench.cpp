//===- KernelBench.cpp - Timings of generated kernels ---------------------===//
//
//   prefill-kernel-bench [options]
//     --d=64 --e=D --length=2048,4096 --threads=1,2 --dtype=f32,f16,bf16
//     --heads=2 --density=1,0.25,0.05 --seconds=1 --level=4
//     --rows=N --vectors=N (register tile) --block-q=64 --block-k=64
//     --features=causal,bias,mask,softcap,window (default causal)
//     --emit=tile|llvm|asm (print and stop)
//
// Prints, per configuration, the rate in whole-run wall time (the best of
// interleaved repeats), in processor time, and by the sum of the best time of
// each call, as shares of the FMA peak that is measured in the same process
// between the repeats. Operations are 4 * block_q * block_k * d a visited
// block; diagonal blocks count whole, although kernels leave out most of what
// the mask hides.
//
//===----------------------------------------------------------------------===//

#include "KernelHarness.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

using namespace prefill;
using namespace prefill::harness;

static double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Processor time of this thread: what the wall clock would show on a machine
/// with nothing else to do.
static double processorTime() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

//===----------------------------------------------------------------------===//
// FMA peak
//===----------------------------------------------------------------------===//

#define ACCUMULATE_12(OP, REG)                                                 \
  OP(REG, 2)                                                                   \
  OP(REG, 3)                                                                   \
  OP(REG, 4)                                                                   \
  OP(REG, 5)                                                                   \
  OP(REG, 6)                                                                   \
  OP(REG, 7)                                                                   \
  OP(REG, 8) OP(REG, 9) OP(REG, 10) OP(REG, 11) OP(REG, 12) OP(REG, 13)
#define FMA(REG, N) "vfmadd231ps %%" REG "0, %%" REG "1, %%" REG #N "\n"
#define CLEAR(REG, N) "vxorps %%xmm" #N ", %%xmm" #N ", %%xmm" #N "\n"

/// Billions of floating-point operations a second of one thread.
static double peakOnce(int level) {
  long rounds = 200000;
  const int lanes = level >= 4 ? 16 : 8;
  double start = now();
  long count = rounds;
  if (level >= 4)
    asm volatile(CLEAR("", 0) CLEAR("", 1) ACCUMULATE_12(
                     CLEAR, "") "1:\n" ACCUMULATE_12(FMA, "zmm") "dec %0\n"
                                                                 "jnz 1b\n"
                                                                 "vzeroupper\n"
                 : "+r"(count)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                   "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                   "xmm13", "cc");
  else
    asm volatile(CLEAR("", 0) CLEAR("", 1) ACCUMULATE_12(
                     CLEAR, "") "1:\n" ACCUMULATE_12(FMA, "ymm") "dec %0\n"
                                                                 "jnz 1b\n"
                                                                 "vzeroupper\n"
                 : "+r"(count)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                   "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                   "xmm13", "cc");
  return 2.0 * lanes * 12 * rounds / (now() - start) * 1e-9;
}

//===----------------------------------------------------------------------===//
// Configurations
//===----------------------------------------------------------------------===//

namespace {

struct Options {
  std::vector<int> d{64, 128}, lengths{2048, 4096, 8192}, threads{1};
  std::vector<int> dtypes{0};
  std::vector<double> densities{1};
  int e = 0, heads = 2, level = 0, rows = 0, vectors = 0, blockQ = 64,
      blockK = 64;
  double seconds = 1;
  std::string features = "causal", emit;
};

struct Call {
  int head;
  int64_t tile;
  int64_t begin, count, full;
};

} // namespace

static std::vector<std::string> split(const char *text) {
  std::vector<std::string> parts;
  std::string part;
  for (const char *c = text;; ++c) {
    if (*c == ',' || *c == 0) {
      parts.push_back(part);
      part.clear();
      if (*c == 0)
        return parts;
    } else {
      part += *c;
    }
  }
}

static bool parse(int argc, char **argv, Options &options) {
  for (int i = 1; i < argc; ++i) {
    const char *equals = std::strchr(argv[i], '=');
    std::string name(argv[i], equals ? equals - argv[i] : strlen(argv[i]));
    const char *value = equals ? equals + 1 : "";
    auto integers = [&](std::vector<int> &list) {
      list.clear();
      for (const std::string &part : split(value))
        list.push_back(std::atoi(part.c_str()));
    };
    if (name == "--d")
      integers(options.d);
    else if (name == "--length")
      integers(options.lengths);
    else if (name == "--threads")
      integers(options.threads);
    else if (name == "--density") {
      options.densities.clear();
      for (const std::string &part : split(value))
        options.densities.push_back(std::atof(part.c_str()));
    } else if (name == "--dtype") {
      options.dtypes.clear();
      for (const std::string &part : split(value))
        options.dtypes.push_back(part == "bf16" ? 2 : part == "f16" ? 1 : 0);
    } else if (name == "--e")
      options.e = std::atoi(value);
    else if (name == "--heads")
      options.heads = std::atoi(value);
    else if (name == "--level")
      options.level = std::atoi(value);
    else if (name == "--rows")
      options.rows = std::atoi(value);
    else if (name == "--vectors")
      options.vectors = std::atoi(value);
    else if (name == "--block-q")
      options.blockQ = std::atoi(value);
    else if (name == "--block-k")
      options.blockK = std::atoi(value);
    else if (name == "--seconds")
      options.seconds = std::atof(value);
    else if (name == "--features")
      options.features = value;
    else if (name == "--emit")
      options.emit = value;
    else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return false;
    }
  }
  return true;
}

static int run(const Options &options, const CpuTarget &target, int d,
               int64_t length, int threads, DType dtype, double density) {
  KernelSpec spec;
  spec.dtype = dtype;
  spec.headDim = d;
  spec.vHeadDim = options.e ? options.e : d;
  spec.blockQ = options.blockQ;
  spec.blockK = options.blockK;
  auto has = [&](const char *feature) {
    return options.features.find(feature) != std::string::npos;
  };
  spec.causal = has("causal");
  spec.hasBias = has("bias");
  spec.hasKeyMask = has("mask");
  spec.softcap = has("softcap") ? 50.0f : 0.0f;
  std::string error;
  const LoadedKernel *kernel =
      getKernel(spec, target, error, !options.emit.empty());
  if (!kernel) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 1;
  }
  if (options.emit == "tile") {
    std::string text;
    if (!printTileKernel(spec, KernelKind::Attention, text, error))
      return 1;
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  if (!options.emit.empty()) {
    const std::string &text = options.emit == "llvm" ? kernel->emitted.llvmIR
                                                     : kernel->emitted.assembly;
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  const int64_t size = dtype == DType::F32 ? 4 : 2, e = spec.vHeadDim,
                bq = spec.blockQ, bk = spec.blockK;
  const int heads = options.heads;
  auto allocate = [](size_t bytes) {
    return static_cast<char *>(
        std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
  };
  std::mt19937 random(1);
  auto fill = [&](int64_t count) {
    char *data = allocate(count * size);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) {
      float value = normal(random);
      uint16_t half = toStorage(value, dtype);
      std::memcpy(data + i * size,
                  size == 4 ? static_cast<void *>(&value) : &half, size);
    }
    return data;
  };
  char *q = fill(heads * length * d), *k = fill(heads * length * d),
       *v = fill(heads * length * e), *o = fill(heads * length * e);
  std::vector<float> bias(spec.hasBias ? length * length : 0);
  std::vector<uint8_t> mask(length, 1);
  const int64_t tiles = (length + bq - 1) / bq,
                keyBlocks = (length + bk - 1) / bk;
  std::vector<uint32_t> blocks;
  std::vector<Call> calls;
  std::uniform_real_distribution<double> uniform;
  int64_t all = 0;
  for (int head = 0; head < heads; ++head)
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
      Call call{head, tile, int64_t(blocks.size()), 0, 0};
      int64_t last = spec.causal
                         ? std::min(keyBlocks, ((tile + 1) * bq - 1) / bk + 1)
                         : keyBlocks;
      for (int64_t block = 0; block < last; ++block, ++all) {
        bool diagonal = spec.causal && (block + 1) * bk > tile * bq + 1;
        if (block != 0 && !diagonal && uniform(random) >= density)
          continue;
        blocks.push_back(uint32_t(block));
        call.full += !diagonal && (block + 1) * bk <= length;
      }
      call.count = int64_t(blocks.size()) - call.begin;
      calls.push_back(call);
    }
  double operations = 2.0 * bq * bk * (d + e) * blocks.size();
  std::vector<char *> workspaces;
  for (int t = 0; t < threads; ++t)
    workspaces.push_back(allocate(kernel->attentionWorkspace));
  auto work = [&](const Call &call, char *workspace) {
    prefill_tile_args args;
    std::memset(&args, 0, sizeof(args));
    int64_t first = call.tile * bq;
    args.q = q + (call.head * length + first) * d * size;
    args.k = k + call.head * length * d * size;
    args.v = v + call.head * length * e * size;
    args.o = o + (call.head * length + first) * e * size;
    args.q_stride = args.k_stride = d;
    args.v_stride = args.o_stride = e;
    args.rows = std::min(bq, length - first);
    args.position = first;
    args.kv_len = length;
    args.window_left = KernelSpec::Unbounded;
    args.window_right = spec.causal ? 0 : KernelSpec::Unbounded;
    args.scale = 1.0f / std::sqrt(float(d));
    args.softcap = spec.softcap;
    args.blocks = blocks.data() + call.begin;
    args.block_count = call.count;
    args.full_count = call.full;
    args.key_mask = mask.data();
    args.bias = spec.hasBias ? bias.data() + first * length : nullptr;
    args.bias_row_stride = length;
    args.bias_key_stride = 1;
    args.workspace = workspace;
    kernel->attention(&args);
  };
  double peak = 0, wall = 1e30, processor = 1e30;
  std::vector<double> best(calls.size(), 1e30);
  // A pool that spins: thread start is not what is measured here.
  std::atomic<int> generation{0}, busy{0};
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  auto drain = [&](char *workspace) {
    for (size_t i; (i = next.fetch_add(1)) < calls.size();)
      work(calls[i], workspace);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t)
    pool.emplace_back([&, t] {
      for (int seen = 0;;) {
        while (generation.load() == seen && !stop.load())
          std::this_thread::yield();
        if (stop.load())
          return;
        seen = generation.load();
        drain(workspaces[t]);
        busy.fetch_sub(1);
      }
    });
  double end = now() + options.seconds;
  for (int repeat = 0; repeat < 3 || now() < end; ++repeat) {
    peak = std::max(peak, peakOnce(target.level));
    double start = now(), startProcessor = processorTime();
    if (threads == 1) {
      for (size_t i = 0; i < calls.size(); ++i) {
        double begin = now();
        work(calls[i], workspaces[0]);
        best[i] = std::min(best[i], now() - begin);
      }
    } else {
      next = 0;
      busy = threads - 1;
      generation.fetch_add(1);
      drain(workspaces[0]);
      while (busy.load() != 0)
        ;
    }
    wall = std::min(wall, now() - start);
    processor = std::min(processor, processorTime() - startProcessor);
  }
  stop = true;
  for (std::thread &thread : pool)
    thread.join();
  double perCall = 0;
  for (double seconds : best)
    perCall += seconds;
  double rate = operations / wall * 1e-9;
  static const char *names[] = {"f32", "f16", "bf16"};
  std::printf(
      "v%d %-4s d %3d e %3d length %5lld threads %d kept %.3f: %7.2f ms "
      "%6.1f GF/s = %4.1f %% of peak wall",
      target.level, names[int(dtype)], d, int(e), (long long)length, threads,
      double(blocks.size()) / all, wall * 1e3, rate,
      100 * rate / (peak * threads));
  if (threads == 1)
    std::printf(", %4.1f %% processor time, %4.1f %% by calls",
                100 * operations / processor * 1e-9 / peak,
                100 * operations / perCall * 1e-9 / peak);
  std::printf(" (peak %.1f)\n", peak);
  std::fflush(stdout);
  for (char *memory : {q, k, v, o})
    std::free(memory);
  for (char *memory : workspaces)
    std::free(memory);
  return 0;
}

int main(int argc, char **argv) {
  Options options;
  if (!parse(argc, argv, options))
    return 2;
  auto target = getCpuTarget(options.level ? options.level : machineLevel());
  if (!target) {
    std::fprintf(stderr, "no such level\n");
    return 2;
  }
  if (options.rows)
    target->tileRows = options.rows;
  if (options.vectors)
    target->tileVectors = options.vectors;
  for (int dtype : options.dtypes)
    for (int d : options.d)
      for (int length : options.lengths)
        for (double density : options.densities)
          for (int threads : options.threads)
            if (int status = run(options, *target, d, length, threads,
                                 DType(dtype), density))
              return status;
  return 0;
}
