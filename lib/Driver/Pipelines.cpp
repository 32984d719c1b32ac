//===- Pipelines.cpp - Registration and the order of passes ---------------===//

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Transforms/Passes.h"
#include "prefill/Codegen/CPU.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Driver/Driver.h"
#include "prefill/Transforms/Passes.h"
#include "prefill/Transforms/Pruning.h"

using namespace mlir;
using namespace prefill;

void prefill::registerDialects(DialectRegistry &registry) {
  registry.insert<onnx::ONNXDialect, PrefillDialect, arith::ArithDialect,
                  func::FuncDialect, tile::TileDialect>();
  registerCodegenDialects(registry);
  registerCudaDialects(registry);
}

void prefill::registerPasses() {
  registerPrefillTransformsPasses();
  registerCodegenPassesAndPipelines();
  registerCudaPassesAndPipelines();
  mlir::registerCanonicalizerPass();
  mlir::registerCSEPass();
}

void prefill::buildRaisePipeline(OpPassManager &pm,
                                 std::vector<SiteReport> &reports) {
  pm.addPass(createRaiseAttention(reports));
}

void prefill::buildRowPipeline(OpPassManager &pm,
                               const CompilerOptions &options,
                               LivenessReport &report, ChunkReport &chunk) {
  if (options.shareKV)
    pm.addPass(createShareKV(report));
  if (options.pack != "off")
    pm.addPass(createPackPrompts());
  std::string error; // validate() has looked at it
  ChunkPromptOptions chunks;
  const bool groups = isQuickPrefill(options.prune);
  chunks.parts = groups;
  if ((chunks.size = parseChunk(options.chunk, error).value_or(0)))
    pm.addPass(createChunkPrompt(chunks, chunk));
  if (!options.parallelEncode.empty())
    pm.addPass(createParallelEncode({options.parallelEncode}));
  if (groups) {
    pm.addPass(
        createPruneGroups({options.prune, options.protect}, report.pruning));
  } else if (PruneSpec spec;
             parsePruneSpec(options.prune, spec, error) && // false: no -prune
             spec.isMergePatches()) {
    pm.addPass(
        createMergePatches({options.prune, options.protect}, report.pruning));
  } else if (revivesRows(options.prune)) {
    pm.addPass(createReviveRows(
        {options.prune, options.protect, options.logits}, report.pruning));
  } else if (!options.prune.empty()) {
    PruneRowsOptions prune;
    prune.prune = options.prune;
    prune.protect = options.protect;
    prune.logits = options.logits;
    pm.addPass(createPruneRows(prune, report.pruning));
  }
  if (!options.rowLiveness)
    return;
  // Rows of the logits are selected once.
  RowLivenessOptions liveness;
  if (options.prune.empty() || groups)
    liveness.logits = options.logits;
  else if (options.logits != "all")
    report.logits = options.logits;
  pm.addPass(createRowLiveness(liveness, report));
}

void prefill::buildSparsifyPipeline(OpPassManager &pm,
                                    const CompilerOptions &options) {
  SparsifyAttentionOptions sparsify;
  sparsify.pattern = options.sparsify;
  sparsify.modality = options.modality;
  pm.addPass(createSparsifyAttention(sparsify));
}
