//===- LowerMemory.cpp - Arguments, the index, copies, stores -------------===//

#include "WarpLowering.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "prefill/Codegen/KernelSpec.h"
#include "prefill/cuda_abi.h"
#include <cstddef>

using namespace mlir;
using namespace prefill;
using arith::CmpIPredicate;

//===----------------------------------------------------------------------===//
// Arguments
//===----------------------------------------------------------------------===//

#define FIELD(name) int64_t(offsetof(prefill_cuda_attention, name))

Value WarpLowering::countQueryTiles() {
  Value qLength = parameter(FIELD(q_len), b.getI32Type());
  return divide(add(qLength, i32(blockQ - 1)), i32(blockQ));
}

LogicalResult WarpLowering::bindArguments() {
  // warp.for_work does.
  if (kernel.walk([](warp::ForWorkOp) { return WalkResult::interrupt(); })
          .wasInterrupted())
    return success();
  // The last tiles of a causal prompt have most to do: they start first.
  tile = sub(sub(countQueryTiles(), i32(1)), gpu.blockId(0));
  head = gpu.blockId(1);
  batch = gpu.blockId(2);
  return bindTile(kernel.getBody().getArguments());
}

LogicalResult WarpLowering::bindTile(ArrayRef<BlockArgument> args) {
  Type i32Type = b.getI32Type(), i64Type = b.getI64Type();
  Value qLength = parameter(FIELD(q_len), i32Type);
  kvHead =
      arith::DivUIOp::create(b, loc, head, parameter(FIELD(group), i32Type));
  row0 = mul(tile, i32(blockQ));
  rows = arith::MinSIOp::create(b, loc, sub(qLength, row0), i32(blockQ));

  // Lengths lie on the device, where no host can check them.
  kvLength = perBatch(FIELD(kv_lengths), FIELD(kv_len), i32Type, 4);
  kvLength = arith::MinSIOp::create(b, loc, kvLength,
                                    parameter(FIELD(kv_len), i32Type));
  kvLength = arith::MaxSIOp::create(b, loc, kvLength, i32(0));
  position =
      add(perBatch(FIELD(positions), FIELD(position), i64Type, 8), wide(row0));
  tile::KeyIndexType indexType;
  for (auto [number, arg] : llvm::enumerate(args)) {
    auto field = kernel.getArgAttrOfType<StringAttr>(number, tile::kFieldAttr);
    hasKeyMask |= field == "key_mask";
    if (isa<tile::KeyIndexType>(arg.getType())) {
      indexType = cast<tile::KeyIndexType>(arg.getType());
      map[arg] = {};
      continue;
    }
    if (failed(bindArgument(arg, field)))
      return failure();
  }
  if (indexType) {
    indexSize = indexType.getSize();
    bindIndex();
  }
  return success();
}

