//===- PtxScalar.cpp - PTX of single threads: copies, memory, arithmetic --===//

#include "PtxLowering.h"
#include "Runtime.h"

using namespace llvm;
using namespace prefill::emu;

//===----------------------------------------------------------------------===//
// mbarriers, fences, copies
//===----------------------------------------------------------------------===//

bool PtxLowering::lowerMBarrier(const PtxStatement &s) {
  auto &ops = s.operands;
  Type *i32 = b.getInt32Ty(), *i64 = b.getInt64Ty(), *none = b.getVoidTy();
  if (s.parts[0] == "fence") {
    if (s.has("mbarrier_init"))
      l.emitAt("emu_fence_mbarrier_init", none, {});
    else if (s.has("proxy") && s.has("async"))
      l.emitAt("emu_fence_proxy", none, {});
    else if (s.has("proxy") &&
             (s.has("async::global") || s.has("async::shared::cta") ||
              s.has("async::shared::cluster")))
      l.emitAt("emu_fence_proxy", none, {});
    else
      l.emitCount();
    return true;
  }
  auto shared = [&](const PtxOperand &operand) -> Value * {
    Value *address = memory(operand);
    if (!address || s.has("shared") || s.has("shared::cta"))
      return address;
    if (s.has("shared::cluster"))
      return address;
    return b.CreateSub(address, l.emit("emu_shared_window", i64, {}));
  };
  bool isWait = s.has("try_wait") || s.has("test_wait");
  bool hasResult =
      isWait || (!ops.empty() && ops[0].kind != PtxOperand::Memory);
  size_t first = hasResult ? 1 : 0;
  if (ops.size() <= first)
    return false;
  Value *at = shared(ops[first]);
  Value *operand = ops.size() > first + 1 ? bits(ops[first + 1], 64) : nullptr;
  if (!at)
    return false;
  auto operand32 = [&]() -> Value * {
    return operand ? b.CreateTrunc(operand, i32) : nullptr;
  };
  if (isWait) {
    if (!operand)
      return false;
    return write(ops[0],
                 b.CreateTrunc(l.emitAt("emu_mbar_wait", i32,
                                        {at, operand, l.word(s.has("parity"))}),
                               b.getInt1Ty()));
  }
  if (s.has("init") && operand) {
    l.emitAt("emu_mbar_init", none, {at, operand32()});
    return true;
  }
  if (s.has("inval")) {
    l.emitAt("emu_mbar_inval", none, {at});
    return true;
  }
  bool drop = s.has("arrive_drop");
  if (s.has("arrive") || drop) {
    bool expect = s.has("expect_tx");
    if (expect && !operand)
      return false;
    Value *phase = l.emitAt("emu_mbar_arrive", i64,
                            {at, !expect && operand ? operand32() : l.word(1),
                             expect ? operand32() : l.word(0), l.word(drop)});
    return !hasResult || write(ops[0], phase);
  }
  if ((s.has("expect_tx") || s.has("complete_tx")) && operand) {
    l.emitAt(s.has("expect_tx") ? "emu_mbar_expect_tx" : "emu_mbar_complete_tx",
             none, {at, operand32()});
    return true;
  }
  return false;
}

