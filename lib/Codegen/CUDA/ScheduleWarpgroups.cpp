//===- ScheduleWarpgroups.cpp - A schedule with roles for sm_90a ----------===//
//
// One warpgroup copies, two or three compute (FlashAttention-3's structure). A
// loop over keys has two products, S = left x K and acc += P x V, where P comes
// from S. The computing side is rotated by one tile, so that the tensor cores
// work while exponentials are computed:
//
//   S(0); P(0) = f(S(0))
//   loop i = 1 ..:  start S(i); start acc += P(i-1) V(i-1)
//                   wait S(i); f(S(i)) without rounding
//                   wait acc; round P(i); what f does to acc
//   acc += P(n-1) V(n-1)
//
// The loop is made up to three times, for tiles with, without and again with a
// mask, because a branch over products in flight makes ptxas serialise them. An
// index without tiles is taken for one whose tile has no keys.
//
// Persistent, both sides do all of this for one tile of query rows after the
// other, and rings go on: the number of a stage's tile counts those of all
// query tiles before. The next Q is copied once the last scores are computed,
// its first keys as soon as stages are free, while this tile's last product and
// its stores are under way.
//
//===----------------------------------------------------------------------===//

#include "FragmentKinds.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "prefill/Codegen/CUDA/CUDA.h"

namespace prefill {
#define GEN_PASS_DEF_SCHEDULEWARPGROUPS
#include "prefill/Codegen/CUDA/Passes.h.inc"
} // namespace prefill

using namespace mlir;
using namespace prefill;

namespace {

struct Options {
  warp::ScheduleAttr schedule;
  int64_t stages, copyRegisters, computeRegisters;
  bool takeTurns, tensorMaps, persistent;
};

class WarpgroupScheduler {
public:
  WarpgroupScheduler(tile::KernelOp kernel, Options options)
      : kernel(kernel), options(options), b(kernel), kinds(kernel) {}
  LogicalResult run();

private:
  LogicalResult analyse();
  void findSums();
  void emitCopies();
  /// Q and `tiles` tiles of keys.
  void emitTileCopies(Value tiles);
  LogicalResult emitCompute();
  void emitFirstTile();
  /// Tiles `begin` up to `end`; updates `carried`.
  void emitTiles(Value begin, Value end, bool masked, warp::KeyPart part);

  Value integer(int64_t value) {
    return arith::ConstantOp::create(b, loc(), b.getI32IntegerAttr(value));
  }
  Location loc() { return loop ? loop.getLoc() : kernel.getLoc(); }
  Value alloc(Type tile, int64_t stages);
  /// At least one.
  Value count() {
    Value tiles = warp::CountOp::create(b, loc(), b.getI32Type(),
                                        map.lookup(loop.getIndex()));
    return arith::MaxSIOp::create(b, loc(), tiles, integer(1));
  }
  Value keys(Value number, bool masked,
             warp::KeyPart part = warp::KeyPart::Any) {
    return warp::KeysOp::create(b, loc(), loop.getKeys().getType(),
                                map.lookup(loop.getIndex()), number, masked,
                                part);
  }
  Value wait(Value ring, Value number) {
    auto type = cast<warp::RingType>(ring.getType());
    return warp::WaitOp::create(b, loc(), type.getSlot(warp::SlotState::Full),
                                ring, number, 0);
  }
  void copy(Value ring, Value number, Value view, Value keys) {
    auto type = cast<warp::RingType>(ring.getType());
    Value slot = warp::AcquireOp::create(
        b, loc(), type.getSlot(warp::SlotState::Empty), ring, number);
    warp::CopyOp::create(b, loc(), map.lookup(view), keys, slot);
    warp::CommitOp::create(b, loc(), ring, number);
  }
  Value issue(tile::DotOp dot, Value a, Value slot, Value acc) {
    auto tile = cast<RankedTensorType>(kinds.convert(dot.getResult()));
    auto type = warp::PendingType::get(b.getContext(), tile);
    return warp::MmaIssueOp::create(b, loc(), type, a, slot, acc,
                                    dot.getTransposeB());
  }
  Value finish(Value pending, int64_t newer) {
    Type type = cast<warp::PendingType>(pending.getType()).getTile();
    return warp::MmaWaitOp::create(b, loc(), type, pending, newer);
  }
  /// Whether the last tiles of a dense index may need a mask.
  bool endsMasked() {
    for (unsigned i = 0; i < kernel.getBody().getNumArguments(); ++i) {
      auto field = kernel.getArgAttrOfType<StringAttr>(i, tile::kFieldAttr);
      if (field == "window_left" || field == "key_mask")
        return true;
    }
    return false;
  }
  void clone(Operation *op, bool masked = true);
  void cloneAll(ArrayRef<Operation *> ops, bool masked) {
    for (Operation *op : ops)
      clone(op, masked);
  }

