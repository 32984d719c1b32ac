//===- PtxParser.h - PTX statements of inline assembly ----------*- C++ -*-===//

#ifndef PREFILL_LIB_EMULATOR_PTXPARSER_H
#define PREFILL_LIB_EMULATOR_PTXPARSER_H

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include <string>
#include <vector>

namespace prefill::emu {

struct PtxOperand {
  enum Kind {
    Register, ///< `name`
    Argument, ///< $number of the assembly
    Integer,  ///< `number`
    Float,    ///< 0f3F800000, its bits in `number`
    Vector,   ///< {parts}
    Memory,   ///< [parts[0] + number], further parts as in [map, {x, y}]
    Pair,     ///< parts[0] | parts[1]
    Sink,     ///< _
  } kind = Register;
  std::string name;
  int64_t number = 0;
  bool negated = false; ///< !p
  std::vector<PtxOperand> parts;
};

struct PtxStatement {
  enum Kind { Instruction, Label, Declaration } kind = Instruction;
  /// Mnemonic with its modifiers, label, or type (".b32") of a declaration.
  std::string opcode;
  llvm::SmallVector<std::string, 8> parts; ///< the mnemonic at its dots
  bool guarded = false;
  PtxOperand guard;
  std::vector<PtxOperand> operands;
  std::vector<std::string> declared;

  bool has(llvm::StringRef modifier) const {
    for (const std::string &part : parts)
      if (part == modifier)
        return true;
    return false;
  }
};

/// Parses the template of an inline assembly ($0, $1: arguments).
llvm::Expected<std::vector<PtxStatement>> parsePtx(llvm::StringRef text);

} // namespace prefill::emu

#endif // PREFILL_LIB_EMULATOR_PTXPARSER_H