bool PtxLowering::lowerCopies(const PtxStatement &s) {
  auto &ops = s.operands;
  Type *none = b.getVoidTy();
  if (!s.has("async"))
    return false;
  if (s.has("mbarrier")) {
    Value *at = ops.size() == 1 ? memory(ops[0]) : nullptr;
    if (!at)
      return false;
    l.emitAt("emu_cp_async_mbar", none, {at, l.word(s.has("noinc"))});
    return true;
  }
  bool bulk = s.has("bulk");
  if (s.has("commit_group")) {
    l.emitAt(bulk ? "emu_bulk_commit" : "emu_cp_async_commit", none, {});
    return true;
  }
  if (s.has("wait_all") || s.has("wait_group")) {
    Value *pending = s.has("wait_all") ? l.word(~0u) : bits(ops[0], 32);
    l.emitAt(bulk ? "emu_bulk_wait" : "emu_cp_async_wait", none, {pending});
    return true;
  }
  if (ops.size() < 2)
    return false;
  if (!bulk) {
    Value *to = memory(ops[0]), *from = memory(ops[1]);
    if (!to || !from || ops.size() < 3 || ops[2].kind != PtxOperand::Integer)
      return false;
    Value *size = bits(ops[2], 32);
    Value *sourceSize = size;
    if (ops.size() > 3) {
      Value *given = read(ops[3]);
      if (!given)
        return false;
      // A predicate says: ignore the source.
      sourceSize = given->getType()->isIntegerTy(1)
                       ? b.CreateSelect(predicate(ops[3]), l.word(0), size)
                       : bits(ops[3], 32);
    }
    l.emitAt("emu_cp_async", none, {to, from, size, sourceSize});
    return true;
  }
  if (s.has("prefetch")) {
    l.emitCount();
    return true;
  }
  bool isStore = s.has("global") && s.has("shared::cta") && s.has("bulk_group");
  if (!s.has("tensor")) {
    Value *to = memory(ops[0]), *from = memory(ops[1]);
    Value *size = ops.size() > 2 ? bits(ops[2], 32) : nullptr;
    if (!to || !from || !size)
      return false;
    if (isStore) {
      l.emitAt("emu_bulk_store", none, {to, from, size});
      return true;
    }
    Value *barrier = ops.size() > 3 ? memory(ops[3]) : nullptr;
    if (!barrier)
      return false;
    l.emitAt("emu_bulk_load", none, {to, from, size, barrier});
    return true;
  }
  if (s.has("multicast::cluster") || s.has("im2col") || s.has("tile::gather4"))
    return false;
  // [map, {x, y, ...}] is the first operand of a store, the second of a load.
  const PtxOperand &tensor = ops[isStore ? 0 : 1];
  if (tensor.kind != PtxOperand::Memory || tensor.parts.size() != 2 ||
      tensor.parts[1].kind != PtxOperand::Vector)
    return false;
  SmallVector<Value *, 5> coordinates;
  for (const PtxOperand &part : tensor.parts[1].parts) {
    coordinates.push_back(bits(part, 32));
    if (!coordinates.back())
      return false;
  }
  Value *map = read(tensor.parts[0]);
  Value *sharedEnd = memory(ops[isStore ? 1 : 0]);
  Value *barrier = isStore || ops.size() < 3 ? nullptr : memory(ops[2]);
  if (!map || !sharedEnd || (!isStore && !barrier))
    return false;
  l.emitTensorCopy(isStore, sharedEnd, map, barrier, coordinates);
  return true;
}

//===----------------------------------------------------------------------===//
// Loads and stores
//===----------------------------------------------------------------------===//

/// Bits of the type that ends a mnemonic: "b32", "f16x2".
static unsigned widthOf(StringRef type) {
  if (type == "pred")
    return 1;
  if (type == "f16x2" || type == "bf16x2")
    return 32;
  if (type == "bf16")
    return 16;
  unsigned bits;
  if (type.size() < 2 || type.drop_front().getAsInteger(10, bits))
    return 0;
  return bits;
}