  tile::KernelOp kernel;
  Options options;
  OpBuilder b;
  FragmentKinds kinds;
  IRMapping map;

  // What analyse() finds.
  tile::ForTilesOp loop;
  tile::DotOp scores, output;
  tile::LoadOp left, keyLoad, valueLoad;
  unsigned accumulator = 0; ///< which iter arg
  /// Ops of the body: from the scores to P and the other iter args; rounding of
  /// P; from the accumulator before to the accumulator that P x V adds to.
  SmallVector<Operation *> middle, rounding, scaling;
  /// l' = l * a + sum of a row: lanes sum up their own parts until the end.
  struct RowSum {
    tile::ReduceRowOp reduce;
    arith::MulFOp rescale;
    arith::AddFOp add;
    unsigned arg;
  };
  SmallVector<RowSum> sums;

  /// Persistent: what follows, until endWork, is for one tile of query rows.
  void beginWork();
  void endWork(Value tiles);
  /// The number in K's and V's ring of tile `number` of this query tile, and of
  /// Q in its ring.
  Value inRing(Value number) {
    return work ? arith::AddIOp::create(b, loc(), work.getFirst(), number)
                : number;
  }
  Value leftNumber() { return work ? work.getWork() : integer(0); }
  warp::ForWorkOp work; ///< null: a block has one tile of query rows

  Value leftRing, keyRing, valueRing, leftSlot;
  /// Iter args, the accumulator ready for P x V; then P.
  SmallVector<Value> carried;
};

} // namespace

LogicalResult WarpgroupScheduler::analyse() {
  auto loops =
      llvm::to_vector(kernel.getBody().front().getOps<tile::ForTilesOp>());
  if (loops.size() != 1)
    return kernel.emitOpError("has ")
           << loops.size() << " loops over keys; warpgroups share one";
  loop = loops.front();
  Block &body = loop.getBody().front();
  auto dots = llvm::to_vector(body.getOps<tile::DotOp>());
  if (dots.size() != 2)
    return loop.emitOpError("has ") << dots.size() << " products, not two";
  scores = dots[0], output = dots[1];
  left = scores.getA().getDefiningOp<tile::LoadOp>();
  if (!left || left->getBlock() == &body || left.getKeys() || scores.getAcc())
    return scores.emitOpError("left operand comes not straight from memory");
  keyLoad = scores.getB().getDefiningOp<tile::LoadOp>();
  valueLoad = output.getB().getDefiningOp<tile::LoadOp>();
  for (tile::LoadOp load : {keyLoad, valueLoad})
    if (!load || load->getBlock() != &body || !load.getKeys() ||
        !load->hasOneUse())
      return loop.emitOpError("has a right operand that is not loaded for it "
                              "alone");
  // The accumulator goes round through the second product.
  auto yields = loop.getYield()->getOperands();
  auto at = llvm::find(yields, output.getResult());
  if (at == yields.end() || !output.getResult().hasOneUse() || !output.getAcc())
    return output.emitOpError("is not what the loop sums up");
  accumulator = at - yields.begin();
  llvm::SmallPtrSet<Operation *, 16> late;
  DenseSet<Value> dependent{loop.getIterArgs()[accumulator]};
  for (Operation &op : body.without_terminator()) {
    if (&op == output)
      continue;
    if (llvm::any_of(op.getOperands(),
                     [&](Value v) { return dependent.contains(v); })) {
      scaling.push_back(&op);
      for (Value result : op.getResults())
        dependent.insert(result);
    }
  }
  if (!dependent.contains(output.getAcc()))
    return output.emitOpError("does not add to the loop's sum");
  if (dependent.contains(output.getA()))
    return output.emitOpError("multiplies what depends on its sum");
  for (auto [number, value] : llvm::enumerate(yields))
    if (number != accumulator && dependent.contains(value))
      return output.emitOpError("is summed into what other sums depend on");
  if (auto round = output.getA().getDefiningOp<arith::TruncFOp>())
    if (round->hasOneUse())
      rounding.push_back(round);
  for (Operation &op : body.without_terminator())
    if (!isa<tile::DotOp>(op) && &op != keyLoad && &op != valueLoad &&
        !llvm::is_contained(scaling, &op) && !llvm::is_contained(rounding, &op))
      middle.push_back(&op);
  findSums();
  return success();
}

