//===- LowerWarpgroups.cpp - Roles, barriers of rings, wgmma --------------===//
//
// Warpgroups 0 .. n-1 compute, so that a computing warp's number is its number
// in the block; warpgroup n copies.
//
//===----------------------------------------------------------------------===//

#include "WarpLowering.h"
#include "prefill/cuda_abi.h"
#include <cstddef>

using namespace mlir;
using namespace prefill;
using arith::CmpIPredicate;

#define FIELD(name) int64_t(offsetof(prefill_cuda_attention, name))

//===----------------------------------------------------------------------===//
// Roles and turns
//===----------------------------------------------------------------------===//

LogicalResult WarpLowering::lower(warp::RolesOp op) {
  const int64_t groups = warps / 4;
  // A stage is full when all that copy have, empty when all warps that compute
  // have read it.
  Value first = compare(CmpIPredicate::eq, thread, i32(0));
  auto init = scf::IfOp::create(b, loc, first, /*withElse=*/false);
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPoint(init.thenBlock()->getTerminator());
    for (auto alloc : kernel.getBody().front().getOps<warp::AllocOp>()) {
      const int64_t stages = alloc.getRing().getType().getStages();
      barriers[alloc.getRing()] = sharedBytes;
      for (int64_t i = 0; i < 2 * stages; ++i)
        gpu.initBarrier(offset(shared, sharedBytes + 8 * i), i >= stages ? warps
                                                             : alloc.getTma()
                                                                 ? 1
                                                                 : 128);
      sharedBytes += 16 * stages;
    }
    gpu.fenceBarrierInit();
  }
  gpu.barrier();
  warpgroup = gpu.warpgroup(thread);
  Value copies = compare(CmpIPredicate::eq, warpgroup, i32(groups));
  auto branch = scf::IfOp::create(b, loc, copies, /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPoint(branch.thenBlock()->getTerminator());
  gpu.setRegisters(op.getCopyRegisters(), /*more=*/false);
  copyThread = bitAnd(thread, i32(127));
  copyThreads = 128;
  for (Operation &inner : op.getCopy().front())
    if (failed(lower(&inner)))
      return failure();
  b.setInsertionPoint(branch.elseBlock()->getTerminator());
  gpu.setRegisters(op.getComputeRegisters(), /*more=*/true);
  for (Operation &inner : op.getCompute().front())
    if (failed(lower(&inner)))
      return failure();
  return success();
}

/// Blocks take every n-th of n tiles, but back and forth: the first block of a
/// round is the last one of the next, so that nobody has the longest of every
/// round.
Value WarpLowering::placeInRound(Value round) {
  Value odd = compare(CmpIPredicate::ne, bitAnd(round, i32(1)), i32(0));
  Value block = gpu.blockId(0);
  return select(odd, sub(sub(gpu.blockCount(), i32(1)), block), block);
}

/// The query tile that this block takes in a round. The launch's order: all
/// tiles of some heads, then those of the next heads; of these the last tiles
/// of all come first, as they have most to do.
void WarpLowering::findTile(Value round) {
  Type type = b.getI32Type();
  Value tiles = countQueryTiles(), heads = parameter(FIELD(heads), type);
  Value all = mul(heads, parameter(FIELD(batch), type));
  Value together = parameter(FIELD(heads_together), type);
  Value number = add(mul(round, gpu.blockCount()), placeInRound(round));
  Value firstHead = mul(divide(number, mul(together, tiles)), together);
  Value rank = sub(number, mul(firstHead, tiles));
  Value width = arith::MinUIOp::create(b, loc, together, sub(all, firstHead));
  Value turn = divide(rank, width);
  Value column = add(firstHead, sub(rank, mul(turn, width)));
  tile = sub(sub(tiles, i32(1)), turn);
  batch = divide(column, heads);
  head = sub(column, mul(batch, heads));
}

LogicalResult WarpLowering::lower(warp::ForWorkOp op) {
  Type type = b.getI32Type();
  Value total = mul(mul(countQueryTiles(), parameter(FIELD(heads), type)),
                    parameter(FIELD(batch), type));
  Value blocks = gpu.blockCount();
  Value rounds = divide(total, blocks);
  Value rest = sub(total, mul(rounds, blocks));
  Value oneMore = arith::ExtUIOp::create(
      b, loc, type, compare(CmpIPredicate::ult, placeInRound(rounds), rest));
  auto loop = scf::ForOp::create(b, loc, i32(0), add(rounds, oneMore), i32(1),
                                 ValueRange{i32(0)});
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(loop.getBody());
  Value round = loop.getInductionVar();
  map[op.getWork()] = {round};
  map[op.getFirst()] = {loop.getRegionIterArg(0)};
  auto bind = [&](Value round) {
    findTile(round);
    return bindTile(llvm::to_vector(op.getKernelArguments()));
  };
  if (failed(bind(round)))
    return failure();
  bool stores = false;
  for (Operation &inner : op.getBody().front().without_terminator()) {
    // Where the result goes is found again behind the loops over keys, which
    // have no registers to keep it in.
    if (isa<tile::StoreOp>(inner) && !stores) {
      stores = true;
      if (failed(bind(gpu.pin(round).front())))
        return failure();
    }
    if (failed(lower(&inner)))
      return failure();
  }
  auto next = cast<warp::NextWorkOp>(op.getBody().front().getTerminator());
  scf::YieldOp::create(b, loc, scalar(next.getFirst()));
  return success();
}

