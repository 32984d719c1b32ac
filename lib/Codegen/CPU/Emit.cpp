//===- Emit.cpp - From kernels to machine code ----------------------------===//

#include "prefill/Codegen/Emit.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/kernel_abi.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/Transforms/IPO/GlobalDCE.h"
#include "llvm/Transforms/InstCombine/InstCombine.h"
#include "llvm/Transforms/Scalar/EarlyCSE.h"
#include "llvm/Transforms/Scalar/LICM.h"
#include "llvm/Transforms/Scalar/LoopPassManager.h"
#include "llvm/Transforms/Scalar/SimplifyCFG.h"
#include "llvm/Transforms/Utils/Cloning.h"
#include <cstddef>
#include <mutex>

using namespace mlir;
using namespace prefill;

std::string prefill::getTileSymbol(StringRef key, const CpuTarget &target) {
  return ("prefill_tile_" + key + "_v" + Twine(target.level)).str();
}

static tile::KernelOp build(OpBuilder &builder, const KernelSpec &spec,
                            KernelKind kind) {
  return kind == KernelKind::Attention ? buildAttentionKernel(builder, spec)
                                       : buildScoreKernel(builder, spec);
}

namespace {

/// A context that turns the first error diagnostic into a message.
struct Session {
  explicit Session(std::string &error)
      : context(makeRegistry(), MLIRContext::Threading::DISABLED),
        handler(&context, [&](Diagnostic &diagnostic) {
          if (diagnostic.getSeverity() == DiagnosticSeverity::Error &&
              error.empty())
            error = diagnostic.str();
          return success();
        }) {
    context.loadAllAvailableDialects();
  }
  static DialectRegistry makeRegistry() {
    DialectRegistry registry;
    registerCodegenDialects(registry);
    registerBuiltinDialectTranslation(registry);
    registerLLVMDialectTranslation(registry);
    return registry;
  }
  MLIRContext context;
  ScopedDiagnosticHandler handler;
};

} // namespace

static bool fail(std::string &error, const Twine &what) {
  if (error.empty())
    error = what.str();
  return false;
}

bool prefill::printTileKernel(const KernelSpec &spec, KernelKind kind,
                              std::string &text, std::string &error) {
  error = checkKernelSpec(spec);
  if (!error.empty())
    return false;
  Session session(error);
  OwningOpRef<ModuleOp> module =
      ModuleOp::create(UnknownLoc::get(&session.context));
  OpBuilder builder = OpBuilder::atBlockEnd(module->getBody());
  tile::KernelOp kernel = build(builder, spec, kind);
  if (failed(kernel.verify()))
    return fail(error, "invalid kernel");
  llvm::raw_string_ostream stream(text);
  kernel->print(stream);
  stream << "\n";
  return true;
}

bool prefill::emitModule(llvm::Module &module, int level, std::string &object,
                         EmittedKernel *text, std::string &error) {
  static std::once_flag once;
  std::call_once(once, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
  });
  llvm::Triple triple("x86_64-unknown-linux-gnu");
  const llvm::Target *target =
      llvm::TargetRegistry::lookupTarget(triple, error);
  if (!target)
    return false;
  std::string cpu =
      level > 1 ? "x86-64-v" + std::to_string(level) : std::string("x86-64");
  llvm::TargetOptions options;
  std::unique_ptr<llvm::TargetMachine> machine(target->createTargetMachine(
      triple, cpu, "", options, llvm::Reloc::PIC_, std::nullopt,
      llvm::CodeGenOptLevel::Default));
  if (!machine)
    return fail(error, "LLVM has no x86-64 code generator");
  module.setTargetTriple(triple);
  module.setDataLayout(machine->createDataLayout());
  {
    // The code comes in its final loop form: only clean up. The vectorisers and
    // the unroller would undo register tiles.
    llvm::LoopAnalysisManager loops;
    llvm::FunctionAnalysisManager functions;
    llvm::CGSCCAnalysisManager graph;
    llvm::ModuleAnalysisManager modules;
    llvm::PassBuilder builder(machine.get());
    builder.registerModuleAnalyses(modules);
    builder.registerCGSCCAnalyses(graph);
    builder.registerFunctionAnalyses(functions);
    builder.registerLoopAnalyses(loops);
    builder.crossRegisterProxies(loops, functions, graph, modules);
    llvm::FunctionPassManager cleanup;
    cleanup.addPass(llvm::SimplifyCFGPass());
    cleanup.addPass(llvm::EarlyCSEPass(/*UseMemorySSA=*/true));
    cleanup.addPass(llvm::InstCombinePass());
    cleanup.addPass(llvm::createFunctionToLoopPassAdaptor(
        llvm::LICMPass(llvm::LICMOptions()), /*UseMemorySSA=*/true));
    cleanup.addPass(llvm::EarlyCSEPass(/*UseMemorySSA=*/true));
    cleanup.addPass(llvm::SimplifyCFGPass());
    llvm::ModulePassManager manager;
    manager.addPass(
        llvm::createModuleToFunctionPassAdaptor(std::move(cleanup)));
    manager.addPass(llvm::GlobalDCEPass());
    manager.run(module, modules);
  }
  auto emit = [&](llvm::Module &code, llvm::CodeGenFileType type,
                  std::string &text) {
    llvm::SmallVector<char, 0> buffer;
    llvm::raw_svector_ostream stream(buffer);
    llvm::legacy::PassManager manager;
    if (machine->addPassesToEmitFile(manager, stream, nullptr, type))
      return fail(error, "LLVM cannot emit x86-64 code");
    manager.run(code);
    text.assign(buffer.begin(), buffer.end());
    return true;
  };
  if (text) {
    llvm::raw_string_ostream stream(text->llvmIR);
    module.print(stream, nullptr);
    // Code generation changes the module.
    std::unique_ptr<llvm::Module> copy = llvm::CloneModule(module);
    if (!emit(*copy, llvm::CodeGenFileType::AssemblyFile, text->assembly))
      return false;
  }
  return emit(module, llvm::CodeGenFileType::ObjectFile, object);
}