LogicalResult WarpLowering::bindArgument(BlockArgument arg, StringRef field) {
  Type i64Type = b.getI64Type(), f32Type = b.getF32Type();
  auto product = [&](Value number, int64_t stride) {
    return mul(wide(number), parameter(stride, i64Type));
  };
  auto view = [&](int64_t pointer, Value elements, int64_t size, Value stride,
                  Value count) {
    Value start =
        offset(parameter(pointer, globalPointer()), mul(elements, i64(size)));
    map[arg] = {start, stride, count};
    return success();
  };
  if (field == "q")
    return view(
        FIELD(q),
        add(add(product(batch, FIELD(q_batch)), product(head, FIELD(q_head))),
            product(row0, FIELD(q_row))),
        2, parameter(FIELD(q_row), i64Type), rows);
  if (field == "o")
    return view(
        FIELD(o),
        add(add(product(batch, FIELD(o_batch)), product(head, FIELD(o_head))),
            product(row0, FIELD(o_row))),
        2, parameter(FIELD(o_row), i64Type), rows);
  if (field == "k")
    return view(
        FIELD(k),
        add(product(batch, FIELD(k_batch)), product(kvHead, FIELD(k_head))), 2,
        parameter(FIELD(k_row), i64Type), kvLength);
  if (field == "v")
    return view(
        FIELD(v),
        add(product(batch, FIELD(v_batch)), product(kvHead, FIELD(v_head))), 2,
        parameter(FIELD(v_row), i64Type), kvLength);
  if (field == "key_mask")
    return view(FIELD(key_mask), product(batch, FIELD(key_mask_batch)), 1,
                i64(1), kvLength);
  if (field == "lse") {
    // Absent: no rows.
    Value start = parameter(FIELD(lse), globalPointer());
    Value null = LLVM::ZeroOp::create(b, loc, globalPointer());
    Value given =
        LLVM::ICmpOp::create(b, loc, LLVM::ICmpPredicate::ne, start, null);
    Value elements = add(
        add(product(batch, FIELD(lse_batch)), product(head, FIELD(lse_head))),
        wide(row0));
    map[arg] = {offset(start, mul(elements, i64(4))), i64(1),
                select(given, rows, i32(0))};
    return success();
  }
  if (field == "sink") {
    Value sinks = parameter(FIELD(sink), globalPointer());
    map[arg] = {load(offset(sinks, mul(wide(head), i64(4))), f32Type)};
    return success();
  }
  if (field == "position") {
    map[arg] = {position};
    return success();
  }
  if (field == "window_left" || field == "window_right") {
    bool left = field == "window_left";
    Value value =
        parameter(left ? FIELD(window_left) : FIELD(window_right), i64Type);
    (left ? windowLeft : windowRight) = value;
    map[arg] = {value};
    return success();
  }
  if (field == "scale" || field == "softcap") {
    map[arg] = {
        parameter(field == "scale" ? FIELD(scale) : FIELD(softcap), f32Type)};
    return success();
  }
  return kernel.emitOpError("reads '")
         << field << "', which CUDA launches do not have";
}

//===----------------------------------------------------------------------===//
// The index
//===----------------------------------------------------------------------===//

Value WarpLowering::perBatch(int64_t array, int64_t field, Type type,
                             int64_t size) {
  Value pointer = parameter(array, globalPointer());
  Value null = LLVM::ZeroOp::create(b, loc, globalPointer());
  Value given =
      LLVM::ICmpOp::create(b, loc, LLVM::ICmpPredicate::ne, pointer, null);
  auto branch = scf::IfOp::create(b, loc, type, given, /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.thenBlock());
  Value entry = load(offset(pointer, mul(wide(batch), i64(size))), type);
  scf::YieldOp::create(b, loc, entry);
  b.setInsertionPointToStart(branch.elseBlock());
  scf::YieldOp::create(b, loc, parameter(field, type));
  return branch.getResult(0);
}

void WarpLowering::bindIndex() {
  Type i32Type = b.getI32Type();
  if (kernel.getSchedule().getIndex() == warp::KeyOrder::Lists) {
    Value entry = parameter(FIELD(block_rows), i32Type);
    Value heads = parameter(FIELD(heads), i32Type);
    entry = add(mul(add(mul(batch, heads), head), entry), tile);
    auto at = [&](int64_t array, Value number) {
      return load(
          offset(parameter(array, globalPointer()), mul(wide(number), i64(4))),
          i32Type);
    };
    auto from = [&](int64_t array, Value number) {
      return offset(parameter(array, globalPointer()),
                    mul(wide(number), i64(4)));
    };
    Value next = add(entry, i32(1));
    Value begin = at(FIELD(block_begin), entry);
    index.blockCount = sub(at(FIELD(block_begin), next), begin);
    index.fullCount = at(FIELD(full_count), entry);
    index.blocks = from(FIELD(block_ids), begin);
    Value columns = at(FIELD(col_begin), entry);
    Value columnCount = sub(at(FIELD(col_begin), next), columns);
    index.positions = from(FIELD(col_pos), columns);
    index.count =
        add(index.blockCount,
            arith::DivUIOp::create(b, loc, columnCount, i32(indexSize)));
    return;
  }
  // All blocks that any row may see, last first. Rows of the tile see keys from
  // position + row - left to position + row + right.
  Value length = wide(kvLength), zero = i64(0);
  Value high = kvLength, low = i32(0);
  index.fullHigh = kvLength;
  index.fullLow = i32(0);
  if (windowRight) {
    Value past = add(add(position, windowRight), i64(1)); // of row 0
    index.fullHigh = narrow(clamp(past, zero, length));
    Value last = add(past, sub(wide(rows), i64(1)));
    high = narrow(clamp(last, zero, length));
  }
  if (windowLeft) {
    Value first = sub(position, windowLeft); // of row 0
    low = narrow(clamp(first, zero, length));
    Value last = add(first, sub(wide(rows), i64(1)));
    index.fullLow = narrow(clamp(last, zero, length));
  }
  if (hasKeyMask) // which may hide any key
    index.fullHigh = i32(0);
  Value blockHigh = arith::DivUIOp::create(
      b, loc, add(high, i32(indexSize - 1)), i32(indexSize));
  Value blockLow = arith::DivUIOp::create(b, loc, low, i32(indexSize));
  index.count =
      arith::MaxSIOp::create(b, loc, sub(blockHigh, blockLow), i32(0));
  index.lastBlock = sub(blockHigh, i32(1));
}

