//===- Images.cpp - All CUDA code of a model ------------------------------===//

#include "prefill/Codegen/CUDA/Images.h"
#include "../Library/Cache.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/CUDA/IndexKernels.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/cuda_index.h"
#include "prefill/kernel_abi.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/Compression.h"
#include "llvm/Support/FileSystem.h"
#include <atomic>
#include <thread>

using namespace prefill;
using llvm::StringRef;
using llvm::Twine;

static const CudaTarget targets[] = {{"sm_80", 80},
                                     {"sm_86", 86},
                                     {"sm_89", 89},
                                     {"sm_90", 90},
                                     {"sm_90a", 90, true}};

std::optional<CudaTarget> prefill::findCudaTarget(StringRef name) {
  for (const CudaTarget &target : targets)
    if (name == target.name)
      return target;
  return std::nullopt;
}

std::string prefill::cudaTargetNames() {
  std::string names;
  for (const CudaTarget &target : targets)
    names += (names.empty() ? "" : ", ") + target.name;
  return names;
}

namespace {

/// One kernel for one target.
struct Job {
  const KernelSpec *spec;
  int kind; ///< PREFILL_CUDA_*
  CudaTarget target;
  bool wantPtx; ///< beside the cubin
  bool ptxOnly; ///< nobody asked for a cubin
  std::string key;
  /// The result: code, or an error.
  CudaImage image;
  std::string cubin, ptx, error;
  bool cached = false;
  /// An alternative that this kernel cannot have; the image's note says why.
  bool declined() const { return cubin.empty() && ptx.empty(); }
};

} // namespace

KernelSpec prefill::getCudaSpec(const KernelSpec &spec) {
  KernelSpec device = spec;
  device.heads.clear();
  device.rotary = Rotary::None;
  device.rotaryDim = 0;
  return device;
}

bool prefill::isSparseOnGpu(const KernelSpec &spec, const HeadPlan &head) {
  if (!spec.causal || head.similarity > 0)
    return false;
  auto schedule = [&] {
    return chooseWarpgroupSchedule(spec, /*lists=*/true, /*tensorMaps=*/false,
                                   /*persistent=*/false);
  };
  switch (static_cast<prefill_pattern>(head.pattern)) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
  case PREFILL_PATTERN_STRIDED:
  case PREFILL_PATTERN_VERTICAL_SLASH:
  case PREFILL_PATTERN_BLOCK_SPARSE:
  case PREFILL_PATTERN_FLEXPREFILL:
  case PREFILL_PATTERN_INFLLM_V2:
  case PREFILL_PATTERN_SALE:
    return true;
  case PREFILL_PATTERN_SAMPLED:
    return head.stride > 0 && schedule().blockQ % head.stride == 0;
  case PREFILL_PATTERN_XATTENTION:
    return head.stride > 0 && schedule().blockK % head.stride == 0;
  default:
    return false;
  }
}

/// The kinds of code that calls of a kernel may need.
static std::vector<int> kindsOf(const KernelSpec &spec,
                                const CudaTarget &target) {
  std::vector<int> kinds = {PREFILL_CUDA_DENSE};
  if (target.exact) {
    kinds.push_back(PREFILL_CUDA_DENSE_TMA);
    if (isPersistentCarried(spec))
      kinds.push_back(PREFILL_CUDA_DENSE_PERSISTENT);
  }
  if (spec.rotary != Rotary::None || spec.hasKeyMask || spec.hasSink ||
      spec.maskedRow != MaskedRow::Zero)
    kinds.push_back(PREFILL_CUDA_INPUTS);
  bool sparse = false, sums = false;
  for (const HeadPlan &head : spec.heads)
    if (isSparseOnGpu(spec, head)) {
      sparse = true;
      sums |= PREFILL_CUDA_SUMMED >> static_cast<int>(head.pattern) & 1;
    }
  if (sparse) {
    kinds.push_back(PREFILL_CUDA_LISTS);
    kinds.push_back(PREFILL_CUDA_INDEX);
  }
  if (sums) {
    kinds.push_back(PREFILL_CUDA_ROW_SUMS);
    kinds.push_back(PREFILL_CUDA_LINE_SUMS);
  }
  return kinds;
}

/// The kinds that are the same for all kernels.
static bool servesAll(int kind) {
  return kind == PREFILL_CUDA_INPUTS || kind == PREFILL_CUDA_INDEX;
}

/// The assembler, by path, size and time: another one may give other code.
static std::string identify(StringRef ptxas) {
  llvm::sys::fs::file_status status;
  if (ptxas.empty() || llvm::sys::fs::status(ptxas, status))
    return ptxas.str();
  return (ptxas + " " + Twine(status.getSize()) + " " +
          Twine(status.getLastModificationTime().time_since_epoch().count()))
      .str();
}

