//===- LowerIntrinsics.cpp - llvm.nvvm.* ----------------------------------===//

#include "Lowering.h"
#include "Runtime.h"
#include "llvm/ADT/StringSwitch.h"

using namespace llvm;
using namespace prefill::emu;

Error Lowering::lowerIntrinsic(CallInst &call, StringRef name) {
  beginSite(call, name);
  // Nothing to do: hints, and fences that order what is ordered here anyhow.
  bool isNothing =
      name.starts_with("prefetch") || name.starts_with("membar") ||
      name.starts_with("applypriority") || name.starts_with("discard") ||
      name.starts_with("griddepcontrol") ||
      name.starts_with("barrier.cluster.arrive") ||
      name.starts_with("cp.async.bulk.tensor.prefetch") ||
      name.starts_with("cp.async.bulk.prefetch") ||
      name.starts_with("fence.acq_rel") || name.starts_with("fence.sc") ||
      name.starts_with("fence.proxy.tensormap") ||
      name.starts_with("fence.proxy.alias");
  Value *result = nullptr;
  if (isNothing)
    emitCount();
  else if (!(result = lowerWarpOp(call, name)) &&
           !(result = lowerMBarrier(call, name)) &&
           !(result = lowerCopy(call, name)) &&
           !(result = lowerMath(call, name)))
    return createStringError("the emulator does not know the intrinsic "
                             "'llvm.nvvm." +
                             name + "' in '" + function.getName() + "'");
  if (!call.getType()->isVoidTy())
    call.replaceAllUsesWith(result);
  call.eraseFromParent();
  return Error::success();
}

/// Which register "read.ptx.sreg.NAME" is.
static int specialRegister(StringRef name) {
  for (auto &[prefix, base] :
       {std::pair<StringRef, SpecialRegister>("tid.", SpecialRegister::Tid),
        {"ntid.", SpecialRegister::Ntid},
        {"ctaid.", SpecialRegister::Ctaid},
        {"nctaid.", SpecialRegister::Nctaid},
        // Clusters of one block.
        {"clusterid.", SpecialRegister::Ctaid},
        {"nclusterid.", SpecialRegister::Nctaid}}) {
    StringRef axis = name;
    if (axis.consume_front(prefix) && axis.size() == 1)
      return int(base) + StringSwitch<int>(axis)
                             .Case("x", 0)
                             .Case("y", 1)
                             .Case("z", 2)
                             .Default(3);
  }
  if (name.starts_with("cluster.nctaid") || name == "cluster.nctarank")
    return int(SpecialRegister::One);
  if (name.starts_with("cluster.ctaid") || name == "cluster.ctarank" ||
      name == "smid" || name == "gridid")
    return int(SpecialRegister::Zero);
  return StringSwitch<int>(name)
      .Case("laneid", int(SpecialRegister::Laneid))
      .Case("warpid", int(SpecialRegister::Warpid))
      .Case("nwarpid", int(SpecialRegister::Nwarpid))
      .Case("lanemask.eq", int(SpecialRegister::LanemaskEq))
      .Case("lanemask.lt", int(SpecialRegister::LanemaskLt))
      .Case("lanemask.le", int(SpecialRegister::LanemaskLe))
      .Case("lanemask.gt", int(SpecialRegister::LanemaskGt))
      .Case("lanemask.ge", int(SpecialRegister::LanemaskGe))
      .Case("nsmid", int(SpecialRegister::One))
      .Case("dynamic.smem.size", int(SpecialRegister::DynamicSmemSize))
      .Case("total.smem.size", int(SpecialRegister::TotalSmemSize))
      .Cases({"clock", "clock64", "globaltimer", "globaltimer.lo"},
             int(SpecialRegister::Clock))
      .Default(-1);
}

Value *Lowering::readSpecial(StringRef name) {
  if (name == "warpsize" || name == "WARP_SZ")
    return b.getInt32(32);
  int which = specialRegister(name);
  return which < 0 ? nullptr
                   : emit("emu_special", b.getInt32Ty(), {word(which)});
}