/// Finds row sums that nothing needs before the loop ends.
void WarpgroupScheduler::findSums() {
  for (Operation *op : middle) {
    auto reduce = dyn_cast<tile::ReduceRowOp>(op);
    if (!reduce || reduce.getKind() != tile::ReduceKind::Sum ||
        !reduce.getResult().hasOneUse())
      continue;
    auto add = dyn_cast<arith::AddFOp>(*reduce.getResult().user_begin());
    if (!add || !add.getResult().hasOneUse())
      continue;
    auto rescale =
        (add.getLhs() == reduce.getResult() ? add.getRhs() : add.getLhs())
            .getDefiningOp<arith::MulFOp>();
    auto yields = loop.getYield()->getOperands();
    auto at = llvm::find(yields, add.getResult());
    if (!rescale || !rescale.getResult().hasOneUse() || at == yields.end())
      continue;
    const unsigned arg = at - yields.begin();
    if (rescale.getLhs() != loop.getIterArgs()[arg] ||
        !loop.getIterArgs()[arg].hasOneUse())
      continue;
    sums.push_back({reduce, rescale, add, arg});
  }
}

Value WarpgroupScheduler::alloc(Type type, int64_t stages) {
  auto tile = cast<RankedTensorType>(type);
  auto ring = warp::RingType::get(b.getContext(), stages, tile.getDimSize(0),
                                  tile.getDimSize(1), tile.getElementType());
  return warp::AllocOp::create(b, loc(), ring, options.tensorMaps);
}

void WarpgroupScheduler::clone(Operation *op, bool masked) {
  if (auto mask = dyn_cast<tile::MaskOp>(op); mask && !masked) {
    map.map(mask.getResult(), map.lookup(mask.getScores()));
    return;
  }
  for (RowSum &sum : sums) {
    if (op == sum.rescale)
      return;
    if (op == sum.reduce) {
      map.map(sum.reduce.getResult(),
              warp::PartSumOp::create(b, loc(), kinds.convert(op->getResult(0)),
                                      map.lookup(sum.reduce.getValue())));
      return;
    }
    if (op == sum.add) {
      map.map(sum.add.getResult(),
              math::FmaOp::create(b, loc(), map.lookup(sum.rescale.getLhs()),
                                  map.lookup(sum.rescale.getRhs()),
                                  map.lookup(sum.reduce.getResult())));
      return;
    }
  }
  Operation *copy = kinds.clone(b, op, map);
  for (auto [from, to] : llvm::zip(op->getRegions(), copy->getRegions())) {
    OpBuilder::InsertionGuard guard(b);
    Block *target = b.createBlock(&to);
    for (BlockArgument arg : from.front().getArguments())
      map.map(arg, target->addArgument(kinds.convert(arg), arg.getLoc()));
    for (Operation &inner : from.front())
      clone(&inner, masked);
  }
}

void WarpgroupScheduler::beginWork() {
  if (!options.persistent)
    return;
  work = warp::ForWorkOp::create(b, loc());
  Type i32 = b.getI32Type();
  Block *body = b.createBlock(&work.getBody(), {}, {i32, i32}, {loc(), loc()});
  for (BlockArgument arg : kernel.getBody().getArguments())
    map.map(arg, body->addArgument(arg.getType(), arg.getLoc()));
}

void WarpgroupScheduler::endWork(Value tiles) {
  if (!work)
    return;
  warp::NextWorkOp::create(b, loc(), inRing(tiles));
  b.setInsertionPointAfter(work);
  work = nullptr;
}

void WarpgroupScheduler::emitCopies() {
  beginWork();
  Value tiles = count();
  emitTileCopies(tiles);
  endWork(tiles);
}

