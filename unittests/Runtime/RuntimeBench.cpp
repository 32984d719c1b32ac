//===- RuntimeBench.cpp - What the runtime costs, with generated kernels
//----===//
//
//   prefill-runtime-bench [--d=64] [--q-heads=9] [--kv-heads=3]
//                         [--length=128,512,...] [--threads=1] [--seconds=1]
//                         [--level=4] [--dtype=f32] [--portable-score]
//                         [--pattern=TEXT: only those whose names hold it]
//
// Per length, the best of interleaved repeats, processor time with one thread
// and wall time with more:
//   dense       ms of dense attention
//   tile calls  share of `dense` spent in tile functions alone (one thread)
//   estimate    share of `dense` that estimating and indexing take, per pattern
//   sparse      time of whole sparse calls as a share of dense, with the
//               density reached; `auto` leaves the decision to the cost
//               function
// Then the products of bytes that SALE's estimate is made of: billions of
// multiply-adds a second, and what they are of the instruction's own peak.
// The constants of cost.c come from here.
//
//===----------------------------------------------------------------------===//
#include "../Codegen/KernelHarness.h"
#include "quantized.h"
#include "sparse.h"
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <immintrin.h>
#include <random>
#include <string>
#include <vector>

using namespace prefill;

namespace {

/// Seconds: of processor time when one thread runs (another process on the same
/// core does not count then), else of wall time.
clockid_t usedClock = CLOCK_MONOTONIC;
double now() {
  timespec t;
  clock_gettime(usedClock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Options {
  int d = 64, qHeads = 9, kvHeads = 3, threads = 1, level = 0, dtype = 0;
  bool portable = false;
  std::string pattern;
  double seconds = 1;
  std::vector<int64_t> lengths{128, 256, 512, 1024, 2048, 4096, 8192};
};

/// Times of several contenders, taken in turns.
struct Race {
  struct Entry {
    std::string name;
    std::function<void()> body;
    double best = 1e30;
  };
  std::vector<Entry> entries;
  void add(std::string name, std::function<void()> body) {
    entries.push_back({std::move(name), std::move(body)});
  }
  void run(double seconds) {
    const double end = now() + seconds;
    for (int round = 0; round < 3 || now() < end; ++round)
      for (Entry &entry : entries) {
        const double start = now();
        entry.body();
        entry.best = std::min(entry.best, now() - start);
      }
  }
  double operator[](const std::string &name) const {
    for (const Entry &entry : entries)
      if (entry.name == name)
        return entry.best;
    return 0;
  }
};

/// Tensors of a problem with attention that has sinks, verticals and a local
/// part, roughly as models have it.
struct Data {
  std::vector<float> q, k, v, o, density;
  int64_t qShape[4], kShape[4], densityShape[2];
  DLTensor qt{}, kt{}, vt{}, ot{}, dt{};
  std::vector<char> q16, k16, v16, o16;

  std::vector<int64_t> kinds; // runs of 576 of one kind and of another
  int64_t kindsShape[1];
  DLTensor mt{};

  Data(const Options &options, int64_t s) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    const int64_t d = options.d, hq = options.qHeads, hk = options.kvHeads;
    q.resize(hq * s * d);
    k.resize(hk * s * d);
    v.resize(hk * s * d);
    o.resize(hq * s * d);
    density.resize(hq);
    auto rotation = [&](int64_t position, int64_t c) {
      double w = std::pow(10000.0, -double(c / 2) / double(d / 2));
      return float(c % 2 ? std::sin(double(position) * w)
                         : std::cos(double(position) * w));
    };
    for (int64_t h = 0; h < hq; ++h)
      for (int64_t i = 0; i < s; ++i)
        for (int64_t c = 0; c < d; ++c)
          q[(h * s + i) * d + c] = c < d / 2
                                       ? 2 * rotation(i, c)
                                       : normal(engine) + (c == d - 1) * 6;
    for (int64_t h = 0; h < hk; ++h)
      for (int64_t j = 0; j < s; ++j) {
        const bool vertical = j < 4 || engine() % 61 == 0;
        for (int64_t c = 0; c < d; ++c) {
          k[(h * s + j) * d + c] =
              c < d / 2 ? 2 * rotation(j, c)
                        : normal(engine) + (c == d - 1 && vertical) * 6;
          v[(h * s + j) * d + c] = normal(engine);
        }
      }
    std::copy_n(std::array<int64_t, 4>{1, hq, s, d}.data(), 4, qShape);
    std::copy_n(std::array<int64_t, 4>{1, hk, s, d}.data(), 4, kShape);
    densityShape[0] = 1;
    densityShape[1] = hq;
    qt = tensor(q, q16, qShape, 4, options.dtype);
    kt = tensor(k, k16, kShape, 4, options.dtype);
    vt = tensor(v, v16, kShape, 4, options.dtype);
    ot = tensor(o, o16, qShape, 4, options.dtype);
    dt = tensor(density, q16, densityShape, 2, 0);
    for (int64_t j = 0; j < s; ++j)
      kinds.push_back(j / 576 % 2);
    kindsShape[0] = s;
    mt.data = kinds.data();
    mt.device = {kDLCPU, 0};
    mt.ndim = 1;
    mt.dtype = {kDLInt, 64, 1};
    mt.shape = kindsShape;
  }
  static DLTensor tensor(std::vector<float> &values, std::vector<char> &narrow,
                         int64_t *shape, int rank, int dtype) {
    DLTensor t{};
    t.data = values.data();
    t.device = {kDLCPU, 0};
    t.ndim = rank;
    t.dtype = {kDLFloat, 32, 1};
    t.shape = shape;
    if (dtype) {
      narrow.resize(values.size() * 2);
      pf_hot_for(pf_cpu_isa())
          ->from_float(narrow.data(), values.data(), int64_t(values.size()),
                       dtype);
      t.data = narrow.data();
      t.dtype = {uint8_t(dtype == 1 ? kDLFloat : kDLBfloat), 16, 1};
    }
    return t;
  }
};

prefill_tile_fn realTile;
double tileSeconds; // of one thread
void timedTile(const prefill_tile_args *args) {
  const double start = now();
  realTile(args);
  tileSeconds += now() - start;
}

void run(const Options &options, int64_t s,
         const prefill_tile_variant &variant) {
  Data data(options, s);
  prefill_attention_desc desc{};
  desc.abi = PREFILL_KERNEL_ABI;
  desc.features = PREFILL_TILE_CAUSAL;
  desc.name = "bench";
  desc.dtype = options.dtype;
  desc.o_rank = 4;
  desc.q_heads = options.qHeads;
  desc.kv_heads = options.kvHeads;
  desc.head_dim = desc.v_head_dim = options.d;
  desc.block_q = desc.block_k = 64;
  desc.window_left = PF_UNBOUNDED;
  desc.scale = NAN;
  desc.variants = &variant;
  desc.variant_count = 1;

  prefill_pool *pool = prefill_pool_create(size_t(options.threads));
  prefill_context context{};
  context.host = pool;
  context.parallel_for = prefill_pool_parallel_for;
  const DLTensor *inputs[PREFILL_IN_COUNT] = {&data.qt, &data.kt, &data.vt};
  DLTensor *outputs[] = {&data.ot, nullptr, &data.dt};
  inputs[PREFILL_IN_MODALITY] = &data.mt;
  auto call = [&](const prefill_attention_desc *kernel, size_t count = 3) {
    if (prefill_attention(kernel, &context, inputs, count, outputs, 3)) {
      std::fprintf(stderr, "%s\n", context.message);
      std::exit(1);
    }
  };

  struct Pattern {
    const char *name;
    prefill_head_plan head;
    int32_t denseBelow;
    std::vector<prefill_head_plan> heads;
    prefill_plan plan;
    prefill_attention_desc desc;
    float density;
    size_t inputs = 3; // more: with modalities
  };
  prefill_head_plan tokens{}, share{}, little{}, columns{}, blocks{}, shape{},
      strided{}, sampled{}, sale{}, mass{}, few{}, share90{}, flex{},
      flexAware{}, group{}, guard{}, grid{}, known{}, rows{}, pairs{};
  tokens.pattern = share.pattern = little.pattern =
      PREFILL_PATTERN_VERTICAL_SLASH;
  tokens.last = share.last = little.last = 64;
  tokens.vertical = 1000;
  tokens.slash = 6096;
  columns = tokens; // 100 diagonals are always kept
  columns.slash = 0;
  share.density = 0.25f;
  little.density = 0.05f;
  blocks.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  blocks.density = 0.25f;
  shape.pattern = PREFILL_PATTERN_A_SHAPE;
  shape.init = 128;
  shape.local = 512;
  strided.pattern = PREFILL_PATTERN_XATTENTION;
  sampled.pattern = PREFILL_PATTERN_SAMPLED;
  strided.stride = sampled.stride = 8;
  strided.top_p = sampled.top_p = 0.95f;
  sale.pattern = mass.pattern = PREFILL_PATTERN_SALE;
  sale.bits = mass.bits = 8;
  sale.init = mass.init = 32;
  sale.local = mass.local = 128;
  sale.threshold = 0.02f;
  mass.top_p = 0.95f;
  few = mass;
  few.stride = 4;
  share90.pattern = guard.pattern = PREFILL_PATTERN_BLOCK_SPARSE;
  share90.top_p = guard.top_p = 0.9f;
  guard.similarity = 0.1f;
  flex.pattern = flexAware.pattern = PREFILL_PATTERN_FLEXPREFILL;
  flex.top_p = flexAware.top_p = 0.9f;
  flex.last = flexAware.last = 64;
  flex.min_budget = flexAware.min_budget = 512;
  flexAware.threshold = 1; // every head is query-aware
  group.pattern = PREFILL_PATTERN_INFLLM_V2;
  group.init = 64;
  group.local = 2048;
  group.top_k = 64;
  grid.pattern = PREFILL_PATTERN_GRID;
  grid.init = grid.last = 64;
  grid.top_p = 0.9f;
  grid.vertical = grid.horizontal = grid.slash = 1;
  known = grid;
  known.stride = 128;
  rows = tokens;
  rows.pattern = PREFILL_PATTERN_Q_BOUNDARY;
  rows.slash = 1024;
  rows.init = 30;
  rows.local = 100;
  pairs = rows;
  pairs.pattern = PREFILL_PATTERN_2D_BOUNDARY;
  std::vector<Pattern> patterns = {
      {"vs(1000,6096) auto", tokens, -1, {}, {}, {}, 0},
      {"vs 25% auto", share, -1, {}, {}, {}, 0},
      {"vs 25%", share, 0, {}, {}, {}, 0},
      {"vs 5%", little, 0, {}, {}, {}, 0},
      {"vs columns", columns, 0, {}, {}, {}, 0},
      {"blocks 25%", blocks, 0, {}, {}, {}, 0},
      {"a-shape(128,512)", shape, 0, {}, {}, {}, 0},
      {"xattention 8 95%", strided, 0, {}, {}, {}, 0},
      {"sampled 8 95%", sampled, 0, {}, {}, {}, 0},
      {"sale 0.02", sale, 0, {}, {}, {}, 0},
      {"sale 95%", mass, 0, {}, {}, {}, 0},
      {"sale 4 95%", few, 0, {}, {}, {}, 0},
      {"block-topp 90%", share90, 0, {}, {}, {}, 0},
      {"block-topp guard", guard, 0, {}, {}, {}, 0},
      {"flexprefill", flex, 0, {}, {}, {}, 0},
      {"flexprefill aware", flexAware, 0, {}, {}, {}, 0},
      {"infllm-v2", group, 0, {}, {}, {}, 0},
      {"grid", grid, 0, {}, {}, {}, 0}, // there is none: dense
      {"grid of 128", known, 0, {}, {}, {}, 0},
      {"q-boundary", rows, 0, {}, {}, {}, 0, PREFILL_IN_COUNT},
      {"2d-boundary", pairs, 0, {}, {}, {}, 0, PREFILL_IN_COUNT}};
  for (size_t i = patterns.size(); i-- > 0;)
    if (!std::strstr(patterns[i].name, options.pattern.c_str()))
      patterns.erase(patterns.begin() + long(i));
  for (Pattern &p : patterns) {
    p.heads.assign(size_t(options.qHeads), p.head);
    p.plan = {p.denseBelow, options.qHeads, p.heads.data()};
    p.desc = desc;
    p.desc.plan = &p.plan;
  }

  Race race;
  race.add("dense", [&] { call(&desc); });
  for (Pattern &p : patterns) {
    race.add(p.name, [&] {
      call(&p.desc, p.inputs);
      p.density = data.density[0];
    });
    race.add(std::string("estimate ") + p.name, [&] {
      pf_call c{};
      c.desc = &p.desc;
      c.context = &context;
      if (pf_check(&c, inputs, p.inputs, outputs, 3) || pf_build_index(&c))
        std::exit(1);
      pf_release_all(&c);
    });
  }
  race.run(options.seconds);
  const double dense = race["dense"];
  const double blocksCount = double(s / 64) * double(s / 64 + 1) / 2;
  std::printf("%6lld keys: dense %9.3f ms, %6.2f us a block", (long long)s,
              dense * 1e3,
              dense * 1e6 * options.threads / (blocksCount * options.qHeads));
  if (options.threads == 1) {
    prefill_tile_variant timed = variant;
    realTile = variant.attention;
    timed.attention = timedTile;
    prefill_attention_desc timedDesc = desc;
    timedDesc.variants = &timed;
    double best = 0;
    for (int i = 0; i < 5; ++i) {
      tileSeconds = 0;
      const double start = now();
      call(&timedDesc);
      best = std::max(best, tileSeconds / (now() - start));
    }
    std::printf(", tile calls %.2f %%", best * 100);
  }
  std::printf("\n");
  for (Pattern &p : patterns)
    std::printf("    %-20s density %5.3f  time %6.3f  estimate %6.3f %%\n",
                p.name, double(p.density), race[p.name] / dense,
                race[std::string("estimate ") + p.name] / dense * 100);
  prefill_pool_destroy(pool);
}

/// Multiply-adds a second of dpbusd alone, on registers.
__attribute__((target("avx512f,avx512vnni"))) double vnniPeak(double seconds) {
  __m512i sums[12], a = _mm512_set1_epi32(0x01020304), b = a;
  for (__m512i &sum : sums)
    sum = _mm512_setzero_si512();
  constexpr int Repeats = 100000;
  double best = 0;
  for (const double end = now() + seconds; now() < end;) {
    const double start = now();
    for (int i = 0; i < Repeats; ++i) {
      for (__m512i &sum : sums)
        sum = _mm512_dpbusd_epi32(sum, a, b);
      asm volatile("" : "+v"(a), "+v"(b)); // not to be left out
    }
    best = std::max(best, 64.0 * 12 * Repeats / (now() - start));
  }
  for (__m512i &sum : sums)
    asm volatile("" : : "v"(sum));
  return best;
}

/// The products of 64 rows with 8192 keys.
void runBytes(const Options &options) {
  constexpr int64_t Keys = 8192, Block = 64;
  const int64_t groups = (options.d + 3) / 4;
  const uint32_t isa =
      std::min(pf_cpu_isa(), options.level ? uint32_t(options.level) : 9u);
  const pf_quantized_hot *hot = pf_quantized_for(isa);
  std::vector<int8_t> q(size_t(groups * 4 * PF_QUANTIZED_LANES), 3);
  std::vector<uint8_t> k(size_t(groups * 4 * Keys), 5);
  std::vector<int32_t> sums(PF_QUANTIZED_LANES), most(sums), out(Block * 64);
  std::vector<float> factor(PF_QUANTIZED_LANES, 1e-6f), sum(factor);
  Race race;
  auto each = [&](auto body) {
    return [=, &k] {
      for (int64_t block = 0; block < Keys / Block; ++block)
        body(k.data() + block * Block * groups * 4);
    };
  };
  race.add("largest", each([&](const uint8_t *keys) {
             hot->dots(nullptr, most.data(), q.data(), sums.data(), keys,
                       groups, Block);
           }));
  race.add("all", each([&](const uint8_t *keys) {
             hot->dots(out.data(), most.data(), q.data(), sums.data(), keys,
                       groups, Block);
           }));
  race.add("exponentials", each([&](const uint8_t *keys) {
             hot->dots(out.data(), most.data(), q.data(), sums.data(), keys,
                       groups, Block);
             hot->exp_sum(sum.data(), out.data(), most.data(), factor.data(),
                          Block);
           }));
  race.run(options.seconds);
  const double peak = hot == &pf_quantized_vnni ? vnniPeak(0.2) : 0;
  for (const Race::Entry &entry : race.entries) {
    const double rate = double(Keys) * 64 * double(groups * 4) / entry.best;
    std::printf("bytes, %-12s %7.1f G/s", entry.name.c_str(), rate * 1e-9);
    if (peak > 0)
      std::printf(", %5.1f %% of VNNI's %.1f", rate / peak * 100, peak * 1e-9);
    std::printf("\n");
  }
}

} // namespace

int main(int argc, char **argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const char *equals = std::strchr(argv[i], '=');
    const std::string name(argv[i],
                           equals ? size_t(equals - argv[i]) : strlen(argv[i]));
    const char *value = equals ? equals + 1 : "";
    if (name == "--d")
      options.d = std::atoi(value);
    else if (name == "--q-heads")
      options.qHeads = std::atoi(value);
    else if (name == "--kv-heads")
      options.kvHeads = std::atoi(value);
    else if (name == "--threads")
      options.threads = std::atoi(value);
    else if (name == "--level")
      options.level = std::atoi(value);
    else if (name == "--pattern")
      options.pattern = value;
    else if (name == "--portable-score")
      options.portable = true;
    else if (name == "--seconds")
      options.seconds = std::atof(value);
    else if (name == "--dtype")
      options.dtype = !strcmp(value, "bf16") ? 2 : !strcmp(value, "f16");
    else if (name == "--length") {
      options.lengths.clear();
      for (const char *at = value; *at;) {
        options.lengths.push_back(
            std::strtoll(at, const_cast<char **>(&at), 10));
        at += *at == ',';
      }
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 1;
    }
  }
  KernelSpec spec;
  spec.causal = true;
  spec.dtype = static_cast<DType>(options.dtype);
  spec.headDim = spec.vHeadDim = options.d;
  const int level = options.level ? options.level : harness::machineLevel();
  std::string error;
  const harness::LoadedKernel *kernel =
      harness::getKernel(spec, *getCpuTarget(level), error);
  if (!kernel) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 1;
  }
  prefill_tile_variant variant{};
  variant.isa = uint32_t(level);
  variant.vector_bytes = 64;
  variant.workspace_bytes =
      uint64_t(std::max(kernel->attentionWorkspace, kernel->scoreWorkspace));
  variant.attention = kernel->attention;
  variant.score = options.portable ? nullptr : kernel->score;
  if (options.threads == 1)
    usedClock = CLOCK_PROCESS_CPUTIME_ID;
  for (int64_t s : options.lengths)
    run(options, s, variant);
  runBytes(options);
  return 0;
}
