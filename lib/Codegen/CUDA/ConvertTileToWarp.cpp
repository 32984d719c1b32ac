//===- ConvertTileToWarp.cpp - A schedule for a tile kernel ---------------===//
//
// Where tiles lie: right operands of products, and left ones that come straight
// from memory, go to rings in shared memory; the rest are fragments.
//
// When they are copied: a loop reads tiles X0(i), X1(i), ... in this order. All
// computing warps meet when they wait for a tile, so the stage of the one read
// before it is free there, and is filled again:
//
//   wait X0(i); copy X1(i - 1 + stages); ... X0(i) ...; release X0(i)
//   wait X1(i); copy X0(i + stages);     ... X1(i) ...; release X1(i)
//
// One barrier a tile serves both as "full" and as "empty".
//
//===----------------------------------------------------------------------===//

#include "FragmentKinds.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/IRMapping.h"
#include "prefill/Codegen/CUDA/CUDA.h"

namespace prefill {
#define GEN_PASS_DEF_CONVERTTILETOWARP
#include "prefill/Codegen/CUDA/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {

class Scheduler {
public:
  Scheduler(tile::KernelOp kernel, warp::ScheduleAttr schedule, int64_t stages)
      : kernel(kernel), schedule(schedule), stages(stages), b(kernel),
        kinds(kernel) {}
  LogicalResult run();

private:
  /// One operand of products that a loop copies for every tile of its index.
  struct Stream {
    tile::LoadOp load;
    tile::DotOp dot;
    Value ring;
  };

  Type convert(Value value) { return kinds.convert(value); }
  Value integer(int64_t value) {
    return arith::ConstantOp::create(b, kernel.getLoc(),
                                     b.getI32IntegerAttr(value));
  }
  LogicalResult convertOps(Block &block);
  LogicalResult convertOp(Operation *op);
  LogicalResult convertLoop(tile::ForTilesOp loop);
  LogicalResult convertDot(tile::DotOp dot);
  void copy(Stream stream, Value count, Value number);
  bool isLeftOperand(tile::LoadOp load) {
    return !load.getKeys() && !load->use_empty() &&
           llvm::all_of(load->getUses(), [](OpOperand &use) {
             return isa<tile::DotOp>(use.getOwner()) &&
                    use.getOperandNumber() == 0;
           });
  }
  Value alloc(int64_t count, RankedTensorType tile) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(body);
    auto type = warp::RingType::get(b.getContext(), count, tile.getDimSize(0),
                                    tile.getDimSize(1), tile.getElementType());
    return warp::AllocOp::create(b, kernel.getLoc(), type, /*tma=*/false);
  }

  tile::KernelOp kernel;
  warp::ScheduleAttr schedule;
  int64_t stages;
  OpBuilder b;
  Block *body = nullptr;
  IRMapping map;
  FragmentKinds kinds;
  /// Rings filled before the loops, not yet waited for, by the load's result.
  SmallVector<std::pair<Value, Value>> waiting;
  int64_t commitsSince = 0; ///< commits after that of the last of `waiting`
  SmallVector<Stream> streams;
  int64_t loopNewer = 0;
};

} // namespace

LogicalResult Scheduler::convertOps(Block &block) {
  for (Operation &op : block.without_terminator())
    if (failed(convertOp(&op)))
      return failure();
  return success();
}

