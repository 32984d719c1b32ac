//===- WarpgroupInstructions.cpp - What only sm_90a has -------------------===//
//
// wgmma with its left operand in registers has no nvvm op, and LLVM does not
// know that a product's registers are pending: products and their waits are
// inline assembly with the accumulators tied through.
//
//===----------------------------------------------------------------------===//

#include "Instructions.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"

using namespace mlir;
using namespace prefill;
using llvm::Twine;

SmallVector<Value> Instructions::assembly(StringRef text, StringRef constraints,
                                          ArrayRef<Value> operands,
                                          ArrayRef<Type> results) {
  Type type;
  if (results.size() == 1)
    type = results[0];
  else if (!results.empty())
    type = LLVM::LLVMStructType::getLiteral(b.getContext(), results);
  auto op = LLVM::InlineAsmOp::create(
      b, loc, type, operands, text, constraints,
      /*has_side_effects=*/true, /*is_align_stack=*/false,
      LLVM::TailCallKind::None, LLVM::AsmDialectAttr(), ArrayAttr());
  if (results.size() == 1)
    return {op.getRes()};
  return results.empty() ? SmallVector<Value>() : unpack(op.getRes());
}

Value Instructions::sharedAddress(Value pointer) {
  return LLVM::PtrToIntOp::create(b, loc, b.getI32Type(), pointer);
}

Value Instructions::warpgroup(Value thread) {
  Value number = LLVM::LShrOp::create(b, loc, thread, i32(7));
  return NVVM::ShflOp::create(b, loc, number.getType(), i32(-1), number, i32(0),
                              i32(31), NVVM::ShflKind::idx, UnitAttr());
}

void Instructions::setRegisters(int64_t count, bool more) {
  NVVM::SetMaxRegisterOp::create(b, loc, count,
                                 more ? NVVM::SetMaxRegisterAction::increase
                                      : NVVM::SetMaxRegisterAction::decrease);
}

void Instructions::namedBarrier(Value id, int64_t threads, bool wait) {
  if (wait)
    NVVM::BarrierOp::create(b, loc, TypeRange(), id, i32(threads), {}, Value());
  else
    assembly("bar.arrive $0, $1;", "r,r", {id, i32(threads)}, {});
}

void Instructions::initBarrier(Value barrier, int64_t arrivals) {
  NVVM::MBarrierInitOp::create(b, loc, barrier, i32(arrivals), Value());
}

void Instructions::fenceBarrierInit() {
  NVVM::FenceMbarrierInitOp::create(b, loc);
}

void Instructions::arrive(Value barrier) {
  NVVM::MBarrierArriveOp::create(b, loc, b.getI64Type(), barrier, Value(),
                                 NVVM::MemScopeKind::CTA, false);
}

void Instructions::arriveAfterCopies(Value barrier) {
  NVVM::CpAsyncMBarrierArriveOp::create(b, loc, barrier, /*noinc=*/true);
}

void Instructions::arriveExpecting(Value barrier, int64_t bytes) {
  NVVM::MBarrierArriveExpectTxOp::create(b, loc, b.getI64Type(), barrier,
                                         i32(bytes), NVVM::MemScopeKind::CTA,
                                         /*relaxed=*/false, Value());
}

void Instructions::copyBox(Value shared, Value map, ArrayRef<Value> coordinates,
                           Value barrier) {
  // A block is its own cluster, so shared addresses are the cluster's.
  Value target = LLVM::AddrSpaceCastOp::create(
      b, loc, LLVM::LLVMPointerType::get(b.getContext(), 7), shared);
  NVVM::CpAsyncBulkTensorGlobalToSharedClusterOp::create(
      b, loc, target, map, coordinates, barrier, ValueRange(), Value(), Value(),
      NVVM::TMALoadMode::TILE, /*isCTAOnly=*/false, {}, Value());
}

void Instructions::waitBarrier(Value barrier, Value parity) {
  assembly("{\n"
           ".reg .pred p;\n"
           "WAIT:\n"
           "mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1;\n"
           "@p bra.uni DONE;\n"
           "bra.uni WAIT;\n"
           "DONE:\n"
           "}",
           "r,r", {sharedAddress(barrier), parity}, {});
}

void Instructions::fenceAsync() {
  NVVM::FenceProxyOp::create(
      b, loc,
      NVVM::ProxyKindAttr::get(b.getContext(), NVVM::ProxyKind::async_shared),
      NVVM::SharedSpaceAttr::get(b.getContext(),
                                 NVVM::SharedSpace::shared_cta));
}

/// One output a value of `values`, with its constraint, and the input tied to
/// it.
static std::string tiedConstraints(ArrayRef<Value> values) {
  std::string outputs, inputs;
  for (auto [number, value] : llvm::enumerate(values)) {
    outputs += value.getType().isF32() ? "=f," : "=r,";
    inputs += std::to_string(number) + ",";
  }
  inputs.pop_back();
  return outputs + inputs;
}

SmallVector<Value> Instructions::pin(ArrayRef<Value> values) {
  if (values.empty())
    return {};
  return assembly("", tiedConstraints(values), values,
                  llvm::to_vector(ValueRange(values).getTypes()));
}

void Instructions::fenceProducts() {
  NVVM::WgmmaFenceAlignedOp::create(b, loc);
}

void Instructions::commitProducts() {
  NVVM::WgmmaGroupSyncAlignedOp::create(b, loc);
}

SmallVector<Value> Instructions::waitForProducts(int64_t newer,
                                                 ArrayRef<Value> values) {
  return assembly(("wgmma.wait_group.sync.aligned " + Twine(newer) + ";").str(),
                  tiedConstraints(values), values,
                  llvm::to_vector(ValueRange(values).getTypes()));
}

SmallVector<Value>
Instructions::multiplyWarpgroup(ArrayRef<Value> a, Value right,
                                ArrayRef<Value> sums, int64_t columns,
                                Type element, bool transposeB) {
  const int64_t count = columns / 2;
  const bool inRegisters = a.size() == 4;
  std::string text, outputs, inputs;
  llvm::raw_string_ostream stream(text);
  int64_t operand = sums.empty() ? count : 2 * count;
  auto list = [&](int64_t first, int64_t size) {
    stream << "{";
    for (int64_t i = 0; i < size; ++i)
      stream << (i ? ", $" : "$") << first + i;
    stream << "}, ";
  };
  const char *type = element.isF16() ? "f16" : "bf16";
  // A constant predicate: with "false" old accumulators are not read.
  stream << "{\n.reg .pred p;\nsetp.ne.b32 p, " << (sums.empty() ? 0 : 1)
         << ", 0;\nwgmma.mma_async.sync.aligned.m64n" << columns << "k16.f32."
         << type << "." << type << " ";
  list(0, count);
  if (inRegisters) {
    list(operand, 4);
    operand += 4;
  } else {
    stream << "$" << operand++ << ", ";
  }
  stream << "$" << operand << ", p, 1, 1, " << (inRegisters ? "" : "0, ")
         << (transposeB ? 1 : 0) << ";\n}";
  for (int64_t i = 0; i < count; ++i) {
    outputs += "=f,";
    if (!sums.empty())
      inputs += std::to_string(i) + ",";
  }
  inputs += inRegisters ? "r,r,r,r,l" : "l,l";
  SmallVector<Value> operands(sums);
  llvm::append_range(operands, a);
  operands.push_back(right);
  return assembly(text, outputs + inputs, operands,
                  SmallVector<Type>(count, b.getF32Type()));
}
