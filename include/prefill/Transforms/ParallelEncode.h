//===- ParallelEncode.h - What -parallel-encode= says ------------*- C++ -*-==//
//
// Adaptive parallel encoding (APE, arXiv:2502.05431): contexts are encoded
// independently of one another and read by a second softmax; lossy.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_TRANSFORMS_PARALLELENCODE_H
#define PREFILL_TRANSFORMS_PARALLELENCODE_H

#include "llvm/ADT/StringRef.h"

#include <string>

namespace prefill {

/// -parallel-encode=ape:T=0.9,S=0.9.
struct ParallelEncodeSpec {
  /// T: scores of the contexts' keys are divided by it. S: their log-sum-exp
  /// counts S T times. Both from 0.001 to 1000.
  double temperature = 0.9, scale = 0.9;
};

/// Reads the text after `-parallel-encode=`. False with one line in `error`.
bool parseParallelEncode(llvm::StringRef text, ParallelEncodeSpec &spec,
                         std::string &error);

} // namespace prefill

#endif