void WarpgroupScheduler::emitTileCopies(Value tiles) {
  OpBuilder::InsertionGuard outside(b);
  if (options.tensorMaps) {
    Value first = warp::IsFirstThreadOp::create(b, loc(), b.getI1Type());
    auto branch = scf::IfOp::create(b, loc(), first, /*withElseRegion=*/false);
    b.setInsertionPoint(branch.thenBlock()->getTerminator());
  }
  copy(leftRing, leftNumber(), left.getView(), Value());
  auto target = scf::ForOp::create(b, loc(), integer(0), tiles, integer(1));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(target.getBody());
  Value number = target.getInductionVar();
  Value tile = keys(number, /*masked=*/false);
  Value stage = inRing(number);
  copy(keyRing, stage, keyLoad.getView(), tile);
  copy(valueRing, stage, valueLoad.getView(), tile);
}

void WarpgroupScheduler::emitFirstTile() {
  Value zero = integer(0);
  map.map(loop.getKeys(), keys(zero, /*masked=*/true));
  for (auto [arg, init] : llvm::zip(loop.getIterArgs(), loop.getInits()))
    map.map(arg, map.lookup(init));
  for (RowSum &sum : sums) {
    // What a row begins with is spread over its four lanes.
    Value init = map.lookup(loop.getInits()[sum.arg]);
    auto type = cast<RankedTensorType>(init.getType());
    Value quarter = arith::ConstantOp::create(
        b, loc(), DenseElementsAttr::get(type, b.getF32FloatAttr(0.25)));
    map.map(loop.getIterArgs()[sum.arg],
            arith::MulFOp::create(b, loc(), init, quarter));
  }
  leftSlot = wait(leftRing, leftNumber());
  Value stage = inRing(zero);
  Value product = issue(scores, leftSlot, wait(keyRing, stage), Value());
  map.map(scores.getResult(), finish(product, 0));
  warp::ReleaseOp::create(b, loc(), keyRing, stage);
  cloneAll(middle, /*masked=*/true);
  cloneAll(rounding, true);
  cloneAll(scaling, true);
  for (Value value : loop.getYield()->getOperands())
    carried.push_back(map.lookup(
        value == output.getResult() ? Value(output.getAcc()) : value));
  carried.push_back(map.lookup(output.getA()));
}

void WarpgroupScheduler::emitTiles(Value begin, Value end, bool masked,
                                   warp::KeyPart part) {
  auto target = scf::ForOp::create(b, loc(), begin, end, integer(1), carried);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(target.getBody());
  Value number = target.getInductionVar();
  Value stage = inRing(number);
  Value before = arith::SubIOp::create(b, loc(), stage, integer(1));
  map.map(loop.getKeys(), keys(number, masked, part));
  for (auto [arg, value] :
       llvm::zip(loop.getIterArgs(), target.getRegionIterArgs()))
    map.map(arg, value);
  Value sum = target.getRegionIterArgs()[accumulator];
  Value weights = target.getRegionIterArgs().back();

  Value keySlot = wait(keyRing, stage);
  if (options.takeTurns)
    warp::OrderWaitOp::create(b, loc());
  Value first = issue(scores, leftSlot, keySlot, Value());
  Value second = issue(output, weights, wait(valueRing, before), sum);
  if (options.takeTurns)
    warp::OrderPassOp::create(b, loc(), /*start=*/false);
  map.map(scores.getResult(), finish(first, 1));
  warp::ReleaseOp::create(b, loc(), keyRing, stage);
  cloneAll(middle, masked);
  map.map(loop.getIterArgs()[accumulator], finish(second, 0));
  warp::ReleaseOp::create(b, loc(), valueRing, before);
  // Rounded registers are P's, which the product read until here.
  cloneAll(rounding, masked);
  cloneAll(scaling, masked);
  SmallVector<Value> yields;
  for (Value value : loop.getYield()->getOperands())
    yields.push_back(map.lookup(
        value == output.getResult() ? Value(output.getAcc()) : value));
  yields.push_back(map.lookup(output.getA()));
  scf::YieldOp::create(b, loc(), yields);
  carried.assign(target.getResults().begin(), target.getResults().end());
}

