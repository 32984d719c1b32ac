//===- FragmentKinds.cpp - How tiles lie in registers ---------------------===//

#include "FragmentKinds.h"
#include "mlir/Dialect/Arith/IR/Arith.h"

using namespace mlir;
using namespace prefill;
using warp::FragKind;

static bool isOneDimensional(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type && type.getRank() == 1;
}

FragmentKinds::FragmentKinds(tile::KernelOp kernel) {
  bool changed = true;
  auto set = [&](Value value, FragKind kind) {
    if (isOneDimensional(value) && kinds.try_emplace(value, kind).second)
      changed = true;
  };
  auto unify = [&](ArrayRef<Value> values) {
    for (Value value : values)
      if (auto it = kinds.find(value); it != kinds.end()) {
        FragKind kind = it->second;
        for (Value other : values)
          set(other, kind);
        return;
      }
  };
  while (changed) {
    changed = false;
    kernel.walk([&](Operation *op) {
      if (auto reduce = dyn_cast<tile::ReduceRowOp>(op))
        return set(reduce.getResult(), FragKind::Row);
      if (auto rows = dyn_cast<tile::RowsOp>(op))
        return set(rows.getResult(), FragKind::Row);
      if (auto positions = dyn_cast<tile::PositionsOp>(op))
        return set(positions.getResult(), FragKind::Col);
      if (auto load = dyn_cast<tile::LoadOp>(op))
        return set(load.getResult(),
                   load.getKeys() ? FragKind::Col : FragKind::Row);
      if (auto store = dyn_cast<tile::StoreOp>(op))
        return set(store.getValue(),
                   store.getKeys() ? FragKind::Col : FragKind::Row);
      if (auto broadcast = dyn_cast<tile::BroadcastOp>(op)) {
        if (isOneDimensional(broadcast.getSource()))
          set(broadcast.getSource(),
              broadcast.getDims()[0] == 0 ? FragKind::Row : FragKind::Col);
        return;
      }
      if (auto loop = dyn_cast<tile::ForTilesOp>(op)) {
        for (auto [init, arg, value, result] :
             llvm::zip(loop.getInits(), loop.getIterArgs(),
                       loop.getYield()->getOperands(), loop.getResults()))
          unify({init, arg, value, result});
        return;
      }
      if (op->hasTrait<OpTrait::Elementwise>()) {
        SmallVector<Value> values(op->getResults());
        for (Value operand : op->getOperands())
          if (isOneDimensional(operand))
            values.push_back(operand);
        unify(values);
      }
    });
  }
}

Type FragmentKinds::convert(Value value) const {
  auto tile = dyn_cast<RankedTensorType>(value.getType());
  if (!tile)
    return value.getType();
  FragKind kind = FragKind::Acc;
  if (tile.getRank() == 1) {
    auto it = kinds.find(value);
    kind = it == kinds.end() ? FragKind::Row : it->second;
  }
  return warp::getFragment(tile, kind);
}

Operation *FragmentKinds::clone(OpBuilder &b, Operation *op,
                                IRMapping &map) const {
  Operation *copy = b.cloneWithoutRegions(*op, map);
  for (auto [old, result] : llvm::zip(op->getResults(), copy->getResults()))
    result.setType(convert(old));
  if (auto constant = dyn_cast<arith::ConstantOp>(copy))
    if (auto type = dyn_cast<RankedTensorType>(constant.getType()))
      constant.setValueAttr(
          cast<DenseElementsAttr>(constant.getValue()).reshape(type));
  return copy;
}
