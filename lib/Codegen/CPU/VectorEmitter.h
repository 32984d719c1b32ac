//===- VectorEmitter.h - Small pieces of vector code ------------*- C++ -*-===//
//
// Addresses, loads, conversions and elementary functions on vectors of fp32, as
// the CPU lowering needs them.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_CODEGEN_CPU_VECTOREMITTER_H
#define PREFILL_CODEGEN_CPU_VECTOREMITTER_H

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/Builders.h"
#include "prefill/Codegen/CPU.h"

namespace prefill {

class VectorEmitter {
public:
  VectorEmitter(mlir::OpBuilder &builder, mlir::Location loc,
                const CpuTarget &target)
      : b(builder), loc(loc), target(target) {}

  mlir::OpBuilder &b;
  mlir::Location loc;
  const CpuTarget &target;

  //===--- Types and constants
  //----------------------------------------------===//
  mlir::Type i64() { return b.getI64Type(); }
  mlir::Type ptr();
  mlir::VectorType vector(mlir::Type element, int64_t width = 0) {
    return mlir::VectorType::get({width ? width : target.lanes}, element);
  }
  mlir::VectorType floats(int64_t width = 0) {
    return vector(b.getF32Type(), width);
  }
  mlir::Value integer(int64_t value);
  mlir::Value number(float value);
  /// A vector of equal floats or integers.
  mlir::Value splat(float value, int64_t width = 0);
  mlir::Value splatBits(int64_t bits, int64_t width = 0);

  //===--- Integers and addresses
  //-------------------------------------------===//
  mlir::Value add(mlir::Value x, mlir::Value y);
  mlir::Value add(mlir::Value x, int64_t y);
  mlir::Value mul(mlir::Value x, int64_t y);
  mlir::Value less(mlir::Value x, mlir::Value y);
  mlir::Value select(mlir::Value condition, mlir::Value x, mlir::Value y);
  /// base + bytes.
  mlir::Value at(mlir::Value base, mlir::Value bytes);
  mlir::Value at(mlir::Value base, int64_t bytes);

  //===--- Memory
  //-----------------------------------------------------------===//
  mlir::Value load(mlir::Type type, mlir::Value address, int64_t align = 0);
  void store(mlir::Value value, mlir::Value address, int64_t align = 0);
  /// Asks for memory to be brought into the second-level cache; it need not
  /// exist.
  void prefetch(mlir::Value address, int64_t bytes);
  mlir::Value broadcast(mlir::Value scalar, int64_t width = 0);
  /// `width` elements of a storage type, as fp32.
  mlir::Value loadFloats(mlir::Type storage, mlir::Value address,
                         int64_t width);
  /// fp32 numbers, rounded to nearest even, as a storage type.
  void storeFloats(mlir::Value value, mlir::Type storage, mlir::Value address);
  /// One element of a storage type as fp32.
  mlir::Value loadFloat(mlir::Type storage, mlir::Value address);

  //===--- Arithmetic
  //-------------------------------------------------------===//
  mlir::Value fma(mlir::Value x, mlir::Value y, mlir::Value z);
  /// The larger (smaller) one; y when either is NaN: one instruction.
  mlir::Value largerOf(mlir::Value x, mlir::Value y);
  mlir::Value smallerOf(mlir::Value x, mlir::Value y);
  /// Error below 2 ulp; 0 below 2^-126.5, inf from 2^128, NaN for NaN.
  mlir::Value exp2(mlir::Value x);
  /// Error below 1e-7 absolute; NaN for NaN.
  mlir::Value tanh(mlir::Value x);
  /// For positive normal numbers; -inf for 0, NaN for NaN.
  mlir::Value log2(mlir::Value x);

  //===--- Rearrangement
  //----------------------------------------------------===//
  /// The first `width` elements, or the vector extended by unspecified ones.
  mlir::Value resize(mlir::Value value, int64_t width);
  /// Transposes a square of target.lanes vectors in place.
  void transpose(llvm::MutableArrayRef<mlir::Value> rows);

private:
  mlir::Value shuffle(mlir::Value x, mlir::Value y,
                      llvm::ArrayRef<int64_t> mask);
  mlir::Value exp2ByScale(mlir::Value x);
  mlir::Value bits(mlir::Value x);     ///< fp32 vector as i32 vector
  mlir::Value floatsOf(mlir::Value x); ///< i32 vector as fp32 vector
  mlir::Value roundToHalf(mlir::Value x);
  mlir::Value roundToBFloat(mlir::Value x);
};

} // namespace prefill

#endif
