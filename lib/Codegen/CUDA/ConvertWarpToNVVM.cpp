//===- ConvertWarpToNVVM.cpp - The pass, structure, control flow ----------===//

#include "WarpLowering.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/cuda_abi.h"
#include "prefill/cuda_index.h"

namespace prefill {
#define GEN_PASS_DEF_CONVERTWARPTONVVM
#include "prefill/Codegen/CUDA/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

static constexpr llvm::StringLiteral kSharedName = "prefill_shared";

WarpLowering::WarpLowering(warp::KernelOp kernel)
    : kernel(kernel), loc(kernel.getLoc()), b(kernel), gpu(b, loc),
      warps(kernel.getSchedule().getWarps()) {
  // All row fragments and left operands have the kernel's number of rows.
  kernel.walk([&](tile::StoreOp store) {
    auto type = cast<RankedTensorType>(store.getValue().getType());
    if (!store.getKeys())
      blockQ = type.getDimSize(0);
  });
  kernel.walk([&](tile::StoreSumsOp store) {
    blockQ = cast<RankedTensorType>(store.getValue().getType()).getDimSize(0);
  });
}

LogicalResult WarpLowering::run() {
  MLIRContext *context = b.getContext();
  if (blockQ == 0)
    return kernel.emitOpError("stores nothing");
  auto module = kernel->getParentOfType<ModuleOp>();
  if (!module.lookupSymbol(kSharedName)) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(module.getBody());
    // Its size is the launch's.
    LLVM::GlobalOp::create(b, loc, LLVM::LLVMArrayType::get(b.getI8Type(), 0),
                           /*isConstant=*/false, LLVM::Linkage::External,
                           kSharedName, Attribute(), /*alignment=*/1024,
                           /*addrSpace=*/3);
  }
  auto pointer = LLVM::LLVMPointerType::get(context);
  const bool maps =
      llvm::any_of(kernel.getBody().front().getOps<warp::AllocOp>(),
                   [](warp::AllocOp alloc) { return alloc.getTma(); });
  auto type =
      LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(context),
                                  SmallVector<Type>(maps ? 2 : 1, pointer));
  function = LLVM::LLVMFuncOp::create(b, loc, kernel.getName(), type);
  auto byValue = [&](unsigned number, size_t bytes, int64_t alignment) {
    auto block = LLVM::LLVMArrayType::get(b.getI8Type(), bytes);
    function.setArgAttr(number, LLVM::LLVMDialect::getByValAttrName(),
                        TypeAttr::get(block));
    function.setArgAttr(number, LLVM::LLVMDialect::getAlignAttrName(),
                        b.getI64IntegerAttr(alignment));
    function.setArgAttr(number, LLVM::LLVMDialect::getReadonlyAttrName(),
                        b.getUnitAttr());
    function.setArgAttr(number, "nvvm.grid_constant", b.getUnitAttr());
  };
  const bool sums = kernel.getSchedule().getIndex() == warp::KeyOrder::Chunk;
  byValue(0, sums ? sizeof(prefill_cuda_index) : sizeof(prefill_cuda_attention),
          8);
  if (maps)
    byValue(1, sizeof(prefill_cuda_tensor_maps), 64);
  roles = !kernel.getBody().front().getOps<warp::RolesOp>().empty();
  markKernel(function, 32 * warps + (roles ? 128 : 0), /*alone=*/roles);
  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  arguments = entry->getArgument(0);
  if (maps)
    tensorMaps = entry->getArgument(1);
  shared = LLVM::AddressOfOp::create(b, loc, sharedPointer(), kSharedName);
  thread = gpu.threadId();
  lane = bitAnd(thread, i32(31));
  warpId = shiftRight(thread, 5);
  group = shiftRight(lane, 2);
  quad = bitAnd(lane, i32(3));
  copyThread = thread;
  copyThreads = 32 * warps;
  if (failed(sums ? bindSums() : bindArguments()))
    return failure();
  if (failed(lowerBlock(kernel.getBody().front())))
    return failure();
  LLVM::ReturnOp::create(b, loc, ValueRange{});
  function->setAttr(kSharedBytesAttr, b.getI64IntegerAttr(sharedBytes));
  kernel.erase();
  return success();
}