/// Cache entries: numbers and the function's name in a line, the note in a
/// line, cubin, PTX.
static std::string pack(const Job &job) {
  const CudaImage &image = job.image;
  std::string text;
  for (int64_t number :
       {int64_t(image.blockQ), int64_t(image.blockK), int64_t(image.threads),
        int64_t(image.sharedBytes), int64_t(image.stages),
        int64_t(image.registers), int64_t(image.spillBytes),
        int64_t(job.cubin.size())})
    text += std::to_string(number) + " ";
  return text + image.function + "\n" + image.note + "\n" + job.cubin + job.ptx;
}

static bool unpack(StringRef text, Job &job) {
  auto [line, rest] = text.split('\n');
  auto [note, code] = rest.split('\n');
  llvm::SmallVector<StringRef> words;
  line.split(words, ' ');
  CudaImage &image = job.image;
  size_t cubin;
  if (words.size() != 9 || words[0].getAsInteger(10, image.blockQ) ||
      words[1].getAsInteger(10, image.blockK) ||
      words[2].getAsInteger(10, image.threads) ||
      words[3].getAsInteger(10, image.sharedBytes) ||
      words[4].getAsInteger(10, image.stages) ||
      words[5].getAsInteger(10, image.registers) ||
      words[6].getAsInteger(10, image.spillBytes) ||
      words[7].getAsInteger(10, cubin) || cubin > code.size())
    return false;
  image.function = words[8].str();
  image.note = note.str();
  job.cubin = code.take_front(cubin).str();
  job.ptx = code.drop_front(cubin).str();
  return true;
}

static void runJob(Job &job, const std::string &ptxas,
                   const CudaImageOptions &options, const KernelCache &cache) {
  CudaOptions cuda;
  cuda.arch = job.target.arch;
  cuda.archSpecific = job.target.exact;
  cuda.ptxas = ptxas;
  cuda.runPtxas = !ptxas.empty() && !job.ptxOnly;
  cuda.allowSpills = options.allowSpills;
  cuda.lists = job.kind == PREFILL_CUDA_LISTS;
  cuda.persistent = job.kind == PREFILL_CUDA_DENSE_PERSISTENT;
  cuda.tensorMaps = job.kind == PREFILL_CUDA_DENSE_TMA || cuda.persistent;
  if (job.kind == PREFILL_CUDA_ROW_SUMS)
    cuda.kind = CudaKernelKind::RowSums;
  if (job.kind == PREFILL_CUDA_LINE_SUMS)
    cuda.kind = CudaKernelKind::LineSums;
  const KernelSpec spec = getCudaSpec(*job.spec);
  // Some change with the compiler alone.
  std::string text;
  if (!servesAll(job.kind) &&
      !printCuda(spec, cuda, CudaText::Tile, text, job.error))
    return;
  const std::string key = KernelCache::makeKey(
      "cuda " + std::to_string(job.kind) + " " + job.target.name + "\n" +
      identify(cuda.runPtxas ? ptxas : "") +
      (options.allowSpills ? " spills\n" : "\n") + text);
  std::string entry;
  if ((job.cached = cache.lookup(key, entry) && unpack(entry, job)))
    return;
  CudaKernel kernel;
  if (!(job.kind == PREFILL_CUDA_INPUTS
            ? compileCudaInputs(cuda, kernel, job.error)
        : job.kind == PREFILL_CUDA_INDEX
            ? compileCudaIndex(cuda, kernel, job.error)
            : compileCuda(spec, cuda, kernel, job.error)))
    return;
  const CudaReport &report = kernel.report;
  job.image.function = kernel.name; // of the module, for those beside attention
  job.image.blockQ = report.schedule.blockQ;
  job.image.blockK = report.schedule.blockK;
  job.image.threads = report.threads;
  job.image.sharedBytes = report.sharedBytes;
  if (report.schedule.blockK)
    job.image.stages = report.schedule.stages;
  job.image.registers = report.ptxas.registers;
  job.image.spillBytes = report.ptxas.spillStores + report.ptxas.spillLoads;
  if (StringRef(report.note).starts_with("runs "))
    job.image.note = StringRef(report.note).split(';').first.str();
  if (cuda.tensorMaps != report.schedule.tensorMaps ||
      cuda.persistent != report.schedule.persistent) {
    // It is another kind's code, or no better.
    job.image.note = StringRef(report.note).split("; ").second.str();
  } else {
    job.cubin = std::move(kernel.cubin);
    job.ptx = std::move(kernel.ptx);
  }
  cache.insert(key, pack(job));
}

static void runJobs(std::vector<Job> &jobs, const std::string &ptxas,
                    const CudaImageOptions &options) {
  const KernelCache cache =
      KernelCache::open(options.cacheDir, options.useCache);
  const unsigned threads =
      options.threads ? options.threads : std::thread::hardware_concurrency();
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < jobs.size();)
      runJob(jobs[i], ptxas, options, cache);
  };
  std::vector<std::thread> pool;
  for (unsigned t = 1; t < threads && t < jobs.size(); ++t)
    pool.emplace_back(work);
  work();
  for (std::thread &thread : pool)
    thread.join();
}

