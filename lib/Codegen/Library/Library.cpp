//===- Library.cpp - Kernel specifications to a shared library ------------===//

#include "prefill/Codegen/Library.h"
#include "Cache.h"
#include "Tables.h"
#include "prefill/Codegen/Interrupt.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/Codegen/Link.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

using namespace prefill;
using llvm::StringRef;

namespace {

double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// One tile function to compile.
struct Job {
  const KernelSpec *spec;
  KernelKind kind;
  CpuTarget target;
  std::string symbol;
  EmittedKernel kernel;
  std::string error;
  bool cached = false;
};

/// A folder for the linker's inputs that goes away by itself.
class TemporaryFolder {
public:
  ~TemporaryFolder() {
    for (const std::string &file : files)
      (void)llvm::sys::fs::remove(file);
    if (!path.empty())
      (void)llvm::sys::fs::remove(path);
  }
  bool create(std::string &error) {
    if (std::error_code code =
            llvm::sys::fs::createUniqueDirectory("prefill-opt", path)) {
      error = "cannot create a temporary folder: " + code.message();
      return false;
    }
    watch.watch(path);
    return true;
  }
  bool add(StringRef name, StringRef contents, std::string &error) {
    llvm::SmallString<256> file(path);
    llvm::sys::path::append(file, name);
    files.push_back(file.str().str());
    return writeFileAtomically(file, contents, error);
  }
  std::vector<std::string> files;

private:
  llvm::SmallString<256> path;
  FolderWatch watch;
};

} // namespace

static bool isIdentifier(StringRef name) {
  return !name.empty() && !llvm::isDigit(name[0]) &&
         llvm::all_of(name,
                      [](char c) { return llvm::isAlnum(c) || c == '_'; });
}

static bool checkSpecs(llvm::ArrayRef<KernelSpec> specs, std::string &error) {
  llvm::StringSet<> names;
  for (const KernelSpec &spec : specs) {
    error = checkKernelSpec(spec);
    if (!error.empty())
      return false;
    StringRef name = spec.name;
    if (!isIdentifier(name) || name.starts_with("prefill_tile_"))
      error = "kernel name '" + spec.name + "' is no usable C identifier";
    else if (!names.insert(name).second)
      error = "two kernels are called '" + spec.name + "'";
    if (!error.empty())
      return false;
  }
  return true;
}

static bool findTargets(const LibraryOptions &options,
                        std::vector<CpuTarget> &targets, std::string &error) {
  std::vector<int> levels = options.levels;
  // Best first, as the runtime expects.
  llvm::sort(levels, std::greater<int>());
  levels.erase(llvm::unique(levels), levels.end());
  for (int level : levels) {
    std::optional<CpuTarget> target = getCpuTarget(level);
    if (!target) {
      error = "no CPU target x86-64-v" + std::to_string(level);
      return false;
    }
    targets.push_back(*target);
  }
  if (targets.empty())
    error = "no CPU target given";
  return !targets.empty();
}

/// The distinct tile functions of a library.
static std::vector<Job> listJobs(llvm::ArrayRef<KernelSpec> specs,
                                 llvm::ArrayRef<CpuTarget> targets) {
  std::vector<Job> jobs;
  llvm::StringSet<> seen;
  for (const KernelSpec &spec : specs)
    for (KernelKind kind : {KernelKind::Attention, KernelKind::Score})
      for (const CpuTarget &target : targets) {
        std::string symbol =
            getTileSymbol(kind == KernelKind::Attention ? getTileKey(spec)
                                                        : getScoreKey(spec),
                          target);
        if (seen.insert(symbol).second)
          jobs.push_back({&spec, kind, target, symbol, {}, {}, false});
      }
  return jobs;
}

static void runJob(Job &job, const KernelCache &cache) {
  std::string text;
  if (!printTileKernel(*job.spec, job.kind, text, job.error))
    return;
  std::string key = KernelCache::makeKey(text, job.target);
  if ((job.cached = cache.lookup(key, job.kernel)))
    return;
  if (emitKernel(*job.spec, job.kind, job.target, /*wantText=*/false,
                 job.kernel, job.error))
    cache.insert(key, job.kernel);
  else if (job.error.empty())
    job.error = "a kernel cannot be compiled";
}

static bool runJobs(std::vector<Job> &jobs, const KernelCache &cache,
                    unsigned threads, std::string &error) {
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < jobs.size();)
      runJob(jobs[i], cache);
  };
  std::vector<std::thread> pool;
  for (unsigned t = 1; t < threads && t < jobs.size(); ++t)
    pool.emplace_back(work);
  work();
  for (std::thread &thread : pool)
    thread.join();
  for (Job &job : jobs)
    if (!job.error.empty()) {
      error = job.error;
      return false;
    }
  return true;
}

bool prefill::compileLibrary(llvm::ArrayRef<KernelSpec> specs,
                             const LibraryOptions &options, std::string &error,
                             LibraryReport *report) {
  error.clear();
  LibraryReport local;
  LibraryReport &done = report ? *report : local;
  done = LibraryReport();
  std::vector<CpuTarget> targets;
  if (!checkSpecs(specs, error) || !findTargets(options, targets, error))
    return false;

  double start = now();
  std::vector<Job> jobs = listJobs(specs, targets);
  unsigned threads =
      options.threads ? options.threads : std::thread::hardware_concurrency();
  KernelCache cache = KernelCache::open(options.cacheDir, options.useCache);
  if (!runJobs(jobs, cache, threads, error))
    return false;
  WorkspaceSizes workspaces;
  for (const Job &job : jobs) {
    workspaces[job.symbol] = job.kernel.workspaceBytes;
    ++(job.cached ? done.cachedKernels : done.compiledKernels);
  }
  std::string tables;
  if (!emitTables(specs, targets, workspaces, options.cuda, tables, error))
    return false;
  done.compileSeconds = now() - start;

  start = now();
  TemporaryFolder folder;
  if (!folder.create(error) || !folder.add("tables.o", tables, error))
    return false;
  for (const Job &job : jobs)
    if (!folder.add(job.symbol + ".o", job.kernel.object, error))
      return false;
  LinkOptions link;
  link.output = options.output;
  link.soname = llvm::sys::path::filename(options.output).str();
  link.objects = folder.files;
  link.archives = options.runtimeArchives;
  if (!linkSharedLibrary(link, error))
    return false;
  if (!options.header.empty() &&
      !writeFileAtomically(options.header, makeHeader(specs), error)) {
    (void)llvm::sys::fs::remove(options.output);
    return false;
  }
  done.linkSeconds = now() - start;
  return true;
}

bool prefill::printKernels(llvm::ArrayRef<KernelSpec> specs, KernelText what,
                           const LibraryOptions &options, std::string &text,
                           std::string &error) {
  error.clear();
  std::vector<CpuTarget> targets;
  if (!checkSpecs(specs, error) || !findTargets(options, targets, error))
    return false;
  targets.resize(1);
  for (Job &job : listJobs(specs, targets)) {
    if (what == KernelText::Tile) {
      if (!printTileKernel(*job.spec, job.kind, text, error))
        return false;
      continue;
    }
    if (!emitKernel(*job.spec, job.kind, job.target, /*wantText=*/true,
                    job.kernel, error))
      return false;
    text += what == KernelText::LLVM ? job.kernel.llvmIR : job.kernel.assembly;
  }
  return true;
}