LogicalResult WarpLowering::lower(warp::KeysOp op) {
  Value number = scalar(op.getNumber());
  if (kernel.getSchedule().getIndex() != warp::KeyOrder::Lists) {
    Value base = mul(sub(index.lastBlock, number), i32(indexSize));
    Value masked = bitOr(
        compare(CmpIPredicate::sgt, add(base, i32(indexSize)), index.fullHigh),
        compare(CmpIPredicate::slt, base, index.fullLow));
    map[op.getResult()] = {base, op.getMasked() ? i1(true) : masked, i1(false)};
    return success();
  }
  auto loadBlock = [&] {
    Value block =
        load(offset(index.blocks, mul(wide(number), i64(4))), b.getI32Type());
    return mul(block, i32(indexSize));
  };
  auto firstColumn = [&] {
    return mul(sub(number, index.blockCount), i32(indexSize));
  };
  /// One of two i32, of which only one is computed.
  auto either = [&](Value condition, llvm::function_ref<Value()> yes,
                    llvm::function_ref<Value()> no) {
    auto branch = scf::IfOp::create(b, loc, b.getI32Type(), condition,
                                    /*withElse=*/true);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(branch.thenBlock());
    scf::YieldOp::create(b, loc, yes());
    b.setInsertionPointToStart(branch.elseBlock());
    scf::YieldOp::create(b, loc, no());
    return branch.getResult(0);
  };
  Value masked = op.getMasked()
                     ? i1(true)
                     : compare(CmpIPredicate::sge, number, index.fullCount);
  if (op.getPart() == warp::KeyPart::Block) {
    map[op.getResult()] = {loadBlock(), masked, i1(false)};
    return success();
  }
  if (op.getPart() == warp::KeyPart::Columns) {
    map[op.getResult()] = {firstColumn(), masked, i1(true)};
    return success();
  }
  Value isColumns = compare(CmpIPredicate::sge, number, index.blockCount);
  // With roles an empty index has one tile all the same, past every key.
  if (roles)
    isColumns =
        bitAnd(isColumns, compare(CmpIPredicate::slt, number, index.count));
  Value base = either(isColumns, firstColumn, [&]() -> Value {
    if (!roles)
      return loadBlock();
    return either(compare(CmpIPredicate::slt, number, index.blockCount),
                  loadBlock, [&] { return i32(1 << 30); });
  });
  map[op.getResult()] = {base, masked, isColumns};
  return success();
}

