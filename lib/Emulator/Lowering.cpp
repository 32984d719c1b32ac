//===- Lowering.cpp - Rewrites a function for the host --------------------===//

#include "Lowering.h"
#include "Runtime.h"
#include "llvm/Analysis/CFG.h"
#include "llvm/Analysis/ValueTracking.h"
#include "llvm/IR/Dominators.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/Transforms/Utils/PromoteMemToReg.h"

using namespace llvm;
using namespace prefill::emu;

Lowering::Lowering(Function &function, ModuleInfo &info)
    : function(function), module(*function.getParent()), info(info),
      b(function.getContext()) {
  // Names as the printer would give them, for messages.
  unsigned next = 0;
  auto name = [&](const Value &value) {
    std::string text = "%";
    places[&value] = value.hasName() ? text + value.getName().str()
                                     : text + std::to_string(next++);
  };
  for (const Argument &argument : function.args())
    name(argument);
  for (const BasicBlock &block : function) {
    name(block);
    for (const Instruction &instruction : block)
      if (!instruction.getType()->isVoidTy())
        name(instruction);
  }
  b.SetInsertPoint(&*function.getEntryBlock().getFirstInsertionPt());
  buffer = b.CreateAlloca(ArrayType::get(b.getInt32Ty(), 160), nullptr,
                          "emu.registers");
}

Error Lowering::run() {
  SmallVector<Instruction *, 0> work;
  for (Instruction &instruction : instructions(function))
    if (&instruction != buffer)
      work.push_back(&instruction);
  for (Instruction *instruction : work) {
    b.SetInsertPoint(instruction);
    if (isa<LoadInst, StoreInst, AtomicRMWInst, AtomicCmpXchgInst>(
            instruction)) {
      lowerAccess(*instruction);
    } else if (auto *cast = dyn_cast<AddrSpaceCastInst>(instruction)) {
      lowerCast(*cast);
    } else if (auto *op = dyn_cast<BinaryOperator>(instruction)) {
      if (op->isIntDivRem())
        lowerDivision(*op);
    } else if (isa<UnreachableInst>(instruction)) {
      beginSite(*instruction, "unreachable");
      emitAt("emu_unreachable", b.getVoidTy(), {});
    } else if (auto *call = dyn_cast<CallInst>(instruction)) {
      if (Error error = lowerCall(*call))
        return error;
    }
  }
  DominatorTree dominators(function);
  PromoteMemToReg(slots, dominators);
  instrumentTokenUses();
  instrumentBackEdges();
  return Error::success();
}

Error Lowering::lowerCall(CallInst &call) {
  if (call.isInlineAsm())
    return lowerAsm(call);
  if (isa<MemIntrinsic>(call))
    return lowerMemoryIntrinsic(call);
  Function *callee = call.getCalledFunction();
  if (!callee)
    return createStringError("the emulator cannot follow an indirect call in "
                             "'" +
                             function.getName() + "'");
  StringRef name = callee->getName();
  if (name.consume_front("llvm.nvvm."))
    return lowerIntrinsic(call, name);
  if (name == "llvm.trap" || name == "llvm.debugtrap") {
    beginSite(call, "trap");
    emitAt("emu_trap", b.getVoidTy(), {});
    call.eraseFromParent();
    return Error::success();
  }
  if (callee->isDeclaration() && !callee->isIntrinsic())
    return createStringError("the emulator does not know the function '" +
                             callee->getName() + "'");
  call.setCallingConv(CallingConv::C);
  return Error::success();
}

Error Lowering::lowerMemoryIntrinsic(CallInst &call) {
  auto generic = [&](Value *pointer) {
    Value *at = b.CreatePtrToInt(pointer, b.getInt64Ty());
    if (pointer->getType()->getPointerAddressSpace() == 3)
      at = b.CreateAdd(at, emit("emu_shared_window", b.getInt64Ty(), {}));
    return at;
  };
  auto size = [&](Value *value) {
    return b.CreateZExtOrTrunc(value, b.getInt64Ty());
  };
  if (auto *move = dyn_cast<MemTransferInst>(&call)) {
    beginSite(call, "memcpy");
    emitAt("emu_copy", b.getVoidTy(),
           {generic(move->getDest()), generic(move->getSource()),
            size(move->getLength())});
  } else {
    auto &set = cast<MemSetInst>(call);
    beginSite(call, "memset");
    emitAt("emu_fill", b.getVoidTy(),
           {generic(set.getDest()),
            b.CreateZExtOrTrunc(set.getValue(), b.getInt32Ty()),
            size(set.getLength())});
  }
  call.eraseFromParent();
  return Error::success();
}

