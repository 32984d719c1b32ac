//===- Tables.cpp - What the runtime reads of a library -------------------===//

#include "Tables.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/kernel_abi.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/raw_ostream.h"

using namespace prefill;
using llvm::Constant;
using llvm::StringRef;

// The structs are written field by field below, with C's natural alignment.
// These fail when kernel_abi.h changes without this file.
static_assert(PREFILL_KERNEL_ABI == 8);
static_assert(sizeof(prefill_tile_variant) == 32);
static_assert(sizeof(prefill_head_plan) == 68);
static_assert(sizeof(prefill_plan) == 16);
static_assert(offsetof(prefill_attention_desc, dtype) == 16);
static_assert(offsetof(prefill_attention_desc, o_rank) == 36);
static_assert(offsetof(prefill_attention_desc, block_k) == 60);
static_assert(offsetof(prefill_attention_desc, window_left) == 64);
static_assert(offsetof(prefill_attention_desc, scale) == 80);
static_assert(offsetof(prefill_attention_desc, rotary_dim) == 100);
static_assert(offsetof(prefill_attention_desc, plan) == 104);
static_assert(offsetof(prefill_attention_desc, context_scale) == 148);
static_assert(offsetof(prefill_attention_desc, digest) == 152);
static_assert(sizeof(prefill_attention_desc) == 160);
static_assert(offsetof(prefill_cuda_image, shared_bytes) == 36);
static_assert(offsetof(prefill_cuda_image, data) == 40);
static_assert(sizeof(prefill_cuda_image) == 64);

namespace {

class TableEmitter {
public:
  TableEmitter(llvm::ArrayRef<KernelSpec> specs,
               llvm::ArrayRef<CpuTarget> targets,
               const WorkspaceSizes &workspaces, const CudaLibrary *cuda)
      : specs(specs), targets(targets), workspaces(workspaces), cuda(cuda),
        module("prefill_tables", context), b(context) {}

  llvm::Module &run() {
    llvm::SmallVector<Constant *> kernels;
    for (const KernelSpec &spec : specs) {
      Constant *desc = emitDesc(spec);
      emitEntry(spec, desc);
      kernels.push_back(desc);
    }
    global(llvm::ConstantArray::get(
               llvm::ArrayType::get(b.getPtrTy(), kernels.size()), kernels),
           "prefill_model_kernels", /*isLocal=*/false);
    global(i64(kernels.size()), "prefill_model_kernel_count",
           /*isLocal=*/false);
    return module;
  }

private:
  Constant *i32(int64_t value) { return b.getInt32(uint32_t(value)); }
  Constant *i64(int64_t value) { return b.getInt64(uint64_t(value)); }
  Constant *f32(float value) {
    return llvm::ConstantFP::get(context, llvm::APFloat(value));
  }
  Constant *null() { return llvm::ConstantPointerNull::get(b.getPtrTy()); }
  Constant *record(llvm::ArrayRef<Constant *> fields) {
    return llvm::ConstantStruct::getAnon(context, fields);
  }

  llvm::GlobalVariable *global(Constant *value, const llvm::Twine &name,
                               bool isLocal = true) {
    auto *variable =
        new llvm::GlobalVariable(module, value->getType(), /*isConstant=*/true,
                                 isLocal ? llvm::GlobalValue::PrivateLinkage
                                         : llvm::GlobalValue::ExternalLinkage,
                                 value, name);
    if (!isLocal)
      variable->setVisibility(llvm::GlobalValue::HiddenVisibility);
    variable->setAlignment(llvm::Align(16));
    return variable;
  }

  llvm::GlobalVariable *array(llvm::ArrayRef<Constant *> values,
                              const llvm::Twine &name) {
    return global(
        llvm::ConstantArray::get(
            llvm::ArrayType::get(values.front()->getType(), values.size()),
            values),
        name);
  }