LogicalResult Scheduler::convertOp(Operation *op) {
  if (auto loop = dyn_cast<tile::ForTilesOp>(op))
    return convertLoop(loop);
  if (auto dot = dyn_cast<tile::DotOp>(op))
    return convertDot(dot);
  if (isa<tile::NeedOp>(op))
    return op->emitOpError("is not supported on GPUs");
  if (auto load = dyn_cast<tile::LoadOp>(op)) {
    if (llvm::any_of(streams, [&](Stream &s) { return s.load == load; }))
      return success();
    if (isLeftOperand(load)) {
      Value ring = alloc(1, cast<RankedTensorType>(load.getType()));
      Value zero = integer(0);
      auto type = cast<warp::RingType>(ring.getType());
      Value slot = warp::AcquireOp::create(
          b, load.getLoc(), type.getSlot(warp::SlotState::Empty), ring, zero);
      warp::CopyOp::create(b, load.getLoc(), map.lookup(load.getView()),
                           Value(), slot);
      warp::CommitOp::create(b, load.getLoc(), ring, zero);
      waiting.push_back({load.getResult(), ring});
      commitsSince = 0;
      return success();
    }
    if (cast<RankedTensorType>(load.getType()).getRank() != 1)
      return load.emitOpError("of a tile that is no operand of a product is "
                              "not supported on GPUs");
  }
  // Everything else works on fragments as it does on tiles.
  Operation *copy = kinds.clone(b, op, map);
  for (auto [from, to] : llvm::zip(op->getRegions(), copy->getRegions())) {
    OpBuilder::InsertionGuard guard(b);
    Block &source = from.front();
    Block *target = b.createBlock(&to);
    for (BlockArgument arg : source.getArguments())
      map.map(arg, target->addArgument(convert(arg), arg.getLoc()));
    if (failed(convertOps(source)) || failed(convertOp(source.getTerminator())))
      return failure();
  }
  return success();
}

LogicalResult Scheduler::convertDot(tile::DotOp dot) {
  Stream *stream = nullptr;
  for (Stream &candidate : streams)
    if (candidate.dot == dot)
      stream = &candidate;
  if (!stream)
    return dot.emitOpError("outside a loop over keys is not supported on GPUs");
  Value a = map.lookupOrNull(dot.getA());
  if (!a)
    return dot.emitOpError("left operand was never copied");
  auto ring = cast<warp::RingType>(stream->ring.getType());
  auto loop = cast<scf::ForOp>(b.getInsertionBlock()->getParentOp());
  Value number = loop.getInductionVar();
  Location loc = dot.getLoc();
  Value slot = warp::WaitOp::create(b, loc, ring.getSlot(warp::SlotState::Full),
                                    stream->ring, number, loopNewer);
  // The stage of the tile that was read last is free now.
  int64_t position = stream - streams.data();
  Stream last = streams[(position + streams.size() - 1) % streams.size()];
  Value next = arith::AddIOp::create(b, loc, number,
                                     integer(position ? stages : stages - 1));
  copy(last, loop.getUpperBound(), next);
  Value acc = dot.getAcc() ? map.lookup(dot.getAcc()) : Value();
  auto mma = warp::MmaOp::create(b, loc, convert(dot.getResult()), a, slot, acc,
                                 dot.getTransposeB());
  map.map(dot.getResult(), mma.getResult());
  warp::ReleaseOp::create(b, loc, stream->ring, number);
  return success();
}

/// Copies tile `number` of a stream, if there is one, and commits it.
void Scheduler::copy(Stream stream, Value count, Value number) {
  Location loc = stream.load->getLoc();
  auto loop = stream.load->getParentOfType<tile::ForTilesOp>();
  auto ring = cast<warp::RingType>(stream.ring.getType());
  Value exists =
      arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, number, count);
  auto branch = scf::IfOp::create(b, loc, exists, /*withElseRegion=*/false);
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPoint(branch.thenBlock()->getTerminator());
    Value keys = warp::KeysOp::create(b, loc, loop.getKeys().getType(),
                                      map.lookup(loop.getIndex()), number,
                                      /*masked=*/false, warp::KeyPart::Any);
    Value slot = warp::AcquireOp::create(
        b, loc, ring.getSlot(warp::SlotState::Empty), stream.ring, number);
    warp::CopyOp::create(b, loc, map.lookup(stream.load.getView()), keys, slot);
  }
  warp::CommitOp::create(b, loc, stream.ring, number);
  ++commitsSince;
}

