//===- Artifacts.cpp - Writing the output folder --------------------------===//

#include "Artifacts.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/CUDA/Images.h"
#include "prefill/Codegen/Interrupt.h"
#include "prefill/Codegen/Library.h"
#include "prefill/Codegen/Link.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/WithColor.h"

#include <map>

using namespace prefill;
namespace fs = llvm::sys::fs;
namespace path = llvm::sys::path;

/// The files of an output folder beside model.onnx.
static constexpr const char *libraryName = "libprefill_model.so";
static constexpr const char *headerName = "prefill_model.h";
static constexpr const char *manifestName = "manifest.json";

static std::string joinPath(llvm::StringRef folder, llvm::StringRef name) {
  llvm::SmallString<256> full(folder);
  path::append(full, name);
  return std::string(full);
}

static LibraryOptions libraryOptions(const CompilerOptions &options) {
  LibraryOptions library;
  library.runtimeArchives = {options.runtimeArchive};
  library.cacheDir = options.cacheDir;
  library.useCache = options.useCache;
  return library;
}

/// The GPUs among the targets.
static std::vector<CudaTarget> cudaTargets(const CompilerOptions &options) {
  std::vector<CudaTarget> targets;
  for (llvm::StringRef name : options.targets)
    if (std::optional<CudaTarget> target = findCudaTarget(name))
      targets.push_back(*target);
  return targets;
}

/// Compiles the kernels for GPUs, and says what the user should know of it.
static bool compileForGpus(const CompilerOptions &options,
                           llvm::ArrayRef<KernelSpec> kernels,
                           CudaLibrary &library, std::string &error) {
  CudaImageOptions cuda;
  cuda.targets = cudaTargets(options);
  cuda.ptxas = options.ptxas;
  cuda.allowSpills = options.allowSpills;
  cuda.cacheDir = options.cacheDir;
  cuda.useCache = options.useCache;
  if (!compileCudaImages(kernels, cuda, library, error))
    return false;
  for (const std::string &note : library.notes)
    llvm::WithColor::note(llvm::errs(), "prefill-opt") << note << "\n";
  for (const CudaImage &image : library.images)
    if (options.remarks && !image.isPtx && image.blockK)
      llvm::WithColor::remark(llvm::errs(), "prefill-opt")
          << image.function << ": tiles of " << image.blockQ << "x"
          << image.blockK << ", " << image.threads << " threads, "
          << image.stages << " stages, " << image.registers << " registers, "
          << image.spillBytes << " bytes spilled, " << image.sharedBytes
          << " bytes of shared memory\n";
  // One line for all targets that refuse a kernel for the same reason.
  std::map<std::pair<std::string, std::string>, std::string> reasons;
  for (const CudaRefusal &refusal : library.refusals) {
    std::string &names = reasons[{refusal.kernel, refusal.reason}];
    names += (names.empty() ? "" : ", ") + refusal.target;
  }
  for (const auto &[what, names] : reasons)
    llvm::WithColor::warning(llvm::errs(), "prefill-opt")
        << "kernel '" << what.first << "' stays on the CPU, not for " << names
        << ": " << what.second << "\n";
  for (const KernelSpec &kernel : kernels)
    if (size_t dense = llvm::count_if(kernel.heads,
                                      [&](const HeadPlan &head) {
                                        return head.pattern !=
                                                   SparsePattern::Dense &&
                                               !isSparseOnGpu(kernel, head);
                                      });
        dense && library.kernels.count(kernel.name))
      llvm::WithColor::warning(llvm::errs(), "prefill-opt")
          << "kernel '" << kernel.name << "': " << dense << " of "
          << kernel.heads.size()
          << " heads are sparse on the CPU, and dense on GPUs, which do not "
             "know grid, q-boundary, 2d-boundary, similarity guards, and "
             "strides that do not divide the kernel's blocks\n";
  return true;
}

