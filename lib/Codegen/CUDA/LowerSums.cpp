//===- LowerSums.cpp - Sums of the last query rows ------------------------===//
//
// Launches of the two kernels with a prefill_cuda_index: a thread block has the
// last rows of a head and a chunk of keys.
//
//===----------------------------------------------------------------------===//

#include "WarpLowering.h"
#include "prefill/cuda_index.h"
#include <cstddef>

using namespace mlir;
using namespace prefill;
using arith::CmpIPredicate;

#define FIELD(name) int64_t(offsetof(prefill_cuda_index, name))

LogicalResult WarpLowering::bindSums() {
  Type i32Type = b.getI32Type(), i64Type = b.getI64Type();
  auto narrowField = [&](int64_t field) { return parameter(field, i32Type); };
  auto wideField = [&](int64_t field) { return parameter(field, i64Type); };
  Value chunk = gpu.blockId(0);
  head = gpu.blockId(1);
  batch = gpu.blockId(2);
  kvHead = arith::DivUIOp::create(b, loc, head, narrowField(FIELD(group)));
  Value number = add(mul(batch, narrowField(FIELD(heads))), head);

  kvLength = perBatch(FIELD(kv_lengths), FIELD(kv_len), i32Type, 4);
  Value start = perBatch(FIELD(positions), FIELD(position), i64Type, 8);

  // The last rows, those past the last visible key left out: as sums_rows in
  // runtime/cuda/device.h.
  Value zero = i64(0);
  Value lastKey = load(offset(parameter(FIELD(facts), globalPointer()),
                              add(mul(wide(batch), i64(16)), i64(4))),
                       i32Type);
  Value end =
      clamp(sub(wide(lastKey), start), zero, wide(narrowField(FIELD(q_len))));
  Value plan = offset(parameter(FIELD(plans), globalPointer()),
                      mul(wide(head), i64(sizeof(prefill_head_plan))));
  Value pattern =
      load(offset(plan, offsetof(prefill_head_plan, pattern)), i32Type);
  Value last = load(offset(plan, offsetof(prefill_head_plan, last)), i32Type);
  Value open = compare(CmpIPredicate::sle, last, i32(0));
  last = clamp(last, i32(1), i32(PREFILL_CUDA_SUMS_ROWS));
  // Heads of other patterns have nothing to do.
  auto lastOf = [&](prefill_pattern wanted, Value rows, Value otherwise) {
    return select(compare(CmpIPredicate::eq, pattern, i32(wanted)), rows,
                  otherwise);
  };
  last =
      lastOf(PREFILL_PATTERN_VERTICAL_SLASH, last,
             lastOf(PREFILL_PATTERN_FLEXPREFILL,
                    select(open, i32(PREFILL_CUDA_SUMS_ROWS), last), i32(0)));
  Value begin = clamp(sub(end, wide(last)), zero, end);
  rows = narrow(sub(end, begin));
  row0 = narrow(begin);
  position = add(start, begin);

  auto view = [&](Value arg, int64_t pointer, Value elements, int64_t size,
                  Value stride, Value count) {
    map[arg] = {
        offset(parameter(pointer, globalPointer()), mul(elements, i64(size))),
        stride, count};
  };
  auto at = [&](Value factor, int64_t field) {
    return mul(wide(factor), wideField(field));
  };
  for (auto [place, arg] : llvm::enumerate(kernel.getBody().getArguments())) {
    StringRef field =
        kernel.getArgAttrOfType<StringAttr>(place, tile::kFieldAttr);
    if (auto type = dyn_cast<tile::KeyIndexType>(arg.getType())) {
      indexSize = type.getSize();
      map[arg] = {};
    } else if (field == "q") {
      view(arg, FIELD(q),
           add(add(at(batch, FIELD(q_batch)), at(head, FIELD(q_head))),
               at(row0, FIELD(q_row))),
           2, wideField(FIELD(q_row)), rows);
    } else if (field == "k") {
      view(arg, FIELD(k),
           add(at(batch, FIELD(k_batch)), at(kvHead, FIELD(k_head))), 2,
           wideField(FIELD(k_row)), kvLength);
    } else if (field == "key_mask") {
      hasKeyMask = true;
      view(arg, FIELD(key_mask), at(batch, FIELD(key_mask_batch)), 1, i64(1),
           kvLength);
    } else if (field == "row_most" || field == "row_sum") {
      Value line = add(mul(number, narrowField(FIELD(sums_chunks))), chunk);
      view(arg, field == "row_most" ? FIELD(row_most) : FIELD(row_sum),
           mul(wide(line), i64(PREFILL_CUDA_SUMS_ROWS)), 4, i64(1), rows);
    } else if (field == "most" || field == "inverse") {
      view(arg, field == "most" ? FIELD(most) : FIELD(inverse),
           mul(wide(number), i64(PREFILL_CUDA_SUMS_ROWS)), 4, i64(1), rows);
    } else if (field == "column") {
      view(arg, FIELD(column),
           mul(wide(number), wide(narrowField(FIELD(kv_len)))), 4, i64(1),
           kvLength);
    } else if (field == "diagonal") {
      Value tiles = narrowField(FIELD(sums_tiles));
      view(arg, FIELD(diagonal),
           mul(mul(wide(number), wide(tiles)), i64(2 * PREFILL_CUDA_SUMS_ROWS)),
           4, i64(2 * PREFILL_CUDA_SUMS_ROWS), tiles);
    } else if (field == "position") {
      map[arg] = {position};
    } else if (field == "window_left") {
      windowLeft = wideField(FIELD(window_left));
      map[arg] = {windowLeft};
    } else if (field == "window_right") {
      windowRight = zero; // causal
      map[arg] = {windowRight};
    } else if (field == "scale" || field == "softcap") {
      map[arg] = {parameter(field == "scale" ? FIELD(scale) : FIELD(softcap),
                            b.getF32Type())};
    } else {
      return kernel.emitOpError("reads '")
             << field << "', which launches of sums do not have";
    }
  }

  // Blocks of the chunk up to the last row's, last first. Nothing is left out
  // below a window, so that all sums before the last row are written.
  Value length = wide(kvLength);
  Value high = narrow(clamp(add(position, wide(rows)), zero, length));
  Value none = compare(CmpIPredicate::eq, rows, i32(0));
  Value blockHigh =
      select(none, i32(0),
             arith::DivUIOp::create(b, loc, add(high, i32(indexSize - 1)),
                                    i32(indexSize)));
  Value first = mul(chunk, i32(PREFILL_CUDA_SUMS_CHUNK));
  Value past = arith::MinSIOp::create(
      b, loc, add(first, i32(PREFILL_CUDA_SUMS_CHUNK)), blockHigh);
  index.count = arith::MaxSIOp::create(b, loc, sub(past, first), i32(0));
  index.lastBlock = sub(past, i32(1));
  index.fullLow = i32(0);
  index.fullHigh = narrow(clamp(add(position, i64(1)), zero, length));
  if (windowLeft)
    index.fullLow = narrow(clamp(
        add(sub(position, windowLeft), sub(wide(rows), i64(1))), zero, length));
  if (hasKeyMask)
    index.fullHigh = i32(0);
  return success();
}