  Constant *tileFunction(StringRef key, const CpuTarget &target) {
    auto *type = llvm::FunctionType::get(b.getVoidTy(), {b.getPtrTy()}, false);
    auto *function = llvm::cast<llvm::Function>(
        module.getOrInsertFunction(getTileSymbol(key, target), type)
            .getCallee());
    function->setVisibility(llvm::GlobalValue::HiddenVisibility);
    return function;
  }

  Constant *emitVariants(const KernelSpec &spec) {
    std::string attention = getTileKey(spec), score = getScoreKey(spec);
    // Kernels that share code share their variants.
    Constant *&variants = variantsOf[attention + "/" + score];
    if (variants)
      return variants;
    llvm::SmallVector<Constant *> list;
    for (const CpuTarget &target : targets) {
      auto bytes = [&](StringRef key) {
        auto found = workspaces.find(getTileSymbol(key, target));
        return found == workspaces.end() ? int64_t(0) : found->second;
      };
      list.push_back(record({i32(target.level), i32(target.vectorBytes()),
                             i64(std::max(bytes(attention), bytes(score))),
                             tileFunction(attention, target),
                             tileFunction(score, target)}));
    }
    return variants = array(list, "variants");
  }

  Constant *emitPlan(const KernelSpec &spec) {
    if (spec.heads.empty())
      return null();
    llvm::SmallVector<Constant *> heads;
    for (const HeadPlan &head : spec.heads)
      heads.push_back(
          record({i32(int32_t(head.pattern)), i32(head.init), i32(head.local),
                  i32(head.last), i32(head.vertical), i32(head.slash),
                  i32(head.topK), f32(head.density), i32(head.stride),
                  f32(head.topP), f32(head.threshold), i32(head.minBudget),
                  i32(head.bits), i32(head.values), f32(head.similarity),
                  i32(head.horizontal), f32(head.skip)}));
    return global(record({i32(spec.denseBelow), i32(int64_t(heads.size())),
                          array(heads, "heads")}),
                  "plan");
  }

  Constant *text(StringRef value) {
    return global(llvm::ConstantDataArray::getString(context, value), "text");
  }

  Constant *emitImage(size_t number) {
    Constant *&image = imagesOf[number];
    if (image)
      return image;
    const CudaImage &code = cuda->images[number];
    Constant *data = global(
        llvm::ConstantDataArray::getString(context, code.data, false), "code");
    return image = global(
               record({text(code.function), i32(code.kind),
                       i32(code.isPtx ? PREFILL_CUDA_PTX : PREFILL_CUDA_CUBIN),
                       i32(code.arch), i32(code.exactArch), i32(code.blockQ),
                       i32(code.blockK), i32(code.threads),
                       i32(code.sharedBytes), data, i64(code.data.size()),
                       i64(code.size)}),
               "image");
  }

  /// The kernel's images, and how many.
  std::pair<Constant *, Constant *> emitImages(const KernelSpec &spec) {
    llvm::SmallVector<Constant *> list;
    if (cuda)
      if (auto found = cuda->kernels.find(spec.name);
          found != cuda->kernels.end())
        for (size_t number : found->second)
          list.push_back(emitImage(number));
    return {list.empty() ? null() : array(list, "images"), i64(list.size())};
  }

  Constant *emitDesc(const KernelSpec &spec) {
    auto [images, imageCount] = emitImages(spec);
    auto layout = [&](Layout l) { return i32(int32_t(l)); };
    Constant *name = text(spec.name);
    return global(record({i32(PREFILL_KERNEL_ABI),
                          i32(getTileFeatures(spec)),
                          name,
                          i32(int32_t(spec.dtype)),
                          layout(spec.qLayout),
                          layout(spec.kLayout),
                          layout(spec.vLayout),
                          layout(spec.oLayout),
                          i32(spec.oRank),
                          i32(spec.qHeads),
                          i32(spec.kvHeads),
                          i32(spec.headDim),
                          i32(spec.vHeadDim),
                          i32(spec.blockQ),
                          i32(spec.blockK),
                          i64(spec.windowLeft),
                          i64(spec.causal ? 0 : spec.windowRight),
                          f32(spec.scale),
                          f32(spec.softcap),
                          i32(int32_t(spec.maskedRow)),
                          i32(int32_t(spec.alignment)),
                          i32(int32_t(spec.rotary)),
                          i32(spec.rotaryDim),
                          emitPlan(spec),
                          emitVariants(spec),
                          i64(int64_t(targets.size())),
                          images,
                          imageCount,
                          f32(spec.contextTemperature),
                          f32(spec.contextScale),
                          i64(int64_t(spec.digest()))}),
                  "desc_" + spec.name);
  }

