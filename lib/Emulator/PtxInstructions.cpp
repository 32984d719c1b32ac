//===- PtxInstructions.cpp - What each PTX instruction does ---------------===//

#include "Product.h"
#include "PtxLowering.h"
#include "Runtime.h"

using namespace llvm;
using namespace prefill::emu;

bool PtxLowering::lowerInstruction(const PtxStatement &s) {
  StringRef name = s.parts[0];
  if (name == "wgmma" || name == "mma" || name == "ldmatrix" ||
      name == "stmatrix")
    return lowerProducts(s);
  if (name == "mbarrier" || name == "fence")
    return lowerMBarrier(s);
  if (name == "cp")
    return lowerCopies(s);
  if (name == "ld" || name == "st" || name == "cvta" || name == "atom" ||
      name == "red")
    return lowerMemory(s);
  return lowerWarp(s) || lowerFloat(s) || lowerArithmetic(s);
}

Value *PtxLowering::memory(const PtxOperand &operand) {
  if (operand.kind != PtxOperand::Memory || operand.parts.empty())
    return nullptr;
  Value *base = read(operand.parts[0]);
  if (!base)
    return nullptr;
  Value *address = base->getType()->isPointerTy() ? l.address(base)
                                                  : bits(operand.parts[0], 64);
  return operand.number ? b.CreateAdd(address, b.getInt64(operand.number))
                        : address;
}

//===----------------------------------------------------------------------===//
// Warps, barriers
//===----------------------------------------------------------------------===//

