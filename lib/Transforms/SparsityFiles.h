//===- SparsityFiles.h - Kinds of configuration files ------------*- C++ -*-==//
#ifndef PREFILL_LIB_TRANSFORMS_SPARSITYFILES_H
#define PREFILL_LIB_TRANSFORMS_SPARSITYFILES_H

#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/Support/JSON.h"

namespace prefill {

/// What MInference does for a head that its list does not name:
/// vertical-slash with 1000 columns and 6096 diagonals.
HeadPlan minferenceFallback();

/// One layer's `{"0": head, "1": head, ...}`; a head is MInference's list or an
/// object of ours.
bool parseHeads(const llvm::json::Object &heads, SparsityConfig::Layer &layer,
                std::string &error);

/// JSON of other projects than MInference. None: `root` is no such file; false:
/// it is, but `error`.
std::optional<bool> parseForeign(const llvm::json::Value &root,
                                 SparsityConfig &config, std::string &error);

/// DuoAttention's full_attention_heads.tsv: a line per layer, a number in
/// [0, 1] per KV head. The lowest share `sparsity` of all heads get
/// `streaming`, the others `rest`, as do all query heads of their groups.
bool parseDuoHeads(llvm::StringRef text, double sparsity,
                   const HeadPlan &streaming, const HeadPlan &rest,
                   SparsityConfig &config, std::string &error);

} // namespace prefill

#endif