/// A query tile of at most this many rows runs the narrow body.
static constexpr int32_t kNarrowRows = 16;

/// The tile function: picks the body by the number of rows.
static void buildDispatch(OpBuilder &b, StringRef name, StringRef wide,
                          StringRef narrow) {
  OpBuilder::InsertionGuard guard(b);
  Location loc = b.getUnknownLoc();
  Type pointer = LLVM::LLVMPointerType::get(b.getContext());
  auto function =
      func::FuncOp::create(b, loc, name, b.getFunctionType({pointer}, {}));
  b.setInsertionPointToStart(function.addEntryBlock());
  Value arguments = function.getArgument(0);
  Value address = LLVM::GEPOp::create(
      b, loc, pointer, b.getI8Type(), arguments,
      ArrayRef<LLVM::GEPArg>{int32_t(offsetof(prefill_tile_args, rows))});
  Value rows = LLVM::LoadOp::create(b, loc, b.getI64Type(), address);
  Value few = arith::CmpIOp::create(
      b, loc, arith::CmpIPredicate::sle, rows,
      arith::ConstantOp::create(b, loc, b.getI64IntegerAttr(kNarrowRows)));
  auto branch = scf::IfOp::create(b, loc, TypeRange{}, few, /*withElse=*/true);
  func::ReturnOp::create(b, loc);
  b.setInsertionPointToStart(branch.thenBlock());
  func::CallOp::create(b, loc, narrow, TypeRange{}, ValueRange{arguments});
  b.setInsertionPointToStart(branch.elseBlock());
  func::CallOp::create(b, loc, wide, TypeRange{}, ValueRange{arguments});
}

bool prefill::emitKernel(const KernelSpec &spec, KernelKind kind,
                         const CpuTarget &target, bool wantText,
                         EmittedKernel &result, std::string &error) {
  error = checkKernelSpec(spec);
  if (!error.empty())
    return false;
  Session session(error);
  OwningOpRef<ModuleOp> module =
      ModuleOp::create(UnknownLoc::get(&session.context));
  OpBuilder builder = OpBuilder::atBlockEnd(module->getBody());
  tile::KernelOp kernel = build(builder, spec, kind);
  std::string symbol = getTileSymbol(kernel.getName(), target);
  kernel.setName(symbol);
  // Tiles with few rows (single tokens, the end of a prompt) would compute
  // mostly lanes that nobody wants, so attention has a second body for them.
  const bool hasNarrow =
      kind == KernelKind::Attention && spec.blockQ > kNarrowRows;
  std::string wideName = symbol + "_wide", narrowName = symbol + "_narrow";
  if (hasNarrow) {
    kernel.setName(wideName);
    KernelSpec narrowSpec = spec;
    narrowSpec.blockQ = kNarrowRows;
    CpuTarget narrowTarget = target;
    // Fewer vectors leave registers for more rows.
    if (target.lanes == kNarrowRows)
      narrowTarget.tileRows = 8;
    tile::KernelOp narrow = build(builder, narrowSpec, kind);
    narrow.setName(narrowName);
    if (failed(lowerKernelToCpu(narrow, narrowTarget)))
      return fail(error, "a kernel cannot be lowered");
  }
  if (failed(lowerKernelToCpu(kernel, target)))
    return fail(error, "a kernel cannot be lowered");
  for (auto function : module->getOps<func::FuncOp>())
    if (auto bytes = function->getAttrOfType<IntegerAttr>(kWorkspaceAttr))
      result.workspaceBytes = std::max(result.workspaceBytes, bytes.getInt());
  if (hasNarrow)
    buildDispatch(builder, symbol, wideName, narrowName);
  PassManager manager(&session.context);
  manager.enableVerifier(false);
  addLowerToLLVMPasses(manager);
  if (failed(manager.run(*module)))
    return fail(error, "a kernel cannot be lowered to LLVM");
  llvm::LLVMContext context;
  std::unique_ptr<llvm::Module> code =
      translateModuleToLLVMIR(*module, context, symbol);
  if (!code)
    return fail(error, "a kernel cannot be translated to LLVM IR");
  for (llvm::Function &function : *code) {
    if (function.isDeclaration())
      continue;
    function.setDoesNotThrow();
    if (function.getName() == symbol)
      function.setVisibility(llvm::GlobalValue::ProtectedVisibility);
    else
      function.setLinkage(llvm::GlobalValue::InternalLinkage);
  }
  return emitModule(*code, target.level, result.object,
                    wantText ? &result : nullptr, error);
}
