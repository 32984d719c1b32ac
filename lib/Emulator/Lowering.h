//===- Lowering.h - From NVVM intrinsics and PTX to runtime calls -*- C++ -*-=//

#ifndef PREFILL_LIB_EMULATOR_LOWERING_H
#define PREFILL_LIB_EMULATOR_LOWERING_H

#include "Machine.h"
#include "Wgmma.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SmallPtrSet.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/Module.h"
#include <deque>

namespace prefill::emu {

/// What the rewritten module needs to be launched.
struct KernelInfo {
  std::vector<uint64_t> paramBytes;
  uint64_t maxThreads = 0; ///< 0: no bound given
  unsigned clusterSize = 1;
};
struct ModuleInfo {
  std::deque<Site> sites;
  std::map<std::string, KernelInfo> kernels;
  uint32_t staticSharedBytes = 0;
  /// Definitions in global and constant memory: name, bytes, constant.
  struct Global {
    std::string name;
    uint64_t bytes;
    bool isConstant;
  };
  std::vector<Global> globals;
};

/// Rewrites an NVPTX module for the host; the entry of kernel K is
/// "emu.entry.K".
llvm::Error rewriteModule(llvm::Module &module, ModuleInfo &info);

/// The rewriting of one function.
class Lowering {
public:
  Lowering(llvm::Function &function, ModuleInfo &info);
  llvm::Error run();

private:
  using Value = llvm::Value;
  using Values = llvm::SmallVector<llvm::Value *, 8>;

  // Lowering.cpp
  void lowerAccess(llvm::Instruction &instruction);
  void lowerCast(llvm::AddrSpaceCastInst &cast);
  void lowerDivision(llvm::BinaryOperator &op);
  llvm::Error lowerMemoryIntrinsic(llvm::CallInst &call);
  llvm::Error lowerCall(llvm::CallInst &call);
  void instrumentBackEdges();
  void instrumentTokenUses();

  // LowerIntrinsics.cpp
  llvm::Error lowerIntrinsic(llvm::CallInst &call, llvm::StringRef name);
  /// Null if `name` is none of these.
  Value *lowerMath(llvm::CallInst &call, llvm::StringRef name);
  /// "tid.x", "laneid"; null if there is none.
  Value *readSpecial(llvm::StringRef name);
  Value *lowerWarpOp(llvm::CallInst &call, llvm::StringRef name);
  Value *lowerMBarrier(llvm::CallInst &call, llvm::StringRef name);
  Value *lowerCopy(llvm::CallInst &call, llvm::StringRef name);

  // LowerPtx.cpp
  friend class PtxLowering;
  llvm::Error lowerAsm(llvm::CallInst &call);

  // Emit.cpp: shared by both.
  Value *emit(llvm::StringRef function, llvm::Type *type,
              llvm::ArrayRef<Value *> operands);
  /// The same with the site first.
  Value *emitAt(llvm::StringRef function, llvm::Type *type,
                llvm::ArrayRef<Value *> operands);
  /// Counts an instruction that needs no call.
  void emitCount();
  Value *sharedAddress(Value *pointer);
  Value *address(Value *pointer);
  Value *toBits(Value *value);
  Value *fromBits(Value *bits, llvm::Type *type);
  Value *toI32(Value *value);
  Value *word(uint64_t value) { return b.getInt32(value); }
  /// Registers through the function's buffer.
  void storeRegister(Value *value, unsigned index);
  Value *loadRegister(unsigned index, bool isToken = false);
  Value *registerBuffer() { return buffer; }
  Values emitMatrixLoad(Value *address, unsigned count, bool transpose);
  void emitMatrixStore(Value *address, llvm::ArrayRef<Value *> registers,
                       bool transpose);
  Values emitProduct(const ProductKind &kind, llvm::ArrayRef<Value *> operands);
  Values emitWgmma(const ProductKind &kind, Value *scaleD,
                   llvm::ArrayRef<Value *> accumulators,
                   llvm::ArrayRef<Value *> a, Value *b);
  Values emitWgmmaWait(Value *pending, llvm::ArrayRef<Value *> registers);
  Value *emitTensorCopy(bool store, Value *shared, Value *map, Value *mbarrier,
                        llvm::ArrayRef<Value *> coordinates);
  Value *packStruct(llvm::Type *type, llvm::ArrayRef<Value *> bits);
  /// Sets the present site.
  void beginSite(llvm::Instruction &at, llvm::StringRef opcode);

  llvm::Function &function;
  llvm::Module &module;
  ModuleInfo &info;
  llvm::IRBuilder<> b;
  Site *site = nullptr;
  Value *buffer = nullptr;
  llvm::DenseMap<const Value *, std::string> places;
  /// Registers of inline assembly.
  llvm::SmallVector<llvm::AllocaInst *, 0> slots;
  /// Registers that may hold wgmma tokens, and stores that may take them.
  llvm::SmallPtrSet<llvm::Instruction *, 32> tokenSources, tokenSinks;
};

/// Element type of a PTX or intrinsic name part; false if it is none.
bool parseElement(llvm::StringRef name, Element &element);
/// Registers of A, B and C that a lane gives to an mma; 0: no such mma.
unsigned countMmaRegisters(const ProductKind &kind);
/// "m64n128k16"
bool parseShape(llvm::StringRef name, ProductKind &kind);

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_LOWERING_H