// Barrier 1 + w is warpgroup w's turn: it waits there, the one before arrives.
LogicalResult WarpLowering::lower(warp::OrderWaitOp) {
  gpu.namedBarrier(add(warpgroup, i32(1)), 256, /*wait=*/true);
  return success();
}

LogicalResult WarpLowering::lower(warp::OrderPassOp op) {
  const int64_t groups = warps / 4;
  Value isLast = compare(CmpIPredicate::eq, warpgroup, i32(groups - 1));
  if (!op.getStart()) {
    Value next = select(isLast, i32(1), add(warpgroup, i32(2)));
    gpu.namedBarrier(next, 256, /*wait=*/false);
    return success();
  }
  auto branch = scf::IfOp::create(b, loc, isLast, /*withElse=*/false);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPoint(branch.thenBlock()->getTerminator());
  gpu.namedBarrier(i32(1), 256, /*wait=*/false);
  return success();
}

LogicalResult WarpLowering::lower(warp::FullTilesOp op) {
  if (kernel.getSchedule().getIndex() == warp::KeyOrder::Lists) {
    map[op.getBegin()] = {i32(0)};
    map[op.getEnd()] = {index.fullCount};
    map[op.getColumns()] = {index.blockCount};
    return success();
  }
  // Tile i is block `last - i`; blocks from fullLow / size, rounded up, to
  // fullHigh / size are seen whole.
  Value size = i32(indexSize), zero = i32(0);
  Value count = add(index.lastBlock, i32(1));
  Value high = arith::DivUIOp::create(b, loc, index.fullHigh, size);
  Value low = arith::DivUIOp::create(
      b, loc, add(index.fullLow, i32(indexSize - 1)), size);
  Value begin = clamp(sub(count, high), zero, index.count);
  map[op.getBegin()] = {begin};
  map[op.getEnd()] = {clamp(sub(count, low), begin, index.count)};
  map[op.getColumns()] = {index.count};
  return success();
}

//===----------------------------------------------------------------------===//
// Rings
//===----------------------------------------------------------------------===//

Value WarpLowering::stageBarrier(Value ring, Value number, bool empty) {
  const int64_t stages = cast<warp::RingType>(ring.getType()).getStages();
  Value start =
      offset(shared, barriers.lookup(ring) + (empty ? 8 * stages : 0));
  if (stages == 1)
    return start;
  Value stage = arith::RemUIOp::create(b, loc, scalar(number), i32(stages));
  return offset(start, mul(stage, i32(8)));
}

Value WarpLowering::stageParity(Value ring, Value number) {
  const int64_t stages = cast<warp::RingType>(ring.getType()).getStages();
  Value round = arith::DivUIOp::create(b, loc, scalar(number), i32(stages));
  return bitAnd(round, i32(1));
}

void WarpLowering::acquireStage(Value ring, Value number) {
  // The phase before the first one counts as over.
  gpu.waitBarrier(stageBarrier(ring, number, /*empty=*/true),
                  bitXor(stageParity(ring, number), i32(1)));
}

/// Pieces of 128 bytes a row, each one box.
LogicalResult WarpLowering::copyByTMA(warp::CopyOp op) {
  auto acquire = op.getSlot().getDefiningOp<warp::AcquireOp>();
  auto view = dyn_cast<BlockArgument>(op.getView());
  StringRef field;
  if (view) {
    const bool ofWork = isa<warp::ForWorkOp>(view.getOwner()->getParentOp());
    if (auto attr = kernel.getArgAttrOfType<StringAttr>(
            view.getArgNumber() - (ofWork ? 2 : 0), tile::kFieldAttr))
      field = attr;
  }
  int64_t at;
  if (field == "q")
    at = offsetof(prefill_cuda_tensor_maps, q);
  else if (field == "k")
    at = offsetof(prefill_cuda_tensor_maps, k);
  else if (field == "v")
    at = offsetof(prefill_cuda_tensor_maps, v);
  else
    return op.emitOpError("by TMA is of q, k or v only");
  warp::SmemType slot = op.getSlot().getType();
  Value barrier =
      stageBarrier(acquire.getRing(), acquire.getNumber(), /*empty=*/false);
  gpu.arriveExpecting(barrier, slot.getBytes());
  Value row = op.getKeys() ? lanes(op.getKeys())[0] : row0;
  for (int64_t piece = 0; piece * 64 < slot.getCols(); ++piece)
    gpu.copyBox(offset(scalar(op.getSlot()), piece * slot.getRows() * 128),
                offset(tensorMaps, at),
                {i32(piece * 64), row, field == "q" ? head : kvHead, batch},
                barrier);
  return success();
}