LogicalResult Scheduler::convertLoop(tile::ForTilesOp loop) {
  Location loc = loop.getLoc();
  streams.clear();
  for (Operation &op : loop.getBody().front()) {
    auto dot = dyn_cast<tile::DotOp>(op);
    if (!dot)
      continue;
    auto load = dot.getB().getDefiningOp<tile::LoadOp>();
    if (!load || load->getBlock() != op.getBlock() || !load.getKeys() ||
        !load->hasOneUse())
      return dot.emitOpError("right operand is not loaded for it alone");
    auto type = cast<RankedTensorType>(load.getType());
    if (type.getDimSize(0) % 16 || type.getDimSize(1) % 16)
      return load.emitOpError("of ")
             << type << ": tensor cores take multiples of 16";
    streams.push_back({load, dot, alloc(stages, type)});
  }
  const int64_t total = streams.size() * stages;
  if (!streams.empty() && total < 2)
    return loop.emitOpError("with one product needs two stages");
  loopNewer = total - 2;
  Value count = warp::CountOp::create(b, loc, b.getI32Type(),
                                      map.lookup(loop.getIndex()));
  for (int64_t i = 0; i + 1 < total; ++i)
    copy(streams[i % streams.size()], count, integer(i / streams.size()));
  for (auto [tile, ring] : waiting) {
    auto type = cast<warp::RingType>(ring.getType());
    map.map(tile,
            warp::WaitOp::create(b, loc, type.getSlot(warp::SlotState::Full),
                                 ring, integer(0), commitsSince)
                .getSlot());
  }
  waiting.clear();
  SmallVector<Value> inits;
  for (Value init : loop.getInits())
    inits.push_back(map.lookup(init));
  auto target =
      scf::ForOp::create(b, loc, integer(0), count, integer(1), inits);
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(target.getBody());
    Value keys = warp::KeysOp::create(
        b, loc, loop.getKeys().getType(), map.lookup(loop.getIndex()),
        target.getInductionVar(), /*masked=*/false, warp::KeyPart::Any);
    map.map(loop.getKeys(), keys);
    for (auto [arg, value] :
         llvm::zip(loop.getIterArgs(), target.getRegionIterArgs()))
      map.map(arg, value);
    if (failed(convertOps(loop.getBody().front())))
      return failure();
    SmallVector<Value> yields;
    for (Value value : loop.getYield()->getOperands())
      yields.push_back(map.lookup(value));
    // scf.for without carried values comes with a terminator.
    if (!yields.empty())
      scf::YieldOp::create(b, loc, yields);
  }
  map.map(loop.getResults(), target.getResults());
  streams.clear();
  return success();
}

LogicalResult Scheduler::run() {
  auto target = warp::KernelOp::create(
      b, kernel.getLoc(), kernel.getName(), kernel.getFunctionType(), schedule,
      kernel.getArgAttrsAttr(), kernel.getResAttrsAttr());
  body = b.createBlock(&target.getBody());
  for (BlockArgument arg : kernel.getBody().getArguments())
    map.map(arg, body->addArgument(arg.getType(), arg.getLoc()));
  b.setInsertionPointToEnd(body);
  if (failed(convertOps(kernel.getBody().front()))) {
    target.erase();
    return failure();
  }
  warp::ReturnOp::create(b, kernel.getLoc());
  kernel.erase();
  return success();
}

namespace {

struct ConvertTileToWarp
    : public prefill::impl::ConvertTileToWarpBase<ConvertTileToWarp> {
  using ConvertTileToWarpBase::ConvertTileToWarpBase;

  void runOnOperation() override {
    if (arch != 80) {
      getOperation().emitError("no schedule for architecture sm_") << arch;
      return signalPassFailure();
    }
    auto order = lists    ? warp::KeyOrder::Lists
                 : chunks ? warp::KeyOrder::Chunk
                          : warp::KeyOrder::Dense;
    auto schedule = warp::ScheduleAttr::get(&getContext(), arch, warps, order);
    auto kernels = llvm::to_vector(getOperation().getOps<tile::KernelOp>());
    for (tile::KernelOp kernel : kernels)
      if (failed(Scheduler(kernel, schedule, stages).run()))
        return signalPassFailure();
  }
};

} // namespace