Value *Lowering::lowerWarpOp(CallInst &call, StringRef name) {
  Type *i32 = b.getInt32Ty(), *i64 = b.getInt64Ty(), *none = b.getVoidTy();
  auto arg = [&](unsigned i) { return call.getArgOperand(i); };
  auto high = [&](Value *wide) {
    return b.CreateTrunc(b.CreateLShr(wide, 32), i32);
  };

  if (name.consume_front("read.ptx.sreg.")) {
    Value *value = readSpecial(name);
    return value ? b.CreateZExtOrTrunc(value, call.getType()) : nullptr;
  }
  if (name.consume_front("shfl.sync.")) {
    auto [modeName, typeName] = name.split('.');
    int mode = StringSwitch<int>(modeName)
                   .Case("up", int(ShuffleMode::Up))
                   .Case("down", int(ShuffleMode::Down))
                   .Case("bfly", int(ShuffleMode::Bfly))
                   .Case("idx", int(ShuffleMode::Idx))
                   .Default(-1);
    if (mode < 0)
      return nullptr;
    Value *wide = emitAt("emu_shuffle", i64,
                         {word(mode), arg(0), toI32(arg(1)), arg(2), arg(3)});
    return packStruct(call.getType(), {b.CreateTrunc(wide, i32), high(wide)});
  }
  if (name.starts_with("vote.") && name.ends_with(".sync")) {
    int mode = StringSwitch<int>(name)
                   .Case("vote.all.sync", int(VoteMode::All))
                   .Case("vote.any.sync", int(VoteMode::Any))
                   .Case("vote.uni.sync", int(VoteMode::Uni))
                   .Case("vote.ballot.sync", int(VoteMode::Ballot))
                   .Default(-1);
    if (mode < 0)
      return nullptr;
    return fromBits(
        emitAt("emu_vote", i32, {word(mode), arg(0), toI32(arg(1))}),
        call.getType());
  }
  if (name.starts_with("match.")) {
    bool all = name.starts_with("match.all");
    Value *mask = emitAt("emu_match", i32,
                         {arg(0), b.CreateZExt(arg(1), i64), word(all)});
    Value *any = b.CreateZExt(b.CreateICmpNE(mask, word(0)), i32);
    return packStruct(call.getType(), {mask, any});
  }
  if (name.consume_front("redux.sync.")) {
    int op = StringSwitch<int>(name)
                 .Case("add", int(ReduxOp::Add))
                 .Case("umin", int(ReduxOp::UMin))
                 .Case("umax", int(ReduxOp::UMax))
                 .Case("min", int(ReduxOp::Min))
                 .Case("max", int(ReduxOp::Max))
                 .Case("and", int(ReduxOp::And))
                 .Case("or", int(ReduxOp::Or))
                 .Case("xor", int(ReduxOp::Xor))
                 .Case("fmin", int(ReduxOp::FMin))
                 .Case("fmax", int(ReduxOp::FMax))
                 .Default(-1);
    if (op < 0)
      return nullptr;
    return fromBits(emitAt("emu_redux", i32, {word(op), arg(1), toI32(arg(0))}),
                    call.getType());
  }
  if (name == "elect.sync") {
    Value *wide = emitAt("emu_elect", i64, {arg(0)});
    return packStruct(call.getType(), {b.CreateTrunc(wide, i32), high(wide)});
  }
  if (name == "activemask")
    return emit("emu_active_mask", i32, {});
  if (name == "bar.warp.sync")
    return emitAt("emu_warp_sync", none, {arg(0)});
  if (name == "barrier.cta.sync.aligned.all" || name == "barrier.cta.sync.all")
    return emitAt("emu_barrier", none, {arg(0), word(0), word(0)});
  if (name == "barrier.cta.sync.aligned.count" ||
      name == "barrier.cta.sync.count")
    return emitAt("emu_barrier", none, {arg(0), arg(1), word(0)});
  if (name == "barrier.cta.arrive.aligned.count" ||
      name == "barrier.cta.arrive.count")
    return emitAt("emu_barrier", none, {arg(0), arg(1), word(1)});
  // Clusters of one block: all of it happens at the wait.
  if (name.starts_with("barrier.cluster.wait"))
    return emitAt("emu_barrier", none, {word(16), word(0), word(0)});
  if (name == "nanosleep")
    return emit("emu_yield", none, {});
  if (name == "exit")
    return emit("emu_exit", none, {});
  if (name.consume_front("setmaxnreg."))
    return emitAt("emu_setmaxnreg", none,
                  {arg(0), word(name.starts_with("inc"))});
  if (name.consume_front("ldmatrix.sync.aligned.m8n8.x")) {
    unsigned count;
    if (name.consumeInteger(10, count) || !name.contains("b16"))
      return nullptr;
    return packStruct(call.getType(),
                      emitMatrixLoad(arg(0), count, name.contains("trans")));
  }
  if (name.consume_front("stmatrix.sync.aligned.m8n8.x")) {
    unsigned count;
    if (name.consumeInteger(10, count) || !name.contains("b16"))
      return nullptr;
    Values registers;
    for (unsigned i = 0; i < count; ++i)
      registers.push_back(arg(1 + i));
    emitMatrixStore(arg(0), registers, name.contains("trans"));
    return buffer;
  }
  if (name.consume_front("mma.")) {
    // mma.SHAPE.row.col[.satfinite].TYPES
    SmallVector<StringRef, 8> parts;
    name.split(parts, '.');
    ProductKind kind = {};
    if (parts.size() < 4 || !parseShape(parts[0], kind) || kind.m != 16 ||
        kind.n != 8 || parts[1] != "row" || parts[2] != "col")
      return nullptr;
    SmallVector<Element, 4> types;
    for (StringRef part : ArrayRef(parts).drop_front(3)) {
      Element type;
      if (part == "satfinite")
        kind.saturate = true;
      else if (parseElement(part, type))
        types.push_back(type);
      else
        return nullptr;
    }
    // f16: types of D and C; fp8: D, A, B, C; otherwise A and, if another, B.
    if (types.size() == 4 && types[0] == types[3]) {
      kind.accumulator = types[0];
      kind.a = types[1];
      kind.b = types[2];
    } else if (types.size() == 2 &&
               (types[0] == Element::F16 || types[0] == Element::F32)) {
      if (types[0] != types[1])
        return nullptr;
      kind.a = kind.b = Element::F16;
      kind.accumulator = types[0];
    } else if (types.size() > 2 || types.empty()) {
      return nullptr;
    } else {
      kind.a = types[0];
      kind.b = types.back();
      bool bits = kind.a == Element::S8 || kind.a == Element::U8 ||
                  kind.a == Element::S4 || kind.a == Element::U4;
      kind.accumulator = bits ? Element::S32 : Element::F32;
    }
    Values operands(call.arg_begin(), call.arg_end());
    if (operands.size() != countMmaRegisters(kind))
      return nullptr;
    return packStruct(call.getType(), emitProduct(kind, operands));
  }
  if (name == "wgmma.fence.sync.aligned")
    return emitAt("emu_wgmma_fence", none, {});
  if (name == "wgmma.commit_group.sync.aligned")
    return emitAt("emu_wgmma_commit", none, {});
  if (name == "wgmma.wait_group.sync.aligned") {
    emitWgmmaWait(toI32(b.CreateTrunc(arg(0), i32)), {});
    return buffer;
  }
  return nullptr;
}