void WarpLowering::commitStage(Value ring, Value number) {
  // TMA's bytes say it.
  if (ring.getDefiningOp<warp::AllocOp>().getTma())
    return;
  gpu.arriveAfterCopies(stageBarrier(ring, number, /*empty=*/false));
}

void WarpLowering::waitForStage(Value ring, Value number) {
  gpu.waitBarrier(stageBarrier(ring, number, /*empty=*/false),
                  stageParity(ring, number));
  // cp.async writes in the ordinary way, wgmma and TMA asynchronously.
  if (!ring.getDefiningOp<warp::AllocOp>().getTma())
    gpu.fenceAsync();
}

void WarpLowering::releaseStage(Value ring, Value number) {
  Value barrier = stageBarrier(ring, number, /*empty=*/true);
  Value arrives = compare(CmpIPredicate::eq, lane, i32(0));
  auto branch = scf::IfOp::create(b, loc, arrives, /*withElse=*/false);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPoint(branch.thenBlock()->getTerminator());
  gpu.arrive(barrier);
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

Value WarpLowering::descriptor(Value address, int64_t leadingBytes) {
  // Bits 0-13 the address, 16-29 and 32-45 the leading and the stride offset,
  // all in 16 bytes; 62-63: swizzle of 128 bytes. Groups of 8 rows lie 1024
  // bytes apart.
  Value low = bitAnd(shiftRight(address, 4), i32(0x3fff));
  const uint64_t high = uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 |
                        uint64_t(leadingBytes >> 4) << 16;
  return arith::OrIOp::create(b, loc, wide(low), i64(int64_t(high)));
}

LogicalResult WarpLowering::lower(warp::MmaIssueOp op) {
  RankedTensorType type = op.getResult().getType().getTile();
  warp::SmemType right = op.getB().getType();
  const bool transpose = op.getTransposeB();
  const int64_t steps = (transpose ? right.getCols() : right.getRows()) / 16;
  if (groups(type.getDimSize(0)) != 1)
    return op.emitOpError("has ") << type.getDimSize(0) << " rows for " << warps
                                  << " warps; a warpgroup multiplies 64";
  auto addressOf = [&](Value slot) {
    return LLVM::PtrToIntOp::create(b, loc, b.getI32Type(), scalar(slot));
  };
  const int64_t pieceB = right.getRows() * 128;
  Value startB = descriptor(addressOf(op.getB()), transpose ? 16 : pieceB);
  SmallVector<Value> sums;
  if (op.getAcc())
    sums = gpu.pin(lanes(op.getAcc()));
  Value startA;
  SmallVector<Value> registers;
  int64_t pieceA = 0;
  if (auto left = dyn_cast<warp::SmemType>(op.getA().getType())) {
    pieceA = left.getRows() * 128;
    Value rows = mul(warpgroup, i32(64 * 128));
    startA = descriptor(add(addressOf(op.getA()), rows), 16);
  } else {
    registers = gpu.pin(lanes(op.getA()));
  }
  gpu.fenceProducts();
  for (int64_t step = 0; step < steps; ++step) {
    // 16 elements are 32 bytes of a row's piece, or 16 rows.
    const int64_t inPiece = step / 4, rest = step % 4 * 32;
    const int64_t bytesB = transpose ? inPiece * pieceB + rest : step * 2048;
    Value b1 = add(startB, i64(bytesB >> 4));
    SmallVector<Value> a;
    if (startA)
      a.push_back(add(startA, i64((inPiece * pieceA + rest) >> 4)));
    else
      for (int64_t j = 0; j < 2; ++j)
        for (int64_t r = 0; r < 2; ++r)
          a.push_back(registers[(2 * step + j) * 2 + r]);
    sums = gpu.multiplyWarpgroup(a, b1, sums, type.getDimSize(1),
                                 right.getElementType(), !transpose);
  }
  gpu.commitProducts();
  map[op.getResult()] = Lanes(ArrayRef<Value>(sums));
  return success();
}

LogicalResult WarpLowering::lower(warp::MmaWaitOp op) {
  SmallVector<Value> values =
      gpu.waitForProducts(op.getNewer(), lanes(op.getPending()));
  map[op.getResult()] = Lanes(ArrayRef<Value>(values));
  return success();
}
