//===- SpillTest.cpp - Register tiles stay in registers -------------------===//
//
// A register tile that does not fit costs half of the speed and breaks nothing
// else, so nothing but the assembly tells.
//
//===----------------------------------------------------------------------===//

#include "prefill/Codegen/Emit.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringRef.h"
#include "gtest/gtest.h"
#include <string>
#include <vector>

using namespace prefill;
using llvm::StringRef;

namespace {

/// A stretch of code without labels or branches.
struct BasicBlock {
  std::string label;
  int products = 0, stackAccesses = 0;
  bool isLoop = false, hasShift = false;
};

std::vector<BasicBlock> splitIntoBlocks(StringRef assembly) {
  std::vector<BasicBlock> blocks(1);
  while (!assembly.empty()) {
    auto [line, rest] = assembly.split('\n');
    assembly = rest;
    line = line.trim();
    if (line.empty() || line.starts_with("#") ||
        (line.starts_with(".") && !line.ends_with(":")))
      continue;
    if (line.ends_with(":")) {
      blocks.emplace_back();
      blocks.back().label = line.drop_back().str();
      continue;
    }
    BasicBlock &block = blocks.back();
    StringRef name = line.take_until(llvm::isSpace);
    if (name.starts_with("vfmadd") || name == "mulps" || name == "vmulps")
      ++block.products;
    block.hasShift |= name == "pslld" || name == "vpslld";
    if (line.contains("mm") && line.contains("(%rsp"))
      ++block.stackAccesses;
    if (name.starts_with("j")) {
      block.isLoop = line.ends_with(block.label) && !block.label.empty();
      blocks.emplace_back();
    }
  }
  return blocks;
}

/// Reduction loops of the matrix products. The loops with exponentials, which
/// shift, also have many products; they may keep constants in memory.
std::vector<BasicBlock> hotLoops(StringRef assembly) {
  std::vector<BasicBlock> hot;
  for (BasicBlock &block : splitIntoBlocks(assembly))
    if (block.isLoop && block.products >= 8 && !block.hasShift)
      hot.push_back(block);
  return hot;
}

std::string compile(const KernelSpec &spec, const CpuTarget &target) {
  EmittedKernel kernel;
  std::string error;
  EXPECT_TRUE(emitKernel(spec, KernelKind::Attention, target,
                         /*wantText=*/true, kernel, error))
      << error;
  return kernel.assembly;
}

TEST(Spills, NoneInReductionLoops) {
  for (DType type : {DType::F32, DType::F16, DType::BF16})
    for (int32_t d : {64, 80, 96, 128, 256})
      for (int level : {2, 3, 4}) {
        if (type != DType::F32 && d != 64)
          continue;
        KernelSpec spec;
        spec.dtype = type;
        spec.headDim = spec.vHeadDim = d;
        spec.causal = true;
        CpuTarget target = *getCpuTarget(level);
        std::vector<BasicBlock> hot = hotLoops(compile(spec, target));
        // Scores and outputs, at least.
        EXPECT_GE(hot.size(), 2u) << "d " << d << ", v" << level;
        int largest = 0;
        for (const BasicBlock &block : hot) {
          EXPECT_EQ(block.stackAccesses, 0)
              << "d " << d << ", v" << level << ", " << block.label;
          largest = std::max(largest, block.products);
        }
        EXPECT_EQ(largest, target.tileRows * target.tileVectors);
      }
}

TEST(Spills, TheTestSeesThem) {
  // 8 x 4 accumulators do not fit into 32 registers.
  KernelSpec spec;
  CpuTarget target = *getCpuTarget(4);
  target.tileRows = 8;
  int accesses = 0;
  for (const BasicBlock &block : hotLoops(compile(spec, target)))
    accesses += block.stackAccesses;
  EXPECT_GT(accesses, 0);
}

} // namespace