  /// int name(context, inputs, input_count, outputs, output_count)
  void emitEntry(const KernelSpec &spec, Constant *desc) {
    llvm::Type *pointer = b.getPtrTy(), *size = b.getInt64Ty();
    auto *type = llvm::FunctionType::get(
        b.getInt32Ty(), {pointer, pointer, size, pointer, size}, false);
    auto *runType = llvm::FunctionType::get(
        b.getInt32Ty(), {pointer, pointer, pointer, size, pointer, size},
        false);
    auto run = module.getOrInsertFunction("prefill_attention", runType);
    auto *callee = llvm::cast<llvm::Function>(run.getCallee());
    callee->setVisibility(llvm::GlobalValue::HiddenVisibility);
    auto *entry = llvm::Function::Create(
        type, llvm::GlobalValue::ExternalLinkage, spec.name, module);
    b.SetInsertPoint(llvm::BasicBlock::Create(context, "", entry));
    llvm::SmallVector<llvm::Value *> arguments{desc};
    for (llvm::Argument &argument : entry->args())
      arguments.push_back(&argument);
    auto *call = b.CreateCall(run, arguments);
    call->setTailCall();
    b.CreateRet(call);
  }

  llvm::ArrayRef<KernelSpec> specs;
  llvm::ArrayRef<CpuTarget> targets;
  const WorkspaceSizes &workspaces;
  const CudaLibrary *cuda;
  llvm::LLVMContext context;
  llvm::Module module;
  llvm::IRBuilder<> b;
  std::map<std::string, Constant *> variantsOf;
  std::map<size_t, Constant *> imagesOf;
};

} // namespace

bool prefill::emitTables(llvm::ArrayRef<KernelSpec> specs,
                         llvm::ArrayRef<CpuTarget> targets,
                         const WorkspaceSizes &workspaces,
                         const CudaLibrary *cuda, std::string &object,
                         std::string &error) {
  TableEmitter emitter(specs, targets, workspaces, cuda);
  return emitModule(emitter.run(), /*level=*/1, object, nullptr, error);
}

std::string prefill::makeHeader(llvm::ArrayRef<KernelSpec> specs) {
  static constexpr const char *types[] = {"float32", "float16", "bfloat16"};
  std::string text;
  llvm::raw_string_ostream out(text);
  out << "/* Written by prefill-opt. The kernels of one compiled model; see\n"
         " * prefill.h for the operands (prefill_attention_input, _output). "
         "*/\n"
         "#ifndef PREFILL_MODEL_H\n"
         "#define PREFILL_MODEL_H\n\n"
         "#include \"prefill/prefill.h\"\n\n"
         "#ifdef __cplusplus\n"
         "extern \"C\" {\n"
         "#endif\n";
  for (const KernelSpec &spec : specs) {
    out << "\n/* " << types[int32_t(spec.dtype) % 3] << ", " << spec.qHeads
        << " query heads, " << spec.kvHeads << " KV heads, head dim "
        << spec.headDim;
    if (spec.vHeadDim != spec.headDim)
      out << " (values " << spec.vHeadDim << ")";
    out << (spec.causal ? ", causal" : "")
        << (spec.heads.empty() ? "" : ", sparse") << " */\n"
        << "PREFILL_API prefill_status " << spec.name
        << "(prefill_context *context,\n"
        << "    const DLTensor *const *inputs, size_t input_count,\n"
        << "    DLTensor *const *outputs, size_t output_count);\n";
  }
  out << "\n#ifdef __cplusplus\n"
         "}\n"
         "#endif\n"
         "#endif\n";
  return text;
}
