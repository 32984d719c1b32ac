//===- Emit.cpp - Calls of the runtime in generated code ------------------===//

#include "Lowering.h"
#include "Product.h"

using namespace llvm;
using namespace prefill::emu;

bool prefill::emu::parseElement(StringRef name, Element &element) {
  static const std::pair<StringRef, Element> elements[] = {
      {"bf16", Element::BF16}, {"f16", Element::F16},   {"tf32", Element::TF32},
      {"e4m3", Element::E4M3}, {"e5m2", Element::E5M2}, {"s8", Element::S8},
      {"u8", Element::U8},     {"s4", Element::S4},     {"u4", Element::U4},
      {"f32", Element::F32},   {"s32", Element::S32}};
  for (auto &[text, value] : elements)
    if (name == text) {
      element = value;
      return true;
    }
  return false;
}

bool prefill::emu::parseShape(StringRef name, ProductKind &kind) {
  return name.consume_front("m") && !name.consumeInteger(10, kind.m) &&
         name.consume_front("n") && !name.consumeInteger(10, kind.n) &&
         name.consume_front("k") && !name.consumeInteger(10, kind.k) &&
         name.empty();
}

unsigned prefill::emu::countMmaRegisters(const ProductKind &kind) {
  unsigned step = 4 * (32 / bitsOfElement(kind.a));
  if (bitsOfElement(kind.a) != bitsOfElement(kind.b) || kind.k % step ||
      kind.k / step > 2)
    return 0;
  return 3 * (kind.k / step) + (kind.accumulator == Element::F16 ? 2 : 4);
}

void Lowering::beginSite(Instruction &at, StringRef opcode) {
  Site &created = info.sites.emplace_back();
  created.opcode = opcode.str();
  std::string where;
  auto name = places.find(&at);
  auto block = places.find(at.getParent());
  if (name != places.end())
    where = name->second;
  if (block != places.end())
    where += (where.empty() ? "block " : " in block ") + block->second;
  if (const DebugLoc &location = at.getDebugLoc())
    where += " (line " + std::to_string(location.getLine()) + ")";
  created.where = where;
  site = &created;
}

Value *Lowering::emit(StringRef name, Type *type, ArrayRef<Value *> operands) {
  SmallVector<Type *, 8> types;
  for (Value *operand : operands)
    types.push_back(operand->getType());
  FunctionCallee callee = module.getOrInsertFunction(
      name, FunctionType::get(type, types, /*isVarArg=*/false));
  return b.CreateCall(callee, operands);
}

Value *Lowering::emitAt(StringRef name, Type *type,
                        ArrayRef<Value *> operands) {
  SmallVector<Value *, 8> all;
  all.push_back(ConstantExpr::getIntToPtr(
      b.getInt64(reinterpret_cast<uintptr_t>(site)), b.getPtrTy()));
  all.append(operands.begin(), operands.end());
  return emit(name, type, all);
}

void Lowering::emitCount() {
  Value *counter = ConstantExpr::getIntToPtr(
      b.getInt64(reinterpret_cast<uintptr_t>(&site->count)), b.getPtrTy());
  Value *count = b.CreateLoad(b.getInt64Ty(), counter);
  b.CreateStore(b.CreateAdd(count, b.getInt64(1)), counter);
}

Value *Lowering::sharedAddress(Value *pointer) {
  Type *type = pointer->getType();
  if (type->isIntegerTy())
    return b.CreateZExtOrTrunc(pointer, b.getInt64Ty());
  Value *address = b.CreatePtrToInt(pointer, b.getInt64Ty());
  if (type->getPointerAddressSpace() == 0)
    address =
        b.CreateSub(address, emit("emu_shared_window", b.getInt64Ty(), {}));
  return address;
}

Value *Lowering::address(Value *pointer) {
  Type *type = pointer->getType();
  if (type->isIntegerTy())
    return b.CreateZExtOrTrunc(pointer, b.getInt64Ty());
  return b.CreatePtrToInt(pointer, b.getInt64Ty());
}

Value *Lowering::toBits(Value *value) {
  Type *type = value->getType();
  if (type->isPointerTy())
    return b.CreatePtrToInt(value, b.getInt64Ty());
  unsigned bits = type->getPrimitiveSizeInBits();
  if (!type->isIntegerTy())
    value = b.CreateBitCast(value, b.getIntNTy(bits));
  return bits < 32 ? b.CreateZExt(value, b.getInt32Ty()) : value;
}

Value *Lowering::fromBits(Value *bits, Type *type) {
  if (type->isPointerTy())
    return b.CreateIntToPtr(b.CreateZExtOrTrunc(bits, b.getInt64Ty()), type);
  unsigned size = type->getPrimitiveSizeInBits();
  bits = b.CreateZExtOrTrunc(bits, b.getIntNTy(size));
  return type->isIntegerTy() ? bits : b.CreateBitCast(bits, type);
}

