//===- Instructions.cpp - GPU instructions as nvvm ops --------------------===//

#include "Instructions.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Target/LLVMIR/Dialect/NVVM/NVVMToLLVMIRTranslation.h"

using namespace mlir;
using namespace prefill;

Value Instructions::i32(int64_t value) {
  return LLVM::ConstantOp::create(b, loc, b.getI32IntegerAttr(value));
}

Value Instructions::intrinsic(StringRef name, Type type,
                              ArrayRef<Value> operands) {
  return LLVM::CallIntrinsicOp::create(b, loc, type, b.getStringAttr(name),
                                       operands)
      .getResult(0);
}

SmallVector<Value> Instructions::unpack(Value structure) {
  SmallVector<Value> values;
  auto type = cast<LLVM::LLVMStructType>(structure.getType());
  for (int64_t i = 0, e = type.getBody().size(); i < e; ++i)
    values.push_back(LLVM::ExtractValueOp::create(b, loc, structure, i));
  return values;
}

Value Instructions::threadId() {
  return NVVM::ThreadIdXOp::create(b, loc, b.getI32Type());
}

Value Instructions::blockId(int dimension) {
  Type type = b.getI32Type();
  if (dimension == 0)
    return NVVM::BlockIdXOp::create(b, loc, type);
  if (dimension == 1)
    return NVVM::BlockIdYOp::create(b, loc, type);
  return NVVM::BlockIdZOp::create(b, loc, type);
}

Value Instructions::blockCount() {
  return NVVM::GridDimXOp::create(b, loc, b.getI32Type());
}

SmallVector<Value> Instructions::loadMatrices(Value address, bool transpose) {
  MLIRContext *context = b.getContext();
  auto type = LLVM::LLVMStructType::getLiteral(
      context, SmallVector<Type>(4, b.getI32Type()));
  auto layout = transpose ? NVVM::MMALayout::col : NVVM::MMALayout::row;
  return unpack(NVVM::LdMatrixOp::create(
      b, loc, type, address, b.getI32IntegerAttr(4),
      NVVM::MMALayoutAttr::get(context, layout),
      NVVM::LdStMatrixShapeAttr::get(context, 8, 8),
      NVVM::LdStMatrixEltTypeAttr::get(context, NVVM::LdStMatrixEltType::B16)));
}

SmallVector<Value> Instructions::multiply(ArrayRef<Value> a,
                                          ArrayRef<Value> right,
                                          ArrayRef<Value> c, Type element) {
  // f16 operands are pairs, bf16 ones bare registers.
  const bool half = element.isF16();
  auto convert = [&](ArrayRef<Value> values) {
    SmallVector<Value> result(values);
    if (half)
      for (Value &value : result)
        value = LLVM::BitcastOp::create(
            b, loc, VectorType::get({2}, b.getF16Type()), value);
    return result;
  };
  auto type = LLVM::LLVMStructType::getLiteral(
      b.getContext(), SmallVector<Type>(4, b.getF32Type()));
  auto ptxType = half ? NVVM::MMATypes::f16 : NVVM::MMATypes::bf16;
  return unpack(NVVM::MmaOp::create(
      b, loc, type, convert(a), convert(right), c, ArrayRef<int64_t>{16, 8, 16},
      std::nullopt, std::nullopt,
      std::array<NVVM::MMATypes, 2>{ptxType, ptxType},
      std::array<NVVM::MMALayout, 2>{NVVM::MMALayout::row,
                                     NVVM::MMALayout::col}));
}

void Instructions::copyAsync(Value shared, Value global, Value bytes) {
  NVVM::CpAsyncOp::create(b, loc, shared, global, 16,
                          NVVM::LoadCacheModifierKind::CG, bytes);
}

void Instructions::commitCopies() {
  NVVM::CpAsyncCommitGroupOp::create(b, loc);
}

void Instructions::waitForCopies(int64_t newer) {
  NVVM::CpAsyncWaitGroupOp::create(b, loc, newer);
}

void Instructions::barrier() { NVVM::BarrierOp::create(b, loc); }

Value Instructions::shuffleXor(Value value, int mask) {
  return NVVM::ShflOp::create(b, loc, value.getType(), i32(-1), value,
                              i32(mask), i32(31), NVVM::ShflKind::bfly,
                              UnitAttr());
}

Value Instructions::exp2(Value x) {
  return intrinsic("llvm.nvvm.ex2.approx.ftz.f", x.getType(), x);
}

Value Instructions::log2(Value x) {
  return intrinsic("llvm.nvvm.lg2.approx.ftz.f", x.getType(), x);
}

Value Instructions::reciprocal(Value x) {
  return intrinsic("llvm.nvvm.rcp.approx.ftz.f", x.getType(), x);
}

Value Instructions::pack(Value low, Value high, Type element) {
  StringRef name =
      element.isF16() ? "llvm.nvvm.ff2f16x2.rn" : "llvm.nvvm.ff2bf16x2.rn";
  Value pair = intrinsic(name, VectorType::get({2}, element), {high, low});
  return LLVM::BitcastOp::create(b, loc, b.getI32Type(), pair);
}

void prefill::markKernel(Operation *function, int threads, bool alone) {
  Builder b(function->getContext());
  function->setAttr(NVVM::NVVMDialect::getKernelFuncAttrName(),
                    b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getMaxntidAttrName(),
                    b.getDenseI32ArrayAttr({threads}));
  if (alone)
    function->setAttr(NVVM::NVVMDialect::getMinctasmAttrName(),
                      b.getI32IntegerAttr(1));
}

void prefill::registerNVVM(DialectRegistry &registry) {
  registry.insert<NVVM::NVVMDialect>();
  registerNVVMDialectTranslation(registry);
}
