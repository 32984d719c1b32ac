//===- LowerPtx.cpp - Inline assembly, instruction by instruction ---------===//

#include "Lowering.h"
#include "PtxLowering.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/Transforms/Utils/BasicBlockUtils.h"

using namespace llvm;
using namespace prefill::emu;

Error Lowering::lowerAsm(CallInst &call) {
  auto &assembly = *cast<InlineAsm>(call.getCalledOperand());
  auto statements = parsePtx(assembly.getAsmString());
  if (!statements)
    return statements.takeError();
  return PtxLowering(*this, call, *statements).run();
}

PtxLowering::PtxLowering(Lowering &lowering, CallInst &call,
                         const std::vector<PtxStatement> &statements)
    : l(lowering), b(lowering.b), call(call), statements(statements) {}

Error PtxLowering::fail(const Twine &what) {
  return createStringError("the emulator does not know the PTX " + what +
                           " in '" + l.function.getName() + "'");
}

/// A register lives in a slot of the entry block; mem2reg makes values of them.
AllocaInst *PtxLowering::slot(Type *type) {
  IRBuilder<> entry(&*l.function.getEntryBlock().getFirstInsertionPt());
  l.slots.push_back(entry.CreateAlloca(type));
  return l.slots.back();
}

Error PtxLowering::bindArguments() {
  auto &assembly = *cast<InlineAsm>(call.getCalledOperand());
  Type *type = call.getType();
  auto *structure = dyn_cast<StructType>(type);
  unsigned input = 0, output = 0;
  for (const InlineAsm::ConstraintInfo &info : assembly.ParseConstraints()) {
    if (info.Type == InlineAsm::isClobber)
      continue;
    if (info.isIndirect)
      return fail("operand constraint '*'");
    if (info.Type == InlineAsm::isOutput) {
      Type *result = structure ? structure->getElementType(output) : type;
      ++output;
      arguments.push_back({slot(result), nullptr});
      outputs.push_back(arguments.back().slot);
      continue;
    }
    Value *value = call.getArgOperand(input++);
    if (info.hasMatchingInput() || info.Codes.empty() ||
        !isDigit(info.Codes[0][0])) {
      arguments.push_back({nullptr, value});
      continue;
    }
    // Tied: the same register as that output.
    unsigned tied;
    if (StringRef(info.Codes[0]).getAsInteger(10, tied) ||
        tied >= arguments.size() || !arguments[tied].slot)
      return fail("operand constraint '" + info.Codes[0] + "'");
    AllocaInst *shared = arguments[tied].slot;
    if (value->getType() != shared->getAllocatedType())
      return fail("tied operand of another type");
    b.CreateStore(value, shared);
    arguments.push_back({shared, nullptr});
  }
  return Error::success();
}

Error PtxLowering::run() {
  b.SetInsertPoint(&call);
  if (Error error = bindArguments())
    return error;
  // Control flow only where there is some.
  BasicBlock *after = nullptr;
  branches = any_of(statements, [](const PtxStatement &statement) {
    return statement.kind == PtxStatement::Label || statement.guarded;
  });
  if (branches) {
    BasicBlock *before = call.getParent();
    after = SplitBlock(before, &call);
    l.places[after] = l.places[before];
    before->getTerminator()->eraseFromParent();
    b.SetInsertPoint(before);
    for (const PtxStatement &statement : statements)
      if (statement.kind == PtxStatement::Label)
        labels[statement.opcode] =
            BasicBlock::Create(b.getContext(), "", &l.function, after);
  }
  for (const PtxStatement &statement : statements)
    if (Error error = lower(statement))
      return error;
  if (branches) {
    if (!b.GetInsertBlock()->getTerminator())
      b.CreateBr(after);
    b.SetInsertPoint(&call);
  }
  // Results.
  if (!outputs.empty()) {
    Value *result;
    if (auto *structure = dyn_cast<StructType>(call.getType())) {
      result = PoisonValue::get(structure);
      for (unsigned i = 0; i < outputs.size(); ++i)
        result = b.CreateInsertValue(result, load(outputs[i]), i);
    } else {
      result = load(outputs[0]);
    }
    call.replaceAllUsesWith(result);
  }
  call.eraseFromParent();
  return Error::success();
}

Value *PtxLowering::load(AllocaInst *from) {
  return b.CreateLoad(from->getAllocatedType(), from);
}