/// The image of one form of a job's code.
static CudaImage makeImage(const Job &job, bool isPtx) {
  CudaImage image = job.image;
  // The driver takes PTX as a C string.
  const std::string code = isPtx ? job.ptx + '\0' : job.cubin;
  image.target = job.target.name;
  image.arch = job.target.arch;
  image.exactArch = job.target.exact;
  image.isPtx = isPtx;
  image.kind = job.kind;
  if (isPtx)
    image.registers = image.spillBytes = 0;
  image.size = code.size();
  llvm::SmallVector<uint8_t> bytes;
  llvm::compression::zlib::compress(
      llvm::arrayRefFromStringRef(code), bytes,
      llvm::compression::zlib::BestSizeCompression);
  image.data = llvm::toStringRef(bytes).str();
  return image;
}

bool prefill::compileCudaImages(llvm::ArrayRef<KernelSpec> specs,
                                const CudaImageOptions &options,
                                CudaLibrary &library, std::string &error) {
  error.clear();
  library = CudaLibrary();
  // The newest first: what the runtime takes first, and what PTX is kept of.
  std::vector<CudaTarget> targets = options.targets;
  llvm::sort(targets, [](const CudaTarget &a, const CudaTarget &b) {
    return std::pair(a.arch, a.exact) > std::pair(b.arch, b.exact);
  });
  targets.erase(llvm::unique(targets,
                             [](const CudaTarget &a, const CudaTarget &b) {
                               return a.name == b.name;
                             }),
                targets.end());
  const std::string ptxas =
      options.runPtxas ? findPtxas(options.ptxas) : std::string();
  if (!ptxas.empty() && !llvm::sys::fs::can_execute(ptxas)) {
    error = "-ptxas=" + ptxas + ": not a program";
    return false;
  }

  std::vector<Job> jobs;
  std::map<std::string, std::vector<size_t>> jobsOf;
  for (const KernelSpec &spec : specs) {
    std::vector<size_t> &own = jobsOf[spec.name];
    auto want = [&](const CudaTarget &target, bool ptx, bool cubin) {
      for (int kind : kindsOf(spec, target)) {
        const std::string key =
            (servesAll(kind) ? "" : getTileKey(getCudaSpec(spec)) + " ") +
            std::to_string(kind) + " " + target.name;
        size_t number = 0;
        while (number < jobs.size() && jobs[number].key != key)
          ++number;
        if (number == jobs.size())
          jobs.push_back(
              {&spec, kind, target, false, !cubin, key, {}, {}, {}, {}, false});
        jobs[number].wantPtx |= ptx;
        own.push_back(number);
      }
    };
    bool portable = false;
    for (const CudaTarget &target : targets) {
      std::string reason = checkCudaSpec(getCudaSpec(spec), target.arch);
      if (!reason.empty()) {
        const std::string prefix =
            "kernel '" + spec.name + "' for " + getChip(target.arch) + ": ";
        StringRef text = reason;
        text.consume_front(prefix);
        library.refusals.push_back({spec.name, target.name, text.str()});
        continue;
      }
      // PTX for later GPUs, of the newest target whose code they run.
      want(target, !target.exact && !portable, /*cubin=*/true);
      portable |= !target.exact;
    }
    if (!own.empty() && !portable)
      want({getChip(targets.front().arch), targets.front().arch},
           /*ptx=*/true, /*cubin=*/false);
    if (own.empty())
      jobsOf.erase(spec.name);
  }
  runJobs(jobs, ptxas, options);

  std::vector<std::vector<size_t>> imagesOf;
  for (Job &job : jobs) {
    if (!job.error.empty()) {
      error = job.error;
      return false;
    }
    ++(job.cached ? library.cached : library.compiled);
    std::vector<size_t> &images = imagesOf.emplace_back();
    if (job.declined()) {
      library.notes.push_back(
          "kernel '" + job.spec->name + "' for " + job.target.name +
          (job.kind == PREFILL_CUDA_DENSE_PERSISTENT
               ? " has no code with persistent thread blocks: "
               : " has no code with copies by TMA: ") +
          job.image.note);
      continue;
    }
    for (bool isPtx : {false, true}) {
      if (isPtx ? !job.wantPtx && !job.cubin.empty() : job.cubin.empty())
        continue;
      images.push_back(library.images.size());
      library.images.push_back(makeImage(job, isPtx));
    }
  }
  for (const auto &[name, list] : jobsOf) {
    std::vector<size_t> &images = library.kernels[name];
    for (size_t job : list)
      images.insert(images.end(), imagesOf[job].begin(), imagesOf[job].end());
    // Cubins before PTX, newest first.
    llvm::stable_sort(images, [&](size_t a, size_t b) {
      return library.images[a].isPtx < library.images[b].isPtx;
    });
  }
  if (!jobs.empty() && options.runPtxas && ptxas.empty())
    library.notes.push_back(
        "no ptxas (-ptxas=, CUDA_HOME, PATH): the library carries PTX, which "
        "the NVIDIA driver compiles when a kernel is first used");
  return true;
}