void Lowering::lowerAccess(Instruction &instruction) {
  Value *pointer = nullptr;
  Type *type = nullptr;
  Align align;
  uint32_t flags = 0;
  unsigned operand = 0;
  const char *verb = "ld";
  if (auto *load = dyn_cast<LoadInst>(&instruction)) {
    pointer = load->getPointerOperand();
    type = load->getType();
    align = load->getAlign();
    operand = LoadInst::getPointerOperandIndex();
    if (load->isVolatile() || load->isAtomic())
      flags = kVolatileAccess;
  } else if (auto *store = dyn_cast<StoreInst>(&instruction)) {
    pointer = store->getPointerOperand();
    type = store->getValueOperand()->getType();
    align = store->getAlign();
    operand = StoreInst::getPointerOperandIndex();
    flags = kWriteAccess;
    if (store->isVolatile() || store->isAtomic())
      flags |= kVolatileAccess;
    verb = "st";
  } else if (auto *update = dyn_cast<AtomicRMWInst>(&instruction)) {
    pointer = update->getPointerOperand();
    type = update->getType();
    align = update->getAlign();
    operand = AtomicRMWInst::getPointerOperandIndex();
    flags = kWriteAccess | kAtomicAccess;
    verb = "atom";
  } else {
    auto &exchange = cast<AtomicCmpXchgInst>(instruction);
    pointer = exchange.getPointerOperand();
    type = exchange.getNewValOperand()->getType();
    align = exchange.getAlign();
    operand = AtomicCmpXchgInst::getPointerOperandIndex();
    flags = kWriteAccess | kAtomicAccess;
    verb = "atom.cas";
  }
  unsigned space = pointer->getType()->getPointerAddressSpace();
  if (space == 5 || isa<AllocaInst>(getUnderlyingObject(pointer)))
    return;
  bool isShared = space == 3 || space == 7;
  const char *name = isShared     ? ".shared"
                     : space == 1 ? ".global"
                     : space == 4 ? ".const"
                                  : "";
  if (space == 0)
    flags |= kGenericAccess;
  beginSite(instruction, std::string(verb) + name);
  uint64_t size = module.getDataLayout().getTypeStoreSize(type);
  // No PTX access is wider than 16 bytes.
  uint64_t alignment = std::min<uint64_t>(align.value(), 16);
  Value *host =
      emitAt(isShared ? "emu_shared_access" : "emu_global_access", b.getPtrTy(),
             {b.CreatePtrToInt(pointer, b.getInt64Ty()), word(size),
              word(alignment), word(flags)});
  instruction.setOperand(operand, host);
  instruction.dropUnknownNonDebugMetadata();
  if (auto *load = dyn_cast<LoadInst>(&instruction))
    load->setAlignment(Align(1));
  else if (auto *store = dyn_cast<StoreInst>(&instruction))
    store->setAlignment(Align(1));
  // Blocks run on one host thread: nothing is really atomic.
  if (auto *load = dyn_cast<LoadInst>(&instruction))
    load->setAtomic(AtomicOrdering::NotAtomic);
  else if (auto *store = dyn_cast<StoreInst>(&instruction))
    store->setAtomic(AtomicOrdering::NotAtomic);
}

void Lowering::lowerCast(AddrSpaceCastInst &cast) {
  unsigned from = cast.getSrcAddressSpace(), to = cast.getDestAddressSpace();
  bool fromShared = from == 3 || from == 7, toShared = to == 3 || to == 7;
  Value *value = b.CreatePtrToInt(cast.getPointerOperand(), b.getInt64Ty());
  if (fromShared != toShared) {
    Value *window = emit("emu_shared_window", b.getInt64Ty(), {});
    value =
        fromShared ? b.CreateAdd(value, window) : b.CreateSub(value, window);
  }
  cast.replaceAllUsesWith(b.CreateIntToPtr(value, cast.getType()));
  cast.eraseFromParent();
}

