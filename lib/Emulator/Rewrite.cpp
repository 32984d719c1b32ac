//===- Rewrite.cpp - An NVPTX module becomes one for the host -------------===//

#include "Lowering.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/IR/ReplaceConstant.h"
#include "llvm/TargetParser/Host.h"
#include "llvm/Transforms/Utils/Cloning.h"

using namespace llvm;
using namespace prefill::emu;

/// Shared variables get their addresses; the one without a size, the dynamic
/// one, comes last.
static Error placeShared(Module &module, ModuleInfo &info) {
  const DataLayout &layout = module.getDataLayout();
  SmallVector<GlobalVariable *, 4> statics, dynamics, all;
  for (GlobalVariable &variable : module.globals()) {
    if (variable.getAddressSpace() != 3)
      continue;
    uint64_t size = layout.getTypeAllocSize(variable.getValueType());
    (size ? statics : dynamics).push_back(&variable);
  }
  uint64_t at = SharedMemory::kBase;
  all = statics;
  all.append(dynamics.begin(), dynamics.end());
  for (GlobalVariable *variable : all) {
    at = alignTo(at, variable->getAlign().value_or(
                         layout.getPrefTypeAlign(variable->getValueType())));
    auto *address = ConstantExpr::getIntToPtr(
        ConstantInt::get(Type::getInt64Ty(module.getContext()), at),
        variable->getType());
    convertUsersOfConstantsToInstructions({variable});
    variable->replaceAllUsesWith(address);
    if (!is_contained(dynamics, variable))
      at += layout.getTypeAllocSize(variable->getValueType());
    variable->eraseFromParent();
  }
  info.staticSharedBytes = at - SharedMemory::kBase;
  return Error::success();
}

static void noteGlobals(Module &module, ModuleInfo &info) {
  for (GlobalVariable &variable : module.globals()) {
    unsigned space = variable.getAddressSpace();
    if (variable.isDeclaration() || (space != 0 && space != 1 && space != 4))
      continue;
    if (variable.getName().starts_with("llvm."))
      continue;
    variable.setLinkage(GlobalValue::ExternalLinkage);
    variable.setVisibility(GlobalValue::DefaultVisibility);
    info.globals.push_back(
        {variable.getName().str(),
         module.getDataLayout().getTypeAllocSize(variable.getValueType()),
         variable.isConstant() || space == 4});
  }
}

static uint64_t numberOf(const Function &function, StringRef attribute) {
  // "x,y,z": the product.
  SmallVector<StringRef, 3> parts;
  function.getFnAttribute(attribute).getValueAsString().split(parts, ',');
  uint64_t product = 1, value;
  for (StringRef part : parts) {
    if (part.trim().getAsInteger(10, value))
      return 0;
    product *= value;
  }
  return product;
}

static KernelInfo describeKernel(const Function &function) {
  KernelInfo kernel;
  const DataLayout &layout = function.getParent()->getDataLayout();
  for (const Argument &argument : function.args())
    kernel.paramBytes.push_back(layout.getTypeAllocSize(
        argument.hasByValAttr() ? argument.getParamByValType()
                                : argument.getType()));
  kernel.maxThreads = numberOf(function, "nvvm.maxntid");
  if (!kernel.maxThreads)
    kernel.maxThreads = numberOf(function, "nvvm.reqntid");
  if (uint64_t cluster = numberOf(function, "nvvm.cluster_dim"))
    kernel.clusterSize = cluster;
  return kernel;
}

/// void emu.entry.K(params): params points to pointers to the parameters.
static void makeEntry(Function &kernel) {
  Module &module = *kernel.getParent();
  IRBuilder<> b(module.getContext());
  auto *entry = Function::Create(
      FunctionType::get(b.getVoidTy(), {b.getPtrTy()}, false),
      GlobalValue::ExternalLinkage, "emu.entry." + kernel.getName(), module);
  b.SetInsertPoint(BasicBlock::Create(module.getContext(), "entry", entry));
  SmallVector<Value *, 16> arguments;
  for (Argument &argument : kernel.args()) {
    Value *slot = b.CreateConstGEP1_32(b.getPtrTy(), entry->getArg(0),
                                       argument.getArgNo());
    Value *pointer = b.CreateLoad(b.getPtrTy(), slot);
    if (argument.hasByValAttr())
      arguments.push_back(b.CreateAddrSpaceCast(pointer, argument.getType()));
    else
      arguments.push_back(
          b.CreateAlignedLoad(argument.getType(), pointer, Align(1)));
  }
  b.CreateCall(&kernel, arguments);
  b.CreateRetVoid();
}

/// Device functions go into their callers, as kernels have it on the GPU. What
/// cannot (recursion) stays a call.
static void inlineCalls(Function &kernel) {
  for (unsigned round = 0; round < 16; ++round) {
    SmallVector<CallInst *, 16> calls;
    for (Instruction &instruction : instructions(kernel))
      if (auto *call = dyn_cast<CallInst>(&instruction))
        if (Function *callee = call->getCalledFunction())
          if (!callee->isDeclaration() && callee != &kernel)
            calls.push_back(call);
    bool changed = false;
    for (CallInst *call : calls) {
      InlineFunctionInfo info;
      changed |= InlineFunction(*call, info).isSuccess();
    }
    if (!changed)
      return;
  }
}

Error prefill::emu::rewriteModule(Module &module, ModuleInfo &info) {
  if (Error error = placeShared(module, info))
    return error;
  noteGlobals(module, info);

  SmallVector<Function *, 8> kernels, bodies;
  for (Function &function : module) {
    if (function.isDeclaration())
      continue;
    bodies.push_back(&function);
    if (function.getCallingConv() == CallingConv::PTX_Kernel) {
      kernels.push_back(&function);
      info.kernels[function.getName().str()] = describeKernel(function);
    }
  }
  if (kernels.empty())
    return createStringError("the module has no kernel (ptx_kernel function)");
  for (Function *kernel : kernels)
    inlineCalls(*kernel);
  // What was inlined everywhere is not needed any more.
  erase_if(bodies, [](Function *function) {
    if (!function->hasLocalLinkage() || !function->use_empty())
      return false;
    function->eraseFromParent();
    return true;
  });
  for (Function *function : bodies)
    if (Error error = Lowering(*function, info).run())
      return error;
  for (Function *kernel : kernels)
    makeEntry(*kernel);

  // Nothing of the GPU remains.
  module.setTargetTriple(Triple(sys::getProcessTriple()));
  for (Function &function : module) {
    function.setCallingConv(CallingConv::C);
    if (function.isIntrinsic())
      continue;
    function.setAttributes(AttributeList());
    if (!function.isDeclaration())
      function.addFnAttr(Attribute::NoUnwind);
  }
  SmallVector<Function *, 32> unused;
  for (Function &function : module)
    if (function.isDeclaration() && function.use_empty())
      unused.push_back(&function);
  for (Function *function : unused)
    function->eraseFromParent();
  return Error::success();
}
