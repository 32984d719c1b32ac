//===- WgmmaTest.cpp - TMA and wgmma against products in float64 ----------===//
///
/// Operands come by TMA from row-major matrices, so that the swizzle of the
/// copy and the one of the descriptors check each other.
//===----------------------------------------------------------------------===//

#include "Kernels.h"

using namespace prefill::emu;

namespace {
struct Case {
  const char *name;
  ElementType type;
  unsigned n;
  unsigned swizzle; ///< bytes; also the width of a tile's row (16 without)
  bool transposedB = false, fromRegisters = false;
};
class Wgmma : public testing::TestWithParam<Case> {};

/// The kernel k(map A, map B, A registers, out) of a case.
class Generator {
public:
  explicit Generator(const Case &test) : test(test) {
    depth = 32 / (test.type.bits / 8);
    unsigned row = test.swizzle ? test.swizzle : 128;
    k = row * 8 / test.type.bits;
    steps = k / depth;
    sizeA = 64 * row;
    sizeB = test.n * row;
    integer = test.type.isInteger;
    accumulators = test.n / 2;
  }
  std::string run();

  unsigned k, depth, steps, sizeA, sizeB, accumulators;
  bool integer;

private:
  std::string load(const char *map, unsigned to, unsigned column,
                   unsigned row) {
    std::string n = std::to_string(next++);
    return "%p" + n + " = getelementptr i8, ptr addrspace(3) @smem, i32 " +
           std::to_string(to) + "\n%c" + n +
           " = addrspacecast ptr addrspace(3) %p" + n +
           " to ptr addrspace(7)\n"
           "call void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d("
           "ptr addrspace(7) %c" +
           n + ", ptr addrspace(3) %bar, ptr " + map + ", i32 " +
           std::to_string(column) + ", i32 " + std::to_string(row) +
           ", i16 0, i64 0, i1 false, i1 false, i32 0)\n";
  }
  std::string loads();
  uint64_t descriptor(unsigned to, bool transposed, unsigned rows,
                      unsigned step) const;

  const Case &test;
  unsigned next = 0;
};
} // namespace

std::string Generator::loads() {
  std::string text;
  unsigned elements16 = 128 / test.type.bits;
  if (!test.swizzle) {
    // Columns of core matrices, 16 bytes wide.
    for (unsigned i = 0; i < k / elements16; ++i)
      text += load("%a", i * 64 * 16, i * elements16, 0) +
              load("%b", sizeA + i * test.n * 16, i * elements16, 0);
    return text;
  }
  text += load("%a", 0, 0, 0);
  if (!test.transposedB)
    return text + load("%b", sizeA, 0, 0);
  for (unsigned i = 0; i < test.n / k; ++i)
    text += load("%b", sizeA + i * k * test.swizzle, i * k, 0);
  return text;
}

uint64_t Generator::descriptor(unsigned to, bool transposed, unsigned rows,
                               unsigned step) const {
  uint64_t start = 1024 + to, leading = 16, stride = 8 * test.swizzle;
  uint64_t mode = test.swizzle == 128  ? 1
                  : test.swizzle == 64 ? 2
                  : test.swizzle       ? 3
                                       : 0;
  if (!test.swizzle) {
    leading = rows * 16;
    stride = 128;
    start += step * 2 * leading;
  } else if (transposed) {
    leading = k * test.swizzle;
    start += step * depth * test.swizzle;
  } else {
    start += step * 32;
  }
  return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62;
}