LogicalResult WarpLowering::lowerBlock(Block &block) {
  for (Operation &op : block.without_terminator())
    if (failed(lower(&op)))
      return failure();
  return success();
}

LogicalResult WarpLowering::lower(Operation *op) {
  return llvm::TypeSwitch<Operation *, LogicalResult>(op)
      .Case<scf::ForOp, scf::IfOp, warp::KeysOp, warp::AllocOp, warp::CopyOp,
            warp::MmaOp, tile::StoreOp, tile::StoreSumsOp, tile::LoadOp,
            arith::ConstantOp, tile::ReduceRowOp, tile::BroadcastOp,
            tile::RowsOp, tile::PositionsOp, tile::MaskOp, warp::RolesOp,
            warp::ForWorkOp, warp::OrderWaitOp, warp::OrderPassOp,
            warp::FullTilesOp, warp::MmaIssueOp, warp::MmaWaitOp,
            warp::PartSumOp, warp::WholeSumOp>(
          [&](auto typed) { return lower(typed); })
      .Case([&](warp::IsFirstThreadOp first) {
        map[first.getResult()] = {
            compare(arith::CmpIPredicate::eq, copyThread, i32(0))};
        return success();
      })
      .Case([&](warp::CountOp count) {
        map[count.getResult()] = {index.count};
        return success();
      })
      .Case([&](warp::AcquireOp acquire) {
        // Without roles nothing to wait for: the verifier has seen the barrier.
        if (roles)
          acquireStage(acquire.getRing(), acquire.getNumber());
        map[acquire.getSlot()] = {
            slotAddress(acquire.getRing(), acquire.getNumber())};
        return success();
      })
      .Case([&](warp::WaitOp wait) {
        if (roles) {
          waitForStage(wait.getRing(), wait.getNumber());
        } else {
          gpu.waitForCopies(wait.getNewer());
          gpu.barrier();
        }
        map[wait.getSlot()] = {slotAddress(wait.getRing(), wait.getNumber())};
        return success();
      })
      .Case([&](warp::CommitOp commit) {
        if (roles)
          commitStage(commit.getRing(), commit.getNumber());
        else
          gpu.commitCopies();
        return success();
      })
      .Case([&](warp::ReleaseOp release) {
        // Without roles the next wait's barrier does it.
        if (roles)
          releaseStage(release.getRing(), release.getNumber());
        return success();
      })
      .Default([&](Operation *other) { return lowerElementwise(other); });
}

LogicalResult WarpLowering::lower(scf::ForOp op) {
  SmallVector<Value> inits;
  for (Value init : op.getInitArgs())
    llvm::append_range(inits, lanes(init));
  auto loop = scf::ForOp::create(b, loc, scalar(op.getLowerBound()),
                                 scalar(op.getUpperBound()),
                                 scalar(op.getStep()), inits);
  map[op.getInductionVar()] = {loop.getInductionVar()};
  auto spread = [&](ValueRange values, ValueRange flat) {
    int64_t next = 0;
    for (auto [value, init] : llvm::zip(values, op.getInitArgs())) {
      int64_t count = lanes(init).size();
      Lanes part(flat.slice(next, count));
      next += count;
      map[value] = part;
    }
  };
  spread(op.getRegionIterArgs(), loop.getRegionIterArgs());
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    if (failed(lowerBlock(*op.getBody())))
      return failure();
    SmallVector<Value> yields;
    for (Value value : op.getBody()->getTerminator()->getOperands())
      llvm::append_range(yields, lanes(value));
    if (!yields.empty())
      scf::YieldOp::create(b, loc, yields);
  }
  spread(op.getResults(), loop.getResults());
  return success();
}

LogicalResult WarpLowering::lower(scf::IfOp op) {
  if (op.getNumResults() || op.elseBlock())
    return op.emitOpError("with results or else is not supported here");
  auto branch = scf::IfOp::create(b, loc, scalar(op.getCondition()),
                                  /*withElseRegion=*/false);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPoint(branch.thenBlock()->getTerminator());
  return lowerBlock(*op.thenBlock());
}