namespace {
/// A folder for files in the making inside the output folder; removes itself,
/// and the output folder if it was made for this and nothing was put there.
class Staging {
public:
  bool open(llvm::StringRef output, std::string &error) {
    this->output = output.str();
    created = !fs::exists(output);
    if (std::error_code ec = fs::create_directories(
            output, /*IgnoreExisting=*/true, fs::all_all)) {
      error = output.str() + ": cannot create the folder: " + ec.message();
      return false;
    }
    if (created)
      outputWatch.watch(output, /*ifEmpty=*/true);
    if (std::error_code ec = fs::createUniqueDirectory(
            joinPath(output, ".prefill-opt"), folder)) {
      // createUniqueDirectory puts relative models into the temporary folder.
      error = output.str() + ": cannot write there: " + ec.message();
      return false;
    }
    watch.watch(folder);
    return true;
  }
  ~Staging() {
    if (!folder.empty())
      (void)fs::remove_directories(folder);
    if (created)
      (void)fs::remove(output); // Only succeeds when it is empty.
  }
  std::string at(llvm::StringRef name) const { return joinPath(folder, name); }

private:
  std::string output;
  llvm::SmallString<256> folder;
  bool created = false;
  FolderWatch outputWatch, watch;
};
} // namespace

bool prefill::writeArtifacts(const CompilerOptions &options,
                             mlir::ModuleOp module,
                             const OutlineResult &outlined,
                             llvm::ArrayRef<DeclinedSite> declined,
                             const LivenessReport &liveness,
                             const ChunkReport &chunk, std::string &error) {
  llvm::SmallString<256> output(options.output);
  if (std::error_code ec = fs::make_absolute(output)) {
    error = options.output + ": " + ec.message();
    return false;
  }
  Staging staging;
  if (!staging.open(output, error))
    return false;

  LibraryOptions library = libraryOptions(options);
  library.output = staging.at(libraryName);
  library.header = staging.at(headerName);
  CudaLibrary cuda;
  const bool forGpu = !cudaTargets(options).empty();
  if (forGpu) {
    if (!compileForGpus(options, outlined.kernels, cuda, error))
      return false;
    library.cuda = &cuda;
  }
  if (!compileLibrary(outlined.kernels, library, error))
    return false;
  if (!writeFileAtomically(staging.at(manifestName),
                           writeManifest(options, outlined, declined, liveness,
                                         chunk, library.cuda),
                           error))
    return false;

  // The model last: whoever sees it finds the rest. An older set of files stays
  // as it is unless all of this one get their names.
  ExportOptions exportOptions;
  exportOptions.externalData = options.externalData;
  for (const char *name : {libraryName, headerName, manifestName})
    exportOptions.companions.emplace_back(staging.at(name),
                                          joinPath(output, name));
  std::string model = joinPath(output, "model.onnx");
  if (fs::equivalent(model, options.input)) {
    error = options.output + ": would overwrite the input " + options.input +
            "; choose another folder";
    return false;
  }
  return exportONNX(module, model, exportOptions, error);
}

bool prefill::emitKernelText(const CompilerOptions &options,
                             llvm::ArrayRef<KernelSpec> kernels,
                             std::string &text, std::string &error) {
  if (options.emit == EmitKind::Warp || options.emit == EmitKind::PTX) {
    for (const CudaTarget &target : cudaTargets(options))
      for (const KernelSpec &kernel : kernels) {
        CudaOptions cuda;
        cuda.arch = target.arch;
        cuda.archSpecific = target.exact;
        if (!printCuda(getCudaSpec(kernel), cuda,
                       options.emit == EmitKind::Warp ? CudaText::Warp
                                                      : CudaText::PTX,
                       text, error))
          return false;
      }
    return true;
  }
  KernelText what = options.emit == EmitKind::Tile   ? KernelText::Tile
                    : options.emit == EmitKind::LLVM ? KernelText::LLVM
                                                     : KernelText::Assembly;
  return printKernels(kernels, what, libraryOptions(options), text, error);
}