Value *Lowering::lowerMBarrier(CallInst &call, StringRef name) {
  Type *i32 = b.getInt32Ty(), *i64 = b.getInt64Ty(), *none = b.getVoidTy();
  auto arg = [&](unsigned i) { return call.getArgOperand(i); };
  if (name == "fence.mbarrier_init.release.cluster")
    return emitAt("emu_fence_mbarrier_init", none, {});
  if (name.starts_with("fence.proxy.async"))
    return emitAt("emu_fence_proxy", none, {});
  if (name.consume_front("cp.async.mbarrier.arrive"))
    return emitAt("emu_cp_async_mbar", none,
                  {sharedAddress(arg(0)), word(name.starts_with(".noinc"))});
  if (!name.consume_front("mbarrier.") || name.contains("space.cluster"))
    return nullptr;
  Value *at = sharedAddress(arg(0));
  if (name.starts_with("init"))
    return emitAt("emu_mbar_init", none, {at, arg(1)});
  if (name.starts_with("inval"))
    return emitAt("emu_mbar_inval", none, {at});
  if (name.consume_front("arrive")) {
    bool drop = name.consume_front(".drop");
    Value *count = word(1), *bytes = word(0);
    if (name.starts_with(".expect.tx"))
      bytes = arg(1);
    else if (call.arg_size() > 1)
      count = arg(1);
    Value *phase =
        emitAt("emu_mbar_arrive", i64, {at, count, bytes, word(drop)});
    return call.getType()->isVoidTy() ? phase : fromBits(phase, call.getType());
  }
  if (name.starts_with("expect.tx"))
    return emitAt("emu_mbar_expect_tx", none, {at, arg(1)});
  if (name.starts_with("complete.tx"))
    return emitAt("emu_mbar_complete_tx", none, {at, arg(1)});
  if (name.starts_with("test.wait") || name.starts_with("try.wait")) {
    Value *phase = b.CreateZExtOrTrunc(arg(1), i64);
    return fromBits(emitAt("emu_mbar_wait", i32,
                           {at, phase, word(name.contains("parity"))}),
                    call.getType());
  }
  return nullptr;
}