bool PtxLowering::lowerMemory(const PtxStatement &s) {
  auto &ops = s.operands;
  StringRef name = s.parts[0];
  unsigned width = widthOf(s.parts.back());
  if (!width || ops.size() < 2)
    return false;
  bool isShared = s.has("shared") || s.has("shared::cta");
  if (name == "cvta") {
    Value *value = bits(ops[1], 64);
    if (!value)
      return false;
    if (isShared) {
      Value *window = l.emit("emu_shared_window", b.getInt64Ty(), {});
      value =
          s.has("to") ? b.CreateSub(value, window) : b.CreateAdd(value, window);
    }
    return write(ops[0], value);
  }
  bool isLoad = name == "ld", isStore = name == "st", isRed = name == "red";
  const PtxOperand &place = ops[isLoad || name == "atom" ? 1 : 0];
  Value *address = memory(place);
  if (!address)
    return false;
  unsigned vector = s.has("v4") ? 4 : s.has("v2") ? 2 : 1;
  uint32_t flags = isLoad    ? 0
                   : isStore ? uint32_t(kWriteAccess)
                             : kWriteAccess | kAtomicAccess;
  if (s.has("volatile") || s.has("acquire") || s.has("relaxed"))
    flags |= kVolatileAccess;
  if (!isShared && !s.has("global"))
    flags |= kGenericAccess;
  unsigned bytes = width / 8;
  Value *host = l.emitAt(
      isShared ? "emu_shared_access" : "emu_global_access", b.getPtrTy(),
      {address, l.word(bytes * vector), l.word(bytes * vector), l.word(flags)});
  Type *type = b.getIntNTy(width);
  if (!isLoad && !isStore) {
    Value *old = b.CreateAlignedLoad(type, host, Align(1));
    Value *operand = bits(ops[isRed ? 1 : 2], width), *result = nullptr;
    bool isFloat = s.parts.back() == "f32", isSigned = s.parts.back()[0] == 's';
    if (!operand)
      return false;
    if (s.has("add") && isFloat)
      result = b.CreateBitCast(
          b.CreateFAdd(b.CreateBitCast(old, b.getFloatTy()),
                       b.CreateBitCast(operand, b.getFloatTy())),
          type);
    else if (isFloat)
      return false;
    else if (s.has("add"))
      result = b.CreateAdd(old, operand);
    else if (s.has("or"))
      result = b.CreateOr(old, operand);
    else if (s.has("and"))
      result = b.CreateAnd(old, operand);
    else if (s.has("xor"))
      result = b.CreateXor(old, operand);
    else if (s.has("exch"))
      result = operand;
    else if (s.has("max"))
      result = b.CreateBinaryIntrinsic(
          isSigned ? Intrinsic::smax : Intrinsic::umax, old, operand);
    else if (s.has("min"))
      result = b.CreateBinaryIntrinsic(
          isSigned ? Intrinsic::smin : Intrinsic::umin, old, operand);
    else
      return false;
    b.CreateAlignedStore(result, host, Align(1));
    return isRed || write(ops[0], old);
  }
  const PtxOperand &data = ops[isLoad ? 0 : 1];
  if ((vector > 1) != (data.kind == PtxOperand::Vector) ||
      (vector > 1 && data.parts.size() != vector))
    return false;
  for (unsigned i = 0; i < vector; ++i) {
    const PtxOperand &part = vector > 1 ? data.parts[i] : data;
    Value *at = b.CreateConstGEP1_32(type, host, i);
    if (isLoad) {
      if (!write(part, b.CreateAlignedLoad(type, at, Align(1))))
        return false;
    } else {
      Value *value = bits(part, width);
      if (!value)
        return false;
      b.CreateAlignedStore(value, at, Align(1));
    }
  }
  return true;
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

bool PtxLowering::lowerFloat(const PtxStatement &s) {
  auto &ops = s.operands;
  StringRef name = s.parts[0];
  Type *i32 = b.getInt32Ty(), *f32 = b.getFloatTy();
  if (name == "cvt") {
    if (ops.size() == 3) {
      Value *high = real(ops[1]), *low = real(ops[2]);
      StringRef function = s.has("bf16x2")   ? "emu_pack_bf16"
                           : s.has("f16x2")  ? "emu_pack_f16"
                           : s.has("e4m3x2") ? "emu_pack_e4m3"
                           : s.has("e5m2x2") ? "emu_pack_e5m2"
                                             : "";
      if (!high || !low || function.empty() || !s.has("rn"))
        return false;
      l.emitCount();
      return write(ops[0],
                   l.emit(function, i32, {high, low, l.word(s.has("relu"))}));
    }
    if (ops.size() == 2 && s.has("f16x2") &&
        (s.has("e4m3x2") || s.has("e5m2x2"))) {
      Value *value = bits(ops[1], 32);
      l.emitCount();
      return value && write(ops[0], l.emit("emu_unpack_f8", i32,
                                           {value, l.word(s.has("e5m2x2"))}));
    }
    return false;
  }
  if (s.parts.back() != "f32")
    return false;
  SmallVector<Value *, 3> in;
  for (const PtxOperand &operand : ArrayRef(ops).drop_front()) {
    in.push_back(real(operand));
    if (!in.back())
      return false;
  }
  if (in.empty())
    return false;
  Value *one = ConstantFP::get(f32, 1), *result = nullptr;
  if (name == "ex2")
    result = l.emit("emu_ex2", f32, {in[0]});
  else if (name == "lg2")
    result = l.emit("emu_lg2", f32, {in[0]});
  else if (name == "rcp")
    result = b.CreateFDiv(one, in[0]);
  else if (name == "sqrt")
    result = b.CreateUnaryIntrinsic(Intrinsic::sqrt, in[0]);
  else if (name == "rsqrt")
    result = b.CreateFDiv(one, b.CreateUnaryIntrinsic(Intrinsic::sqrt, in[0]));
  else if (name == "tanh")
    result = l.emit("tanhf", f32, {in[0]});
  else if (name == "neg")
    result = b.CreateFNeg(in[0]);
  else if (name == "abs")
    result = b.CreateUnaryIntrinsic(Intrinsic::fabs, in[0]);
  else if (name == "fma" && in.size() == 3)
    result = b.CreateIntrinsic(Intrinsic::fma, {f32}, {in[0], in[1], in[2]});
  else if (in.size() == 2 && name == "add")
    result = b.CreateFAdd(in[0], in[1]);
  else if (in.size() == 2 && name == "sub")
    result = b.CreateFSub(in[0], in[1]);
  else if (in.size() == 2 && name == "mul")
    result = b.CreateFMul(in[0], in[1]);
  else if (in.size() == 2 && name == "max")
    result = s.has("NaN") ? b.CreateMaximum(in[0], in[1])
                          : b.CreateMaxNum(in[0], in[1]);
  else if (in.size() == 2 && name == "min")
    result = s.has("NaN") ? b.CreateMinimum(in[0], in[1])
                          : b.CreateMinNum(in[0], in[1]);
  if (!result)
    return false;
  l.emitCount();
  return write(ops[0], result);
}

bool PtxLowering::lowerArithmetic(const PtxStatement &s) {
  auto &ops = s.operands;
  StringRef name = s.parts[0], type = s.parts.back();
  unsigned width = widthOf(type);
  if (ops.size() < 2 || !width)
    return false;
  bool isSigned = type[0] == 's';
  if (name == "setp") {
    if (ops.size() != 3)
      return false;
    bool isFloat = type == "f32";
    CmpInst::Predicate p =
        StringSwitch<CmpInst::Predicate>(s.parts[1])
            .Case("eq", isFloat ? CmpInst::FCMP_OEQ : CmpInst::ICMP_EQ)
            .Case("ne", isFloat ? CmpInst::FCMP_ONE : CmpInst::ICMP_NE)
            .Case("lt", isFloat    ? CmpInst::FCMP_OLT
                        : isSigned ? CmpInst::ICMP_SLT
                                   : CmpInst::ICMP_ULT)
            .Case("le", isFloat    ? CmpInst::FCMP_OLE
                        : isSigned ? CmpInst::ICMP_SLE
                                   : CmpInst::ICMP_ULE)
            .Case("gt", isFloat    ? CmpInst::FCMP_OGT
                        : isSigned ? CmpInst::ICMP_SGT
                                   : CmpInst::ICMP_UGT)
            .Case("ge", isFloat    ? CmpInst::FCMP_OGE
                        : isSigned ? CmpInst::ICMP_SGE
                                   : CmpInst::ICMP_UGE)
            .Default(CmpInst::BAD_ICMP_PREDICATE);
    if (p == CmpInst::BAD_ICMP_PREDICATE)
      return false;
    Value *x = isFloat ? real(ops[1]) : bits(ops[1], width);
    Value *y = isFloat ? real(ops[2]) : bits(ops[2], width);
    return x && y && write(ops[0], b.CreateCmp(p, x, y));
  }
  if (name == "selp") {
    Value *x = bits(ops[1], width), *y = bits(ops[2], width);
    Value *condition = ops.size() == 4 ? predicate(ops[3]) : nullptr;
    return x && y && condition &&
           write(ops[0], b.CreateSelect(condition, x, y));
  }
  if (name == "mov" && ops[0].kind == PtxOperand::Vector) {
    // mov.b64 {lo, hi}, x
    Value *whole = bits(ops[1], width);
    unsigned part = width / ops[0].parts.size();
    if (!whole)
      return false;
    for (unsigned i = 0; i < ops[0].parts.size(); ++i)
      if (!write(ops[0].parts[i], b.CreateTrunc(b.CreateLShr(whole, i * part),
                                                b.getIntNTy(part))))
        return false;
    return true;
  }
  if (name == "mov" && ops[1].kind == PtxOperand::Vector) {
    Value *whole = b.getIntN(width, 0);
    unsigned part = width / ops[1].parts.size();
    for (unsigned i = 0; i < ops[1].parts.size(); ++i) {
      Value *value = bits(ops[1].parts[i], part);
      if (!value)
        return false;
      whole =
          b.CreateOr(whole, b.CreateShl(b.CreateZExt(value, b.getIntNTy(width)),
                                        i * part));
    }
    return write(ops[0], whole);
  }
  if (name == "prmt" && ops.size() == 4) {
    Value *x = bits(ops[1], 32), *y = bits(ops[2], 32), *z = bits(ops[3], 32);
    return x && y && z && s.parts.size() == 2 &&
           write(ops[0],
                 l.emit("emu_prmt", b.getInt32Ty(), {x, y, z, l.word(0)}));
  }
  SmallVector<Value *, 3> in;
  for (const PtxOperand &operand : ArrayRef(ops).drop_front()) {
    in.push_back(bits(operand, width));
    if (!in.back())
      return false;
  }
  Value *result = nullptr;
  if (name == "mov")
    result = in[0];
  else if (name == "not")
    result = b.CreateNot(in[0]);
  else if (name == "neg" && type != "f16x2")
    result = b.CreateNeg(in[0]);
  else if (in.size() == 2 && name == "add")
    result = b.CreateAdd(in[0], in[1]);
  else if (in.size() == 2 && name == "sub")
    result = b.CreateSub(in[0], in[1]);
  else if (in.size() == 2 && name == "mul" && s.has("lo"))
    result = b.CreateMul(in[0], in[1]);
  else if (in.size() == 3 && name == "mad" && s.has("lo"))
    result = b.CreateAdd(b.CreateMul(in[0], in[1]), in[2]);
  else if (in.size() == 2 && name == "and")
    result = b.CreateAnd(in[0], in[1]);
  else if (in.size() == 2 && name == "or")
    result = b.CreateOr(in[0], in[1]);
  else if (in.size() == 2 && name == "xor")
    result = b.CreateXor(in[0], in[1]);
  else if (in.size() == 2 && (name == "min" || name == "max")) {
    bool isMin = name == "min";
    result = b.CreateBinaryIntrinsic(
        isSigned ? (isMin ? Intrinsic::smin : Intrinsic::smax)
                 : (isMin ? Intrinsic::umin : Intrinsic::umax),
        in[0], in[1]);
  } else if (in.size() == 2 && (name == "shl" || name == "shr")) {
    // Shifts by the width or more yield 0 (or the sign).
    Value *amount = bits(ops[2], 32);
    Value *limit = b.getInt32(width - 1);
    Value *tooFar = b.CreateICmpUGT(amount, limit);
    Value *within = b.CreateZExtOrTrunc(b.CreateSelect(tooFar, limit, amount),
                                        in[0]->getType());
    if (name == "shr" && isSigned) {
      result = b.CreateAShr(in[0], within);
    } else {
      result = name == "shl" ? b.CreateShl(in[0], within)
                             : b.CreateLShr(in[0], within);
      result = b.CreateSelect(tooFar, b.getIntN(width, 0), result);
    }
  }
  return result && write(ops[0], result);
}