SmallVector<Value> WarpLowering::keyNumbers(Value keys,
                                            ArrayRef<Value> tileRows) {
  Value base = lanes(keys)[0], isColumns = lanes(keys)[2];
  auto inBlock = [&] {
    SmallVector<Value> numbers;
    for (Value row : tileRows)
      numbers.push_back(add(base, row));
    return numbers;
  };
  auto inList = [&] {
    SmallVector<Value> numbers;
    for (Value row : tileRows)
      numbers.push_back(
          load(offset(index.positions, mul(wide(add(base, row)), i64(4))),
               b.getI32Type()));
    return numbers;
  };
  if (kernel.getSchedule().getIndex() != warp::KeyOrder::Lists)
    return inBlock();
  if (std::optional<int64_t> known = getConstantIntValue(isColumns))
    return *known ? inList() : inBlock();
  SmallVector<Type> types(tileRows.size(), b.getI32Type());
  auto branch = scf::IfOp::create(b, loc, types, isColumns, /*withElse=*/true);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(branch.thenBlock());
  scf::YieldOp::create(b, loc, inList());
  b.setInsertionPointToStart(branch.elseBlock());
  scf::YieldOp::create(b, loc, inBlock());
  return SmallVector<Value>(branch.getResults());
}

//===----------------------------------------------------------------------===//
// Shared memory
//===----------------------------------------------------------------------===//

LogicalResult WarpLowering::lower(warp::AllocOp op) {
  rings[op.getRing()] = sharedBytes;
  // The swizzle repeats every 1024 bytes, of which rows are a multiple.
  sharedBytes += llvm::alignTo(op.getRing().getType().getBytes(), 1024);
  return success();
}

Value WarpLowering::slotAddress(Value ring, Value number) {
  auto type = cast<warp::RingType>(ring.getType());
  Value start = offset(shared, rings.lookup(ring));
  if (type.getStages() == 1)
    return start;
  Value stage =
      arith::RemUIOp::create(b, loc, scalar(number), i32(type.getStages()));
  int64_t bytes = type.getSlot(warp::SlotState::Empty).getBytes();
  return offset(start, mul(stage, i32(bytes)));
}