std::string Generator::run() {
  std::string type = integer ? "i32" : "float", code = integer ? "r" : "f";
  std::string all = "{" + repeat(type, accumulators) + "}";
  unsigned n = accumulators, bar = sizeA + sizeB;
  std::string text =
      "@smem = external addrspace(3) global [0 x i8], align 1024\n"
      "declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()\n"
      "declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)\n"
      "declare void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3), i32)\n"
      "declare i64 @llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta("
      "ptr addrspace(3), i32)\n"
      "declare void @llvm.nvvm.fence.mbarrier_init.release.cluster()\n"
      "declare void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d("
      "ptr addrspace(7), ptr addrspace(3), ptr, i32, i32, i16, i64, i1, i1, "
      "i32)\n"
      "declare void @llvm.nvvm.wgmma.fence.sync.aligned()\n"
      "declare void @llvm.nvvm.wgmma.commit_group.sync.aligned()\n"
      "define ptx_kernel void @k(ptr byval([128 x i8]) align 64 %a, "
      "ptr byval([128 x i8]) align 64 %b, ptr addrspace(1) %in, "
      "ptr addrspace(1) %out) {\n"
      "%tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()\n"
      "%bar = getelementptr i8, ptr addrspace(3) @smem, i32 " +
      std::to_string(bar) +
      "\n%first = icmp eq i32 %tid, 0\n"
      "br i1 %first, label %init, label %go\n"
      "init:\n"
      "call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) %bar, i32 "
      "1)\n"
      "call void @llvm.nvvm.fence.mbarrier_init.release.cluster()\n"
      "%t = call i64 @llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta("
      "ptr addrspace(3) %bar, i32 " +
      std::to_string(bar) + ")\n" + loads() +
      "br label %go\ngo:\n"
      "call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n"
      "call void asm sideeffect \"{ .reg .pred P; L: "
      "mbarrier.try_wait.parity.shared.b64 P, [$0], $1; @P bra.uni D; "
      "bra.uni L; D: }\", \"r,r\"(ptr addrspace(3) %bar, i32 0)\n";
  if (test.fromRegisters)
    for (unsigned i = 0; i < 4 * steps; ++i) {
      std::string s = std::to_string(i);
      text += "%ai" + s + " = mul i32 %tid, " + std::to_string(4 * steps) +
              "\n%aj" + s + " = add i32 %ai" + s + ", " + s + "\n%ap" + s +
              " = getelementptr i32, ptr addrspace(1) %in, i32 %aj" + s +
              "\n%av" + s + " = load i32, ptr addrspace(1) %ap" + s + "\n";
    }
  text += "call void @llvm.nvvm.wgmma.fence.sync.aligned()\n";
  std::string ties;
  for (unsigned i = 0; i < n; ++i)
    ties += "," + std::to_string(i);
  for (unsigned step = 0; step < steps; ++step) {
    std::string s = std::to_string(step);
    std::string a = test.fromRegisters ? "{" + list("$", 2 * n, 4) + "}"
                                       : "$" + std::to_string(2 * n);
    unsigned numA = test.fromRegisters ? 4 : 1;
    std::string flags = integer               ? ""
                        : test.type.bits == 8 ? ", 1, 1"
                        : test.fromRegisters  ? ", 1, 1, "
                                              : ", 1, 1, 0, ";
    if (test.type.bits == 16)
      flags += test.transposedB ? "1" : "0";
    std::string opcode = "wgmma.mma_async.sync.aligned.m64n" +
                         std::to_string(test.n) + "k" + std::to_string(depth) +
                         (integer ? ".s32." : ".f32.") + test.type.name + "." +
                         test.type.name;
    text += "%r" + s + " = call " + all +
            " asm sideeffect \"{ .reg .pred p; setp.ne.b32 p, " +
            (step ? "1" : "0") + ", 0; " + opcode + " {" + list("$", 0, n) +
            "}, " + a + ", $" + std::to_string(2 * n + numA) + ", p" + flags +
            "; }\", \"" + repeat("=" + code, n, ",") + ties + "," +
            repeat(test.fromRegisters ? "r" : "l", numA, ",") + ",l\"(";
    for (unsigned i = 0; i < n; ++i)
      text += type +
              (step ? " %e" + std::to_string(step - 1) + "." + std::to_string(i)
                    : std::string(" undef")) +
              ", ";
    if (test.fromRegisters)
      text += list("i32 %av", 4 * step, 4);
    else
      text += "i64 " + std::to_string(int64_t(descriptor(0, false, 64, step)));
    text += ", i64 " +
            std::to_string(
                int64_t(descriptor(sizeA, test.transposedB, test.n, step))) +
            ")\n";
    for (unsigned i = 0; i < n; ++i)
      text += "%e" + s + "." + std::to_string(i) + " = extractvalue " + all +
              " %r" + s + ", " + std::to_string(i) + "\n";
  }
  text += "call void @llvm.nvvm.wgmma.commit_group.sync.aligned()\n%w = call " +
          all + " asm sideeffect \"wgmma.wait_group.sync.aligned 0;\", \"" +
          repeat("=" + code, n, ",") + ties + "\"(" +
          list(type + " %e" + std::to_string(steps - 1) + ".", 0, n) +
          ")\n%to = mul i32 %tid, " + std::to_string(n) + "\n";
  for (unsigned i = 0; i < n; ++i) {
    std::string s = std::to_string(i);
    text += "%x" + s + " = extractvalue " + all + " %w, " + s + "\n%j" + s +
            " = add i32 %to, " + s + "\n%q" + s + " = getelementptr " + type +
            ", ptr addrspace(1) %out, i32 %j" + s + "\nstore " + type + " %x" +
            s + ", ptr addrspace(1) %q" + s + "\n";
  }
  return text + "ret void\n}\n";
}

