//===- Kernels.h - Small kernels as text, and numbers for them --*- C++ -*-===//

#ifndef PREFILL_UNITTESTS_EMULATOR_KERNELS_H
#define PREFILL_UNITTESTS_EMULATOR_KERNELS_H

#include "prefill/Emulator/Emulator.h"
#include "llvm/ADT/APFloat.h"
#include "llvm/AsmParser/Parser.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/raw_ostream.h"
#include "gtest/gtest.h"
#include <random>

namespace prefill::emu {

inline std::unique_ptr<Program> compileText(const std::string &text) {
  llvm::LLVMContext context;
  llvm::SMDiagnostic diagnostic;
  auto module = llvm::parseAssemblyString(
      "target triple = \"nvptx64-nvidia-cuda\"\n" + text, diagnostic, context);
  if (!module) {
    std::string message;
    llvm::raw_string_ostream os(message);
    diagnostic.print("kernel", os);
    ADD_FAILURE() << message;
    return nullptr;
  }
  auto program = Program::compile(*module);
  if (!program) {
    ADD_FAILURE() << llvm::toString(program.takeError());
    return nullptr;
  }
  return std::move(*program);
}

/// A type of matrix elements: its PTX name, and the bits of a number.
struct ElementType {
  std::string name;
  unsigned bits;
  bool isInteger = false;

  uint32_t encode(double value) const {
    if (isInteger)
      return uint32_t(int32_t(value)) & (bits == 32 ? ~0u : (1u << bits) - 1);
    using llvm::APFloat;
    const llvm::fltSemantics &semantics =
        name == "bf16"   ? APFloat::BFloat()
        : name == "f16"  ? APFloat::IEEEhalf()
        : name == "e4m3" ? APFloat::Float8E4M3FN()
        : name == "e5m2" ? APFloat::Float8E5M2()
                         : APFloat::IEEEsingle();
    APFloat number(value);
    bool lossy;
    number.convert(semantics, APFloat::rmNearestTiesToEven, &lossy);
    return number.bitcastToAPInt().getZExtValue();
  }
};

/// Numbers that every type holds exactly, with exact sums: multiples of 1/2 (1
/// for integers) up to 3 in magnitude.
struct Matrix {
  unsigned rows, columns;
  std::vector<double> values;

  Matrix(unsigned rows, unsigned columns, unsigned seed,
         const ElementType &type)
      : rows(rows), columns(columns), values(rows * columns) {
    std::mt19937 generator(seed);
    bool isUnsigned = type.name[0] == 'u';
    for (double &value : values) {
      int number = int(generator() % 13) - 6;
      value =
          type.isInteger ? (isUnsigned ? number + 6 : number) : number / 2.0;
    }
  }
  double at(unsigned row, unsigned column) const {
    return values[row * columns + column];
  }
};

/// `count` values "PREFIX0, PREFIX1, ..".
inline std::string list(const std::string &prefix, unsigned first,
                        unsigned count) {
  std::string text;
  for (unsigned i = 0; i < count; ++i)
    text += (i ? ", " : "") + prefix + std::to_string(first + i);
  return text;
}

inline std::string repeat(const std::string &text, unsigned count,
                          const std::string &separator = ", ") {
  std::string result;
  for (unsigned i = 0; i < count; ++i)
    result += (i ? separator : "") + text;
  return result;
}

} // namespace prefill::emu

#endif // PREFILL_UNITTESTS_EMULATOR_KERNELS_H