LogicalResult WarpLowering::lower(warp::CopyOp op) {
  auto acquire = op.getSlot().getDefiningOp<warp::AcquireOp>();
  if (acquire.getRing().getDefiningOp<warp::AllocOp>().getTma())
    return copyByTMA(op);
  warp::SmemType slot = op.getSlot().getType();
  const Lanes &view = lanes(op.getView());
  const int64_t perPass = copyThreads / 8;
  // Eight threads copy the 128 bytes of a row's piece.
  Value chunk = bitAnd(copyThread, i32(7)), first = shiftRight(copyThread, 3);
  Value bytesPerRow = mul(view[1], i64(2));
  const int64_t pieces = (slot.getCols() + 63) / 64;
  const int64_t lastChunks = (slot.getCols() % 64) / 8;
  const int64_t passes = (slot.getRows() + perPass - 1) / perPass;
  SmallVector<Value> numbers;
  for (int64_t pass = 0; pass < passes; ++pass)
    numbers.push_back(add(first, i32(pass * perPass)));
  SmallVector<Value> slotRows = numbers;
  if (op.getKeys()) {
    // Columns past the tile's end are not there to be read.
    SmallVector<Value> bounded = numbers;
    if (slot.getRows() % perPass)
      bounded.back() = arith::MinUIOp::create(b, loc, bounded.back(),
                                              i32(slot.getRows() - 1));
    numbers = keyNumbers(op.getKeys(), bounded);
  }
  for (int64_t pass = 0; pass < passes; ++pass) {
    OpBuilder::InsertionGuard guard(b);
    if ((pass + 1) * perPass > slot.getRows()) {
      Value inside =
          compare(CmpIPredicate::ult, slotRows[pass], i32(slot.getRows()));
      auto branch = scf::IfOp::create(b, loc, inside, /*withElse=*/false);
      b.setInsertionPoint(branch.thenBlock()->getTerminator());
    }
    Value exists = compare(CmpIPredicate::ult, numbers[pass], view[2]);
    Value row = select(exists, numbers[pass], i32(0));
    // Often the same in all passes, which LLVM finds out.
    Value swizzled =
        mul(bitXor(chunk, bitAnd(slotRows[pass], i32(7))), i32(16));
    Value target =
        offset(scalar(op.getSlot()), add(mul(first, i32(128)), swizzled));
    Value source = offset(
        view[0], add(mul(wide(row), bytesPerRow), mul(wide(chunk), i64(16))));
    Value bytes = select(exists, i32(16), i32(0));
    for (int64_t piece = 0; piece < pieces; ++piece) {
      Value from = offset(source, piece * 128), size = bytes;
      if (lastChunks && piece + 1 == pieces) {
        // Past the row's end nothing is read and zeros are written.
        Value used = compare(CmpIPredicate::ult, chunk, i32(lastChunks));
        from = select(used, from, source);
        size = select(used, bytes, i32(0));
      }
      gpu.copyAsync(
          offset(target, piece * slot.getRows() * 128 + pass * perPass * 128),
          from, size);
    }
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Global memory
//===----------------------------------------------------------------------===//

LogicalResult WarpLowering::lower(tile::LoadOp op) {
  // One number a column, at the tile's keys, or one a row.
  auto type = cast<RankedTensorType>(op.getType());
  if (type.getRank() != 1)
    return op.emitOpError("of ") << type << " is not supported on GPUs";
  const Lanes &view = lanes(op.getView());
  SmallVector<Value> numbers;
  if (op.getKeys()) {
    SmallVector<Value> tileRows;
    for (int64_t j = 0; j < type.getDimSize(0) / 8; ++j)
      for (int64_t e = 0; e < 2; ++e)
        tileRows.push_back(add(mul(quad, i32(2)), i32(8 * j + e)));
    numbers = keyNumbers(op.getKeys(), tileRows);
  } else {
    const int64_t count = groups(type.getDimSize(0));
    for (int64_t m = 0; m < count; ++m)
      for (int64_t r = 0; r < 2; ++r)
        numbers.push_back(
            add(add(mul(warpId, i32(16 * count)), group), i32(16 * m + 8 * r)));
  }
  Type element = type.getElementType();
  const int64_t bytes = element.getIntOrFloatBitWidth() / 8;
  Lanes result;
  for (Value number : numbers) {
    Value exists = compare(CmpIPredicate::ult, number, view[2]);
    auto branch = scf::IfOp::create(b, loc, element, exists, /*withElse=*/true);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(branch.thenBlock());
    scf::YieldOp::create(
        b, loc, load(offset(view[0], mul(wide(number), i64(bytes))), element));
    b.setInsertionPointToStart(branch.elseBlock());
    Value none = arith::ConstantOp::create(b, loc, b.getZeroAttr(element));
    scf::YieldOp::create(b, loc, none);
    result.push_back(branch.getResult(0));
  }
  map[op.getResult()] = result;
  return success();
}

LogicalResult WarpLowering::lower(tile::StoreOp op) {
  auto type = cast<RankedTensorType>(op.getValue().getType());
  const Lanes &view = lanes(op.getView());
  const Lanes &values = lanes(op.getValue());
  std::optional<warp::FragKind> kind = warp::getFragKind(type);
  const int64_t width = type.getElementTypeBitWidth();
  if (op.getKeys() || kind == warp::FragKind::Col ||
      (kind == warp::FragKind::Acc && width != 16))
    return op.emitOpError("of ") << type << " is not supported on GPUs";
  const int64_t count = groups(type.getDimSize(0));
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < 2; ++r) {
      Value row =
          add(add(mul(warpId, i32(16 * count)), group), i32(16 * m + 8 * r));
      Value stores = compare(CmpIPredicate::slt, row, view[2]);
      // All lanes of a row hold its number; one writes it.
      if (kind == warp::FragKind::Row)
        stores = bitAnd(stores, compare(CmpIPredicate::eq, quad, i32(0)));
      auto branch = scf::IfOp::create(b, loc, stores, /*withElse=*/false);
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPoint(branch.thenBlock()->getTerminator());
      Value start =
          offset(view[0], mul(mul(wide(row), view[1]), i64(width / 8)));
      if (kind == warp::FragKind::Row) {
        LLVM::StoreOp::create(b, loc, values[2 * m + r], start);
        continue;
      }
      start = offset(start, mul(quad, i32(4)));
      const int64_t columns = type.getDimSize(1) / 8;
      for (int64_t j = 0; j < columns; ++j)
        LLVM::StoreOp::create(b, loc, values[(m * columns + j) * 2 + r],
                              offset(start, 16 * j));
    }
  return success();
}