TEST_P(Wgmma, MatchesFloat64) {
  const Case &test = GetParam();
  Generator generator(test);
  unsigned k = generator.k, bytes = test.type.bits / 8, n = test.n;
  Matrix a(64, k, 1, test.type), b(n, k, 2, test.type);
  // Row-major on the device: A 64 x k; B n x k, or k x n if it is transposed.
  auto store = [&](unsigned rows, unsigned columns, auto at) {
    std::vector<uint8_t> data(rows * columns * bytes + 256);
    for (unsigned i = 0; i < rows; ++i)
      for (unsigned j = 0; j < columns; ++j) {
        uint32_t bits = test.type.encode(at(i, j));
        std::memcpy(data.data() + 256 - uintptr_t(data.data()) % 256 +
                        (i * columns + j) * bytes,
                    &bits, bytes);
      }
    return data;
  };
  auto aligned = [](std::vector<uint8_t> &data) {
    return data.data() + 256 - uintptr_t(data.data()) % 256;
  };
  auto dataA = store(64, k, [&](unsigned i, unsigned j) { return a.at(i, j); });
  auto dataB =
      test.transposedB
          ? store(k, n, [&](unsigned i, unsigned j) { return b.at(j, i); })
          : store(n, k, [&](unsigned i, unsigned j) { return b.at(i, j); });
  unsigned per = 32 / test.type.bits;
  std::vector<uint32_t> registers;
  for (unsigned thread = 0; thread < 128; ++thread)
    for (unsigned step = 0; step < generator.steps; ++step)
      for (unsigned i = 0; i < 4; ++i) {
        uint32_t word = 0;
        for (unsigned e = 0; e < per; ++e)
          word |= test.type.encode(
                      a.at(thread / 32 * 16 + thread % 32 / 4 + 8 * (i & 1),
                           step * generator.depth + 4 * per * (i >> 1) +
                               thread % 4 * per + e))
                  << (e * test.type.bits);
        registers.push_back(word);
      }
  auto map = [&](uint8_t *base, unsigned rows, unsigned columns,
                 unsigned boxRows) {
    TensorMap map;
    map.base = base;
    map.elementBytes = bytes;
    map.dims = {columns, rows};
    map.strides = {columns * bytes};
    map.box = {(test.swizzle ? test.swizzle : 16) / bytes, boxRows};
    map.swizzleBytes = test.swizzle;
    return llvm::cantFail(encodeTensorMap(map));
  };
  auto program = compileText(generator.run());
  ASSERT_TRUE(program);
  for (bool late : {false, true}) {
    std::vector<uint32_t> out(128 * generator.accumulators);
    Device device;
    device.addInput(aligned(dataA), 64 * k * bytes, "A");
    device.addInput(aligned(dataB), n * k * bytes, "B");
    device.addInput(registers.data(), registers.size() * 4, "registers");
    device.addOutput(out.data(), out.size() * 4, "out");
    Launch launch;
    launch.kernel = "k";
    launch.block = {128};
    launch.dynamicSharedBytes = generator.sizeA + generator.sizeB + 8;
    launch.addTensorMap(map(aligned(dataA), 64, k, 64));
    launch.addTensorMap(test.transposedB ? map(aligned(dataB), k, n, k)
                                         : map(aligned(dataB), n, k, n));
    launch.addPointer(registers.data());
    launch.addPointer(out.data());
    Options options;
    options.late = late;
    options.seed = late;
    auto report = program->run(device, launch, options);
    ASSERT_TRUE(bool(report));
    EXPECT_EQ(report->str(), "");
    for (unsigned row = 0; row < 64; ++row)
      for (unsigned column = 0; column < n; ++column) {
        double sum = 0;
        for (unsigned i = 0; i < k; ++i)
          sum += a.at(row, i) * b.at(column, i);
        unsigned thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
        unsigned index = column / 8 * 4 + row / 8 % 2 * 2 + column % 2;
        ElementType result = {generator.integer ? "s32" : "f32", 32,
                              generator.integer};
        ASSERT_EQ(out[thread * generator.accumulators + index],
                  result.encode(sum))
            << row << "," << column;
      }
  }
}

static const ElementType bf16 = {"bf16", 16}, f16 = {"f16", 16},
                         e4m3 = {"e4m3", 8}, s8 = {"s8", 8, true};

INSTANTIATE_TEST_SUITE_P(
    All, Wgmma,
    testing::Values(Case{"bf16", bf16, 128, 128},
                    Case{"bf16_n80", bf16, 80, 128},
                    Case{"f16_swizzle64", f16, 64, 64},
                    Case{"f16_swizzle32", f16, 64, 32},
                    Case{"bf16_no_swizzle", bf16, 48, 0},
                    Case{"bf16_transposed", bf16, 128, 128, true},
                    Case{"f16_registers", f16, 64, 128, true, true},
                    Case{"e4m3", e4m3, 64, 128},
                    Case{"e4m3_registers", e4m3, 32, 128, false, true},
                    Case{"s8", s8, 96, 128}),
    [](const auto &info) { return std::string(info.param.name); });
