//===- PtxLowering.h - Inline assembly to runtime calls ---------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_PTXLOWERING_H
#define PREFILL_LIB_EMULATOR_PTXLOWERING_H

#include "Lowering.h"
#include "PtxParser.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSwitch.h"

namespace prefill::emu {

/// One inline assembly.
class PtxLowering {
public:
  PtxLowering(Lowering &lowering, llvm::CallInst &call,
              const std::vector<PtxStatement> &statements);
  llvm::Error run();

private:
  using Value = llvm::Value;
  struct Argument {
    llvm::AllocaInst *slot; ///< outputs and what is tied to one
    Value *value;
  };

  llvm::Error fail(const llvm::Twine &what);
  llvm::Error bindArguments();
  llvm::Error lower(const PtxStatement &statement);
  llvm::Error lowerBranch(const PtxStatement &statement);
  llvm::AllocaInst *slot(llvm::Type *type);
  Value *load(llvm::AllocaInst *from);

  // Operands; null or false if there is no such thing.
  Value *read(const PtxOperand &operand);
  Value *bits(const PtxOperand &operand, unsigned width);
  Value *predicate(const PtxOperand &operand);
  Value *real(const PtxOperand &operand);
  /// Address in a memory operand.
  Value *memory(const PtxOperand &operand);
  bool write(const PtxOperand &operand, Value *value);

  // PtxInstructions.cpp
  bool lowerInstruction(const PtxStatement &statement);
  bool lowerArithmetic(const PtxStatement &statement);
  bool lowerFloat(const PtxStatement &statement);
  bool lowerMemory(const PtxStatement &statement);
  bool lowerWarp(const PtxStatement &statement);
  bool lowerProducts(const PtxStatement &statement);
  bool lowerMBarrier(const PtxStatement &statement);
  bool lowerCopies(const PtxStatement &statement);

  Lowering &l;
  llvm::IRBuilder<> &b;
  llvm::CallInst &call;
  const std::vector<PtxStatement> &statements;
  llvm::SmallVector<Argument, 16> arguments;
  llvm::SmallVector<llvm::AllocaInst *, 16> outputs;
  llvm::StringMap<llvm::AllocaInst *> registers;
  llvm::StringMap<llvm::BasicBlock *> labels;
  /// It has labels or predicates, and so blocks of its own.
  bool branches = false;
};

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_PTXLOWERING_H