Value *PtxLowering::read(const PtxOperand &operand) {
  switch (operand.kind) {
  case PtxOperand::Integer:
    return b.getInt64(operand.number);
  case PtxOperand::Float:
    return b.getInt32(operand.number);
  case PtxOperand::Argument: {
    if (size_t(operand.number) >= arguments.size())
      return nullptr;
    const Argument &argument = arguments[operand.number];
    return argument.slot ? load(argument.slot) : argument.value;
  }
  case PtxOperand::Register: {
    auto found = registers.find(operand.name);
    if (found != registers.end())
      return load(found->second);
    StringRef name = operand.name;
    if (name.consume_front("%"))
      if (Value *special = l.readSpecial(name))
        return special;
    return nullptr;
  }
  default:
    return nullptr;
  }
}

Value *PtxLowering::bits(const PtxOperand &operand, unsigned width) {
  Value *value = read(operand);
  if (!value)
    return nullptr;
  value = l.toBits(value);
  Value *cast = b.CreateZExtOrTrunc(value, b.getIntNTy(width));
  return cast;
}

Value *PtxLowering::predicate(const PtxOperand &operand) {
  Value *value = read(operand);
  if (!value)
    return nullptr;
  if (!value->getType()->isIntegerTy(1))
    value = b.CreateIsNotNull(l.toBits(value));
  return operand.negated ? b.CreateNot(value) : value;
}

Value *PtxLowering::real(const PtxOperand &operand) {
  Value *value = bits(operand, 32);
  return value ? b.CreateBitCast(value, b.getFloatTy()) : nullptr;
}

bool PtxLowering::write(const PtxOperand &operand, Value *value) {
  AllocaInst *to = nullptr;
  if (operand.kind == PtxOperand::Sink)
    return true;
  if (operand.kind == PtxOperand::Argument &&
      size_t(operand.number) < arguments.size())
    to = arguments[operand.number].slot;
  auto found = registers.find(operand.name);
  if (operand.kind == PtxOperand::Register && found != registers.end())
    to = found->second;
  if (!to)
    return false;
  Type *type = to->getAllocatedType();
  if (value->getType() != type)
    value = l.fromBits(l.toBits(value), type);
  b.CreateStore(value, to);
  return true;
}

Error PtxLowering::lower(const PtxStatement &statement) {
  if (statement.kind == PtxStatement::Declaration) {
    Type *type =
        StringSwitch<Type *>(statement.opcode)
            .Case("pred", b.getInt1Ty())
            .Cases({"b16", "u16", "s16", "f16"}, b.getInt16Ty())
            .Cases({"b32", "u32", "s32", "f32", "f16x2"}, b.getInt32Ty())
            .Cases({"b64", "u64", "s64", "f64"}, b.getInt64Ty())
            .Default(nullptr);
    if (!type)
      return fail("register type '." + statement.opcode + "'");
    for (const std::string &name : statement.declared)
      registers[name] = slot(type);
    return Error::success();
  }
  if (statement.kind == PtxStatement::Label) {
    BasicBlock *target = labels[statement.opcode];
    if (!b.GetInsertBlock()->getTerminator())
      b.CreateBr(target);
    b.SetInsertPoint(target);
    return Error::success();
  }
  // What follows a branch that is always taken.
  if (branches && b.GetInsertBlock()->getTerminator())
    b.SetInsertPoint(
        BasicBlock::Create(b.getContext(), "", &l.function, nullptr));
  if (statement.parts[0] == "bra")
    return lowerBranch(statement);
  BasicBlock *next = nullptr;
  if (statement.guarded) {
    Value *condition = predicate(statement.guard);
    if (!condition)
      return fail("predicate '" + statement.guard.name + "'");
    BasicBlock *then = BasicBlock::Create(b.getContext(), "", &l.function);
    next = BasicBlock::Create(b.getContext(), "", &l.function);
    b.CreateCondBr(condition, then, next);
    b.SetInsertPoint(then);
  }
  l.beginSite(call, statement.opcode);
  if (!lowerInstruction(statement))
    return fail("instruction '" + statement.opcode + "'");
  if (next) {
    b.CreateBr(next);
    b.SetInsertPoint(next);
  }
  return Error::success();
}

Error PtxLowering::lowerBranch(const PtxStatement &statement) {
  auto target = statement.operands.size() == 1
                    ? labels.find(statement.operands[0].name)
                    : labels.end();
  if (target == labels.end())
    return fail("branch to an unknown label");
  if (!statement.guarded) {
    b.CreateBr(target->second);
    return Error::success();
  }
  Value *condition = predicate(statement.guard);
  if (!condition)
    return fail("predicate '" + statement.guard.name + "'");
  BasicBlock *next = BasicBlock::Create(b.getContext(), "", &l.function);
  b.CreateCondBr(condition, target->second, next);
  b.SetInsertPoint(next);
  return Error::success();
}