Value *Lowering::lowerCopy(CallInst &call, StringRef name) {
  Type *none = b.getVoidTy();
  auto arg = [&](unsigned i) { return call.getArgOperand(i); };
  if (!name.consume_front("cp.async."))
    return nullptr;
  if (name == "commit.group")
    return emitAt("emu_cp_async_commit", none, {});
  if (name == "wait.group")
    return emitAt("emu_cp_async_wait", none, {arg(0)});
  if (name == "wait.all")
    return emitAt("emu_cp_async_wait", none, {word(~0u)});
  if (name.starts_with("ca.shared.global.") ||
      name.starts_with("cg.shared.global.")) {
    name = name.drop_front(17);
    unsigned size;
    if (name.consumeInteger(10, size))
      return nullptr;
    Value *source = call.arg_size() > 2 ? arg(2) : word(size);
    return emitAt("emu_cp_async", none,
                  {sharedAddress(arg(0)), address(arg(1)), word(size), source});
  }
  if (!name.consume_front("bulk."))
    return nullptr;
  if (name == "commit.group")
    return emitAt("emu_bulk_commit", none, {});
  if (name.starts_with("wait.group"))
    return emitAt("emu_bulk_wait", none, {arg(0)});
  if (name.starts_with("global.to.shared"))
    return emitAt("emu_bulk_load", none,
                  {sharedAddress(arg(0)), address(arg(2)), toI32(arg(3)),
                   sharedAddress(arg(1))});
  if (name.starts_with("shared.cta.to.global"))
    return emitAt("emu_bulk_store", none,
                  {address(arg(0)), sharedAddress(arg(1)), toI32(arg(2))});
  bool isLoad = name.starts_with("tensor.g2s.");
  if (!isLoad && !name.starts_with("tensor.s2g."))
    return nullptr;
  name = name.drop_front(11);
  name.consume_front("cta.");
  unsigned rank;
  if (!name.consume_front("tile.") || name.consumeInteger(10, rank) ||
      name != "d")
    return nullptr;
  Values coordinates;
  unsigned first = isLoad ? 3 : 2;
  // Multicast needs clusters: mask, hint, and a flag for each.
  if (isLoad && call.arg_size() > first + rank + 2) {
    auto *multicast = dyn_cast<ConstantInt>(arg(first + rank + 2));
    if (!multicast || !multicast->isZero())
      return nullptr;
  }
  for (unsigned i = 0; i < rank; ++i)
    coordinates.push_back(arg(first + i));
  return emitTensorCopy(!isLoad, arg(0), arg(isLoad ? 2 : 1),
                        isLoad ? arg(1) : nullptr, coordinates);
}