LogicalResult WarpgroupScheduler::emitCompute() {
  bool after = false;
  // The last turn of a tile of query rows is the first one of the next.
  if (options.takeTurns)
    warp::OrderPassOp::create(b, loc(), /*start=*/true);
  beginWork();
  Value number;
  for (Operation &op : kernel.getBody().front().without_terminator()) {
    if (&op == left)
      continue;
    if (&op != loop) {
      if (auto load = dyn_cast<tile::LoadOp>(op))
        return load.emitOpError("outside the loop over keys is not supported "
                                "by this schedule");
      clone(&op);
      continue;
    }
    after = true;
    number = count();
    Value one = integer(1);
    emitFirstTile();
    Type type = b.getI32Type();
    auto full = warp::FullTilesOp::create(b, loc(), type, type, type,
                                          map.lookup(loop.getIndex()));
    Value begin = arith::MaxSIOp::create(b, loc(), full.getBegin(), one);
    Value end = arith::MaxSIOp::create(b, loc(), full.getEnd(), begin);
    // Lists are full blocks, blocks, columns. Dense tiles end with masked ones
    // only where a window does.
    if (options.schedule.getIndex() == warp::KeyOrder::Lists) {
      Value columns = arith::MaxSIOp::create(b, loc(), full.getColumns(), end);
      emitTiles(one, end, /*masked=*/false, warp::KeyPart::Block);
      emitTiles(end, columns, /*masked=*/true, warp::KeyPart::Block);
      emitTiles(columns, number, /*masked=*/true, warp::KeyPart::Columns);
    } else {
      emitTiles(one, begin, /*masked=*/true, warp::KeyPart::Block);
      emitTiles(begin, end, /*masked=*/false, warp::KeyPart::Block);
      if (endsMasked())
        emitTiles(end, number, /*masked=*/true, warp::KeyPart::Block);
    }
    if (work)
      warp::ReleaseOp::create(b, loc(), leftRing, leftNumber());
    Value last = inRing(arith::SubIOp::create(b, loc(), number, one));
    Value product = issue(output, carried.back(), wait(valueRing, last),
                          carried[accumulator]);
    carried.pop_back();
    carried[accumulator] = finish(product, 0);
    warp::ReleaseOp::create(b, loc(), valueRing, last);
    for (RowSum &sum : sums)
      carried[sum.arg] = warp::WholeSumOp::create(
          b, loc(), carried[sum.arg].getType(), carried[sum.arg]);
    for (auto [result, value] : llvm::zip(loop.getResults(), carried))
      map.map(result, value);
  }
  endWork(number);
  return success(after);
}

LogicalResult WarpgroupScheduler::run() {
  if (failed(analyse()))
    return failure();
  auto target = warp::KernelOp::create(
      b, kernel.getLoc(), kernel.getName(), kernel.getFunctionType(),
      options.schedule, kernel.getArgAttrsAttr(), kernel.getResAttrsAttr());
  Block *body = b.createBlock(&target.getBody());
  for (BlockArgument arg : kernel.getBody().getArguments())
    map.map(arg, body->addArgument(arg.getType(), arg.getLoc()));
  b.setInsertionPointToEnd(body);
  leftRing = alloc(left.getResult().getType(), 1);
  keyRing = alloc(keyLoad.getResult().getType(), options.stages);
  valueRing = alloc(valueLoad.getResult().getType(), options.stages);
  auto roles = warp::RolesOp::create(b, kernel.getLoc(), options.copyRegisters,
                                     options.computeRegisters);
  b.createBlock(&roles.getCopy());
  emitCopies();
  b.createBlock(&roles.getCompute());
  if (failed(emitCompute())) {
    target.erase();
    return failure();
  }
  b.setInsertionPointToEnd(body);
  warp::ReturnOp::create(b, kernel.getLoc());
  kernel.erase();
  return success();
}

namespace {

struct ScheduleWarpgroups
    : public prefill::impl::ScheduleWarpgroupsBase<ScheduleWarpgroups> {
  using ScheduleWarpgroupsBase::ScheduleWarpgroupsBase;

  void runOnOperation() override {
    auto order = lists ? warp::KeyOrder::Lists : warp::KeyOrder::Dense;
    Options options;
    options.schedule =
        warp::ScheduleAttr::get(&getContext(), 90, 4 * warpgroups, order);
    options.stages = stages;
    options.copyRegisters = copyRegisters;
    options.computeRegisters = computeRegisters;
    options.takeTurns = takeTurns && warpgroups > 1;
    options.tensorMaps = tensorMaps;
    options.persistent = persistent;
    if (lists && tensorMaps) {
      getOperation().emitError("columns of lists cannot be copied by TMA");
      return signalPassFailure();
    }
    auto kernels = llvm::to_vector(getOperation().getOps<tile::KernelOp>());
    for (tile::KernelOp kernel : kernels)
      if (failed(WarpgroupScheduler(kernel, options).run()))
        return signalPassFailure();
  }
};

} // namespace