Value *Lowering::toI32(Value *value) {
  return b.CreateZExtOrTrunc(toBits(value), b.getInt32Ty());
}

void Lowering::storeRegister(Value *value, unsigned index) {
  // Undefined registers need not be written.
  if (isa<UndefValue>(value))
    return;
  Value *slot = b.CreateConstInBoundsGEP1_32(b.getInt32Ty(), buffer, index);
  tokenSinks.insert(b.CreateStore(value, slot));
}

Value *Lowering::loadRegister(unsigned index, bool isToken) {
  Value *slot = b.CreateConstInBoundsGEP1_32(b.getInt32Ty(), buffer, index);
  LoadInst *load = b.CreateLoad(b.getInt32Ty(), slot);
  if (isToken)
    tokenSources.insert(load);
  return load;
}

Value *Lowering::packStruct(Type *type, ArrayRef<Value *> bits) {
  auto *structure = dyn_cast<StructType>(type);
  if (!structure)
    return fromBits(bits[0], type);
  Value *result = PoisonValue::get(type);
  for (unsigned i = 0; i < structure->getNumElements(); ++i)
    result = b.CreateInsertValue(
        result, fromBits(bits[i], structure->getElementType(i)), i);
  return result;
}

Lowering::Values Lowering::emitMatrixLoad(Value *pointer, unsigned count,
                                          bool transpose) {
  emitAt("emu_ldmatrix", b.getVoidTy(),
         {sharedAddress(pointer), word(count), word(transpose), buffer});
  Values results;
  for (unsigned i = 0; i < count; ++i)
    results.push_back(loadRegister(i));
  return results;
}

void Lowering::emitMatrixStore(Value *pointer, ArrayRef<Value *> registers,
                               bool transpose) {
  for (unsigned i = 0; i < registers.size(); ++i)
    storeRegister(toBits(registers[i]), i);
  emitAt("emu_stmatrix", b.getVoidTy(),
         {sharedAddress(pointer), word(registers.size()), word(transpose),
          buffer});
}

Lowering::Values Lowering::emitProduct(const ProductKind &kind,
                                       ArrayRef<Value *> operands) {
  for (unsigned i = 0; i < operands.size(); ++i)
    storeRegister(toBits(operands[i]), i);
  emitAt("emu_mma", b.getVoidTy(), {b.getInt64(kind.encode()), buffer});
  Values results;
  for (unsigned i = 0; i < (kind.accumulator == Element::F16 ? 2 : 4); ++i)
    results.push_back(loadRegister(i));
  return results;
}

Lowering::Values Lowering::emitWgmma(const ProductKind &kind, Value *scaleD,
                                     ArrayRef<Value *> accumulators,
                                     ArrayRef<Value *> a, Value *descriptorB) {
  for (unsigned i = 0; i < accumulators.size(); ++i)
    storeRegister(accumulators[i], i);
  Value *descriptorA = b.getInt64(0);
  if (kind.fromRegisters)
    for (unsigned i = 0; i < a.size(); ++i)
      storeRegister(toBits(a[i]), Accumulators::kRegisters + i);
  else
    descriptorA = a[0];
  emitAt("emu_wgmma", b.getVoidTy(),
         {b.getInt64(kind.encode()), scaleD, buffer, descriptorA, descriptorB});
  Values results;
  for (unsigned i = 0; i < accumulators.size(); ++i)
    results.push_back(loadRegister(i, /*isToken=*/true));
  return results;
}

Lowering::Values Lowering::emitWgmmaWait(Value *pending,
                                         ArrayRef<Value *> registers) {
  Values results;
  // After wait_group 0 nothing is pending.
  auto *constant = dyn_cast<ConstantInt>(pending);
  bool isToken = !constant || !constant->isZero();
  // The buffer holds 160 words; more are waited for in pieces.
  size_t done = 0;
  do {
    size_t count = std::min<size_t>(128, registers.size() - done);
    for (size_t i = 0; i < count; ++i)
      storeRegister(registers[done + i], i);
    emitAt("emu_wgmma_wait", b.getVoidTy(), {pending, buffer, word(count)});
    for (size_t i = 0; i < count; ++i)
      results.push_back(loadRegister(i, isToken));
    done += count;
  } while (done < registers.size());
  return results;
}

Value *Lowering::emitTensorCopy(bool store, Value *shared, Value *map,
                                Value *mbarrier,
                                ArrayRef<Value *> coordinates) {
  for (unsigned i = 0; i < coordinates.size(); ++i)
    storeRegister(toI32(coordinates[i]), i);
  Value *mapPointer = b.CreateIntToPtr(address(map), b.getPtrTy());
  if (store)
    return emitAt(
        "emu_tensor_store", b.getVoidTy(),
        {sharedAddress(shared), mapPointer, word(coordinates.size()), buffer});
  return emitAt("emu_tensor_load", b.getVoidTy(),
                {sharedAddress(shared), sharedAddress(mbarrier), mapPointer,
                 word(coordinates.size()), buffer});
}
