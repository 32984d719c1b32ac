//===- KernelSpec.cpp - Telling kernels apart -----------------------------===//

#include "prefill/Codegen/KernelSpec.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/xxhash.h"

#include <type_traits>

using namespace prefill;

/// Appends the bytes of every field.
template <typename Tuple>
static void append(std::string &bytes, const Tuple &fields) {
  auto one = [&](auto field) {
    static_assert(std::is_arithmetic_v<decltype(field)> ||
                  std::is_enum_v<decltype(field)>);
    bytes.append(reinterpret_cast<const char *>(&field), sizeof(field));
  };
  std::apply([&](const auto &...field) { (one(field), ...); }, fields);
}

uint64_t KernelSpec::digest() const {
  std::string bytes;
  append(bytes, fields());
  for (const HeadPlan &head : heads)
    append(bytes, head.fields());
  return llvm::xxh3_64bits(llvm::StringRef(bytes));
}