Value *Lowering::lowerMath(CallInst &call, StringRef name) {
  Type *f32 = b.getFloatTy(), *i32 = b.getInt32Ty();
  auto arg = [&](unsigned i) { return call.getArgOperand(i); };
  bool isF32 = call.getType()->isFloatTy();
  bool relu = name.contains(".relu");
  emitCount();
  auto pack = [&](StringRef function) {
    return fromBits(emit(function, i32, {arg(0), arg(1), word(relu)}),
                    call.getType());
  };
  if (name.starts_with("ff2bf16x2.rn"))
    return pack("emu_pack_bf16");
  if (name.starts_with("ff2f16x2.rn"))
    return pack("emu_pack_f16");
  if (name.starts_with("ff.to.e4m3x2.rn"))
    return pack("emu_pack_e4m3");
  if (name.starts_with("ff.to.e5m2x2.rn"))
    return pack("emu_pack_e5m2");
  if (name == "e4m3x2.to.f16x2.rn" || name == "e5m2x2.to.f16x2.rn")
    return fromBits(emit("emu_unpack_f8", i32,
                         {toI32(arg(0)), word(name.starts_with("e5"))}),
                    call.getType());
  if (name == "f2bf16.rn" || name == "f2bf16.rn.relu")
    return fromBits(emit("emu_pack_bf16", i32,
                         {ConstantFP::get(f32, 0), arg(0), word(relu)}),
                    call.getType());
  if (name == "prmt")
    return emit("emu_prmt", i32, {arg(0), arg(1), arg(2), word(0)});
  if (name.starts_with("idp4a.")) {
    Value *sum = arg(2);
    bool signA = name[6] == 's', signB = name[8] == 's';
    for (unsigned i = 0; i < 4; ++i) {
      auto byte = [&](Value *value, bool isSigned) {
        value = b.CreateTrunc(b.CreateLShr(value, 8 * i), b.getInt8Ty());
        return isSigned ? b.CreateSExt(value, i32) : b.CreateZExt(value, i32);
      };
      sum = b.CreateAdd(sum,
                        b.CreateMul(byte(arg(0), signA), byte(arg(1), signB)));
    }
    return sum;
  }
  if (!isF32)
    return nullptr;
  // Approximations are computed exactly: close enough to compare with float64.
  if (name.starts_with("ex2.approx"))
    return emit("emu_ex2", f32, {arg(0)});
  if (name.starts_with("lg2.approx"))
    return emit("emu_lg2", f32, {arg(0)});
  Value *one = ConstantFP::get(f32, 1.0);
  auto unary = [&](Intrinsic::ID id, Value *operand) {
    return b.CreateUnaryIntrinsic(id, operand);
  };
  if (name.starts_with("rcp."))
    return b.CreateFDiv(one, arg(0));
  if (name.starts_with("rsqrt.approx"))
    return b.CreateFDiv(one, unary(Intrinsic::sqrt, arg(0)));
  if (name.starts_with("sqrt."))
    return unary(Intrinsic::sqrt, arg(0));
  if (name.starts_with("div.") || name == "fdiv.f")
    return b.CreateFDiv(arg(0), arg(1));
  if (name.starts_with("tanh.approx"))
    return emit("tanhf", f32, {arg(0)});
  if (name.starts_with("sin.approx"))
    return unary(Intrinsic::sin, arg(0));
  if (name.starts_with("cos.approx"))
    return unary(Intrinsic::cos, arg(0));
  if (name.starts_with("fabs"))
    return unary(Intrinsic::fabs, arg(0));
  if (name.starts_with("fma.rn") && !name.contains("sat"))
    return b.CreateIntrinsic(Intrinsic::fma, {f32}, {arg(0), arg(1), arg(2)});
  if (name.starts_with("add.rn") && !name.contains("sat"))
    return b.CreateFAdd(arg(0), arg(1));
  if (name.starts_with("mul.rn") && !name.contains("sat"))
    return b.CreateFMul(arg(0), arg(1));
  if (name == "fmax.f" || name == "fmax.ftz.f")
    return b.CreateMaxNum(arg(0), arg(1));
  if (name == "fmin.f" || name == "fmin.ftz.f")
    return b.CreateMinNum(arg(0), arg(1));
  if (name == "fmax.nan.f" || name == "fmax.ftz.nan.f")
    return b.CreateMaximum(arg(0), arg(1));
  if (name == "fmin.nan.f" || name == "fmin.ftz.nan.f")
    return b.CreateMinimum(arg(0), arg(1));
  return nullptr;
}