bool PtxLowering::lowerWarp(const PtxStatement &s) {
  StringRef name = s.parts[0];
  auto &ops = s.operands;
  Type *i32 = b.getInt32Ty(), *i64 = b.getInt64Ty(), *none = b.getVoidTy();
  auto high = [&](Value *wide) {
    return b.CreateTrunc(b.CreateLShr(wide, 32), b.getInt1Ty());
  };
  if (name == "bar" && s.has("warp"))
    return ops.size() == 1 &&
           l.emitAt("emu_warp_sync", none, {bits(ops[0], 32)});
  if (name == "barrier" && s.has("cluster")) {
    if (s.has("wait"))
      l.emitAt("emu_barrier", none, {l.word(16), l.word(0), l.word(0)});
    else
      l.emitCount();
    return true;
  }
  if ((name == "bar" || name == "barrier") &&
      (s.has("sync") || s.has("arrive"))) {
    Value *id = bits(ops[0], 32);
    Value *count = ops.size() > 1 ? bits(ops[1], 32) : l.word(0);
    if (!id || !count)
      return false;
    l.emitAt("emu_barrier", none, {id, count, l.word(s.has("arrive"))});
    return true;
  }
  if (name == "elect") {
    Value *wide = l.emitAt("emu_elect", i64, {bits(ops[1], 32)});
    return ops[0].kind == PtxOperand::Pair &&
           write(ops[0].parts[0], b.CreateTrunc(wide, i32)) &&
           write(ops[0].parts[1], high(wide));
  }
  if (name == "shfl" && s.has("sync") && ops.size() == 5) {
    int mode = s.has("up")     ? int(ShuffleMode::Up)
               : s.has("down") ? int(ShuffleMode::Down)
               : s.has("bfly") ? int(ShuffleMode::Bfly)
                               : int(ShuffleMode::Idx);
    Value *value = bits(ops[1], 32), *lane = bits(ops[2], 32),
          *clamp = bits(ops[3], 32), *mask = bits(ops[4], 32);
    if (!value || !lane || !clamp || !mask)
      return false;
    Value *wide =
        l.emitAt("emu_shuffle", i64, {l.word(mode), mask, value, lane, clamp});
    bool pair = ops[0].kind == PtxOperand::Pair;
    return write(pair ? ops[0].parts[0] : ops[0], b.CreateTrunc(wide, i32)) &&
           (!pair || write(ops[0].parts[1], high(wide)));
  }
  if (name == "vote" && s.has("sync") && ops.size() == 3) {
    int mode = s.has("all")   ? int(VoteMode::All)
               : s.has("any") ? int(VoteMode::Any)
               : s.has("uni") ? int(VoteMode::Uni)
                              : int(VoteMode::Ballot);
    Value *vote = predicate(ops[1]), *mask = bits(ops[2], 32);
    if (!vote || !mask)
      return false;
    return write(ops[0],
                 l.emitAt("emu_vote", i32,
                          {l.word(mode), mask, b.CreateZExt(vote, i32)}));
  }
  if (name == "activemask")
    return write(ops[0], l.emit("emu_active_mask", i32, {}));
  if (name == "setmaxnreg") {
    l.emitAt("emu_setmaxnreg", none, {bits(ops[0], 32), l.word(s.has("inc"))});
    return true;
  }
  if (name == "nanosleep") {
    l.emit("emu_yield", none, {});
    return true;
  }
  if (name == "trap") {
    l.emitAt("emu_trap", none, {});
    return true;
  }
  if (name == "prefetch" || name == "membar" || name == "griddepcontrol") {
    l.emitCount();
    return true;
  }
  return false;
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

bool PtxLowering::lowerProducts(const PtxStatement &s) {
  auto &ops = s.operands;
  Type *none = b.getVoidTy();
  auto readAll = [&](const PtxOperand &operand, SmallVectorImpl<Value *> &to) {
    if (operand.kind != PtxOperand::Vector) {
      to.push_back(read(operand));
      return to.back() != nullptr;
    }
    for (const PtxOperand &part : operand.parts) {
      to.push_back(read(part));
      if (!to.back())
        return false;
    }
    return true;
  };
  auto writeAll = [&](const PtxOperand &operand, ArrayRef<Value *> values) {
    if (operand.kind != PtxOperand::Vector)
      return values.size() == 1 && write(operand, values[0]);
    if (operand.parts.size() != values.size())
      return false;
    for (auto [part, value] : zip(operand.parts, values))
      if (!write(part, value))
        return false;
    return true;
  };
  // Shape and types are found by their looks.
  ProductKind kind = {};
  SmallVector<Element, 4> types;
  bool hasShape = false;
  for (const std::string &part : s.parts) {
    Element type;
    if (parseElement(part, type))
      types.push_back(type);
    else
      hasShape |= parseShape(part, kind);
  }
  SmallVector<Value *, 160> values;
  if (s.parts[0] == "ldmatrix" || s.parts[0] == "stmatrix") {
    unsigned count = s.has("x4") ? 4 : s.has("x2") ? 2 : 1;
    bool isLoad = s.parts[0] == "ldmatrix";
    Value *address = memory(ops[isLoad ? 1 : 0]);
    if (!s.has("m8n8") || !s.has("b16") || !address)
      return false;
    if (isLoad)
      return writeAll(ops[0], l.emitMatrixLoad(address, count, s.has("trans")));
    if (!readAll(ops[1], values))
      return false;
    l.emitMatrixStore(address, values, s.has("trans"));
    return true;
  }
  if (s.parts[0] == "mma") {
    // D, A, B, C types.
    if (!hasShape || types.size() != 4 || ops.size() != 4 || kind.m != 16 ||
        kind.n != 8 || types[0] != types[3] || !s.has("row") || !s.has("col"))
      return false;
    kind.accumulator = types[0];
    kind.a = types[1];
    kind.b = types[2];
    kind.saturate = s.has("satfinite");
    return readAll(ops[1], values) && readAll(ops[2], values) &&
           readAll(ops[3], values) &&
           values.size() == countMmaRegisters(kind) &&
           writeAll(ops[0], l.emitProduct(kind, values));
  }
  if (s.has("fence")) {
    l.emitAt("emu_wgmma_fence", none, {});
    return true;
  }
  if (s.has("commit_group")) {
    l.emitAt("emu_wgmma_commit", none, {});
    return true;
  }
  if (s.has("wait_group")) {
    // Accumulators given to the same assembly are waited for with it.
    SmallVector<Value *, 128> values;
    SmallVector<AllocaInst *, 128> waited;
    for (AllocaInst *output : outputs)
      if (output->getAllocatedType()->getPrimitiveSizeInBits() == 32) {
        values.push_back(l.toBits(load(output)));
        waited.push_back(output);
      }
    auto results = l.emitWgmmaWait(bits(ops[0], 32), values);
    for (auto [output, value] : zip(waited, results))
      b.CreateStore(l.fromBits(value, output->getAllocatedType()), output);
    return true;
  }
  // wgmma.mma_async d, a, b, scale-d, imm-scale-a, imm-scale-b, trans-a,
  // trans-b
  if (!s.has("mma_async") || s.has("sp") || !hasShape || types.size() != 3 ||
      ops.size() < 4)
    return false;
  kind.accumulator = types[0];
  kind.a = types[1];
  kind.b = types[2];
  kind.saturate = s.has("satfinite");
  kind.fromRegisters = ops[1].kind == PtxOperand::Vector;
  auto immediate = [&](unsigned i) {
    return ops[i].kind == PtxOperand::Integer ? ops[i].number : 0;
  };
  if (ops.size() >= 6) {
    kind.negateA = immediate(4) == -1;
    kind.negateB = immediate(5) == -1;
  }
  if (ops.size() == 8)
    kind.transposeA = immediate(6);
  if (ops.size() >= 7)
    kind.transposeB = immediate(ops.size() - 1);
  SmallVector<Value *, 4> a;
  Value *scale = predicate(ops[3]);
  if (!readAll(ops[0], values) || !readAll(ops[1], a) || !scale)
    return false;
  for (Value *&value : values)
    value = l.toBits(value);
  unsigned halves = kind.accumulator == Element::F16 ? 2 : 1;
  if (kind.m != 64 || kind.n % 8 || kind.n > 256 ||
      kind.k * bitsOfElement(kind.a) != 256 ||
      values.size() != kind.n / (2 * halves) ||
      a.size() != (kind.fromRegisters ? 4 : 1) ||
      (kind.transposeB && bitsOfElement(kind.b) != 16))
    return false;
  if (!kind.fromRegisters)
    a[0] = bits(ops[1], 64);
  Value *descriptorB = bits(ops[2], 64);
  return a[0] && descriptorB &&
         writeAll(ops[0], l.emitWgmma(kind, b.CreateZExt(scale, b.getInt32Ty()),
                                      values, a, descriptorB));
}
