//===- Compositions.h - Options that do not go together ----------*- C++ -*-==//
#ifndef PREFILL_LIB_DRIVER_COMPOSITIONS_H
#define PREFILL_LIB_DRIVER_COMPOSITIONS_H

#include "prefill/Driver/CompilerOptions.h"

namespace prefill {

/// Reads the options of lossy transforms and refuses pairs that would not mean
/// what either says (docs/RowTransforms.md has the table). False with one line.
bool checkCompositions(const CompilerOptions &options, std::string &error);

/// Fills in what -prune= says of other options: QuickPrefill reads a prompt in
/// chunks. After checkCompositions.
void applyPruning(CompilerOptions &options);

} // namespace prefill

#endif
