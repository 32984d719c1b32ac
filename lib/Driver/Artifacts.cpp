#include "Artifacts.h"
bool prefill::writeArtifacts(const CompilerOptions &, mlir::ModuleOp, const OutlineResult &, llvm::ArrayRef<DeclinedSite>, std::string &e) { e = "not built yet"; return false; }
bool prefill::emitKernelText(const CompilerOptions &, llvm::ArrayRef<KernelSpec>, std::string &, std::string &e) { e = "not built yet"; return false; }