LogicalResult WarpLowering::lower(tile::StoreSumsOp op) {
  auto type = cast<RankedTensorType>(op.getValue().getType());
  const int64_t height = type.getDimSize(0), width = type.getDimSize(1);
  const int64_t diagonals = height + width - 1;
  if (diagonals > 32 * warps)
    return op.emitOpError("has ")
           << diagonals << " diagonals for " << 32 * warps << " threads";
  // One element more than a row has: threads beside each other read different
  // banks, down a column as down a diagonal.
  const int64_t pitch = width + 1;
  Value scratch = offset(shared, sharedBytes);
  sharedBytes += llvm::alignTo(height * pitch * 4, 16);
  const Lanes &values = lanes(op.getValue());
  const int64_t count = groups(height), columns = width / 8;
  Value row0OfWarp = add(mul(warpId, i32(16 * count)), group);
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < 2; ++r) {
      Value row = add(row0OfWarp, i32(16 * m + 8 * r));
      Value start = offset(
          scratch, mul(add(mul(row, i32(pitch)), mul(quad, i32(2))), i32(4)));
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t e = 0; e < 2; ++e)
          LLVM::StoreOp::create(b, loc,
                                values[((m * columns + j) * 2 + r) * 2 + e],
                                offset(start, (8 * j + e) * 4));
    }
  gpu.barrier();
  /// Sum of elements first + r * step for r in [from, to).
  auto sum = [&](Value first, int64_t step, Value from, Value to) {
    auto loop =
        scf::ForOp::create(b, loc, from, to, i32(1), ValueRange{f32(0)});
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    Value at = add(first, mul(loop.getInductionVar(), i32(step)));
    Value part = load(offset(scratch, mul(at, i32(4))), b.getF32Type());
    Value total =
        arith::AddFOp::create(b, loc, loop.getRegionIterArgs()[0], part);
    scf::YieldOp::create(b, loc, total);
    return loop.getResult(0);
  };
  auto when = [&](Value condition, llvm::function_ref<void()> body) {
    auto branch = scf::IfOp::create(b, loc, condition, /*withElse=*/false);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPoint(branch.thenBlock()->getTerminator());
    body();
  };
  Value base = lanes(op.getKeys())[0];
  const Lanes columnView = lanes(op.getColumns()),
              diagonalView = lanes(op.getDiagonals());
  Value key = add(base, thread);
  Value hasColumn = bitAnd(compare(CmpIPredicate::ult, thread, i32(width)),
                           compare(CmpIPredicate::ult, key, columnView[2]));
  when(hasColumn, [&] {
    LLVM::StoreOp::create(b, loc, sum(thread, pitch, i32(0), i32(height)),
                          offset(columnView[0], mul(wide(key), i64(4))));
  });
  // Thread u has the elements of row r and column r - u + width - 1.
  Value block = arith::DivUIOp::create(b, loc, base, i32(width));
  Value hasDiagonal =
      bitAnd(compare(CmpIPredicate::ult, thread, i32(diagonals)),
             compare(CmpIPredicate::ult, block, diagonalView[2]));
  when(hasDiagonal, [&] {
    Value from =
        arith::MaxSIOp::create(b, loc, sub(thread, i32(width - 1)), i32(0));
    Value to = arith::MinSIOp::create(b, loc, add(thread, i32(1)), i32(height));
    Value total = sum(sub(i32(width - 1), thread), pitch + 1, from, to);
    Value line = mul(wide(block), diagonalView[1]);
    LLVM::StoreOp::create(
        b, loc, total,
        offset(diagonalView[0], mul(add(line, wide(thread)), i64(4))));
  });
  // The next tile's wait is a barrier: nobody writes here before all have read.
  return success();
}