//===----------------------------------------------------------------------===//
// Shorthands
//===----------------------------------------------------------------------===//

Value WarpLowering::i1(bool value) {
  return arith::ConstantOp::create(b, loc, b.getBoolAttr(value));
}
Value WarpLowering::i32(int64_t value) {
  return arith::ConstantOp::create(b, loc, b.getI32IntegerAttr(value));
}
Value WarpLowering::i64(int64_t value) {
  return arith::ConstantOp::create(b, loc, b.getI64IntegerAttr(value));
}
Value WarpLowering::f32(double value) {
  return arith::ConstantOp::create(b, loc, b.getF32FloatAttr(value));
}
Value WarpLowering::add(Value x, Value y) {
  return arith::AddIOp::create(b, loc, x, y);
}
Value WarpLowering::sub(Value x, Value y) {
  return arith::SubIOp::create(b, loc, x, y);
}
Value WarpLowering::mul(Value x, Value y) {
  return arith::MulIOp::create(b, loc, x, y);
}
Value WarpLowering::divide(Value x, Value y) {
  return arith::DivUIOp::create(b, loc, x, y);
}
Value WarpLowering::bitAnd(Value x, Value y) {
  return arith::AndIOp::create(b, loc, x, y);
}
Value WarpLowering::bitOr(Value x, Value y) {
  return arith::OrIOp::create(b, loc, x, y);
}
Value WarpLowering::bitXor(Value x, Value y) {
  return arith::XOrIOp::create(b, loc, x, y);
}
Value WarpLowering::shiftRight(Value x, int64_t bits) {
  return arith::ShRUIOp::create(b, loc, x, i32(bits));
}
Value WarpLowering::select(Value condition, Value x, Value y) {
  return arith::SelectOp::create(b, loc, condition, x, y);
}
Value WarpLowering::compare(arith::CmpIPredicate predicate, Value x, Value y) {
  return arith::CmpIOp::create(b, loc, predicate, x, y);
}
Value WarpLowering::clamp(Value x, Value low, Value high) {
  return arith::MaxSIOp::create(b, loc, arith::MinSIOp::create(b, loc, x, high),
                                low);
}
Value WarpLowering::wide(Value x) {
  return arith::ExtUIOp::create(b, loc, b.getI64Type(), x);
}
Value WarpLowering::narrow(Value x) {
  return arith::TruncIOp::create(b, loc, b.getI32Type(), x);
}
Value WarpLowering::offset(Value pointer, Value bytes) {
  return LLVM::GEPOp::create(b, loc, pointer.getType(), b.getI8Type(), pointer,
                             bytes);
}
Value WarpLowering::offset(Value pointer, int64_t bytes) {
  if (bytes == 0)
    return pointer;
  return LLVM::GEPOp::create(b, loc, pointer.getType(), b.getI8Type(), pointer,
                             ArrayRef<LLVM::GEPArg>{int32_t(bytes)});
}
Value WarpLowering::load(Value pointer, Type type) {
  return LLVM::LoadOp::create(b, loc, type, pointer);
}
Value WarpLowering::parameter(int64_t bytes, Type type) {
  return load(offset(arguments, bytes), type);
}
Type WarpLowering::globalPointer() {
  return LLVM::LLVMPointerType::get(b.getContext(), 1);
}
Type WarpLowering::sharedPointer() {
  return LLVM::LLVMPointerType::get(b.getContext(), 3);
}
const WarpLowering::Lanes &WarpLowering::lanes(Value value) const {
  auto it = map.find(value);
  assert(it != map.end() && "used before it is lowered");
  return it->second;
}

namespace {

struct ConvertWarpToNVVM
    : public prefill::impl::ConvertWarpToNVVMBase<ConvertWarpToNVVM> {
  void getDependentDialects(DialectRegistry &registry) const override {
    ConvertWarpToNVVMBase::getDependentDialects(registry);
    registerNVVM(registry);
  }
  void runOnOperation() override {
    auto kernels = llvm::to_vector(getOperation().getOps<warp::KernelOp>());
    for (warp::KernelOp kernel : kernels)
      if (failed(WarpLowering(kernel).run()))
        return signalPassFailure();
  }
};

} // namespace