/// On the host, divisions without a quotient end the process: they divide by 1,
/// and are reported.
void Lowering::lowerDivision(BinaryOperator &op) {
  Value *dividend = op.getOperand(0), *divisor = op.getOperand(1);
  Type *type = op.getType();
  const bool isSigned = op.getOpcode() == Instruction::SDiv ||
                        op.getOpcode() == Instruction::SRem;
  if (auto *number = dyn_cast<ConstantInt>(divisor))
    if (!number->isZero() && !(isSigned && number->isMinusOne()))
      return;
  const unsigned bits = type->getScalarSizeInBits();
  auto any = [&](Value *wrong) {
    return type->isVectorTy() ? b.CreateOrReduce(wrong) : wrong;
  };
  Value *isZero = b.CreateICmpEQ(divisor, Constant::getNullValue(type));
  Value *wrong = isZero;
  Value *what = b.CreateZExt(any(isZero), b.getInt32Ty());
  if (isSigned) {
    Value *tooLarge = b.CreateAnd(
        b.CreateICmpEQ(divisor, Constant::getAllOnesValue(type)),
        b.CreateICmpEQ(dividend,
                       ConstantInt::get(type, APInt::getSignedMinValue(bits))));
    what = b.CreateSelect(any(tooLarge), b.getInt32(2), what);
    wrong = b.CreateOr(wrong, tooLarge);
  }
  beginSite(op, op.getOpcodeName());
  emitAt("emu_division", b.getVoidTy(), {what});
  op.setOperand(1, b.CreateSelect(wrong, ConstantInt::get(type, 1), divisor));
  op.setIsExact(false);
}

void Lowering::instrumentBackEdges() {
  SmallVector<std::pair<const BasicBlock *, const BasicBlock *>, 8> edges;
  FindFunctionBackedges(function, edges);
  SmallPtrSet<const BasicBlock *, 8> seen;
  for (auto &[from, to] : edges) {
    if (!seen.insert(from).second)
      continue;
    auto *terminator = const_cast<Instruction *>(from->getTerminator());
    b.SetInsertPoint(terminator);
    beginSite(*terminator, "loop");
    emitAt("emu_tick", b.getVoidTy(), {});
  }
}

/// Values that may hold a wgmma token are followed through everything that only
/// passes them on; any other use gets the number, or a finding.
void Lowering::instrumentTokenUses() {
  SmallVector<Instruction *, 32> work(tokenSources.begin(), tokenSources.end());
  SmallPtrSet<Instruction *, 32> carriers(tokenSources.begin(),
                                          tokenSources.end());
  auto passesOn = [](Instruction *user, Value *value) {
    if (auto *select = dyn_cast<SelectInst>(user))
      return select->getCondition() != value;
    return isa<PHINode, InsertValueInst, ExtractValueInst, BitCastInst,
               FreezeInst>(user);
  };
  struct Use {
    Instruction *user;
    unsigned operand;
  };
  SmallVector<Use, 32> uses;
  while (!work.empty()) {
    Instruction *carrier = work.pop_back_val();
    for (llvm::Use &use : carrier->uses()) {
      auto *user = cast<Instruction>(use.getUser());
      if (tokenSinks.contains(user))
        continue;
      if (passesOn(user, carrier)) {
        if (carriers.insert(user).second)
          work.push_back(user);
      } else if (!carrier->getType()->isStructTy()) {
        uses.push_back({user, use.getOperandNo()});
      }
    }
  }
  // One look a value and block; uses after it in the block take its result.
  DenseMap<std::pair<Value *, BasicBlock *>, Value *> resolved;
  llvm::sort(uses, [](const Use &a, const Use &b) {
    if (a.user->getParent() != b.user->getParent())
      return a.user->getParent() < b.user->getParent();
    return a.user != b.user ? a.user->comesBefore(b.user)
                            : a.operand < b.operand;
  });
  for (Use &use : uses) {
    Value *value = use.user->getOperand(use.operand);
    if (value->getType()->getPrimitiveSizeInBits() != 32)
      continue;
    Value *&number = resolved[{value, use.user->getParent()}];
    if (!number) {
      b.SetInsertPoint(use.user);
      beginSite(*use.user, use.user->getOpcodeName());
      number = fromBits(emitAt("emu_resolve", b.getInt32Ty(), {toBits(value)}),
                        value->getType());
    }
    use.user->setOperand(use.operand, number);
  }
}
