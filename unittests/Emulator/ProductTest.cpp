//===- ProductTest.cpp - mma.sync against products in float64 -------------===//

#include "Kernels.h"

using namespace prefill::emu;

namespace {
struct Case {
  ElementType a, b;
  unsigned k;
  /// Accumulator: f32, f16 or s32.
  std::string d;
  std::string opcode() const {
    return "mma.sync.aligned.m16n8k" + std::to_string(k) + ".row.col." + d +
           "." + a.name + "." + b.name + "." + d;
  }
};
class Product : public testing::TestWithParam<Case> {};

/// Loads A, B, C registers of each lane, in order, and stores D.
std::string kernel(const Case &test, unsigned na, unsigned nb, unsigned nc) {
  std::string text =
      "declare i32 @llvm.nvvm.read.ptx.sreg.laneid()\n"
      "define ptx_kernel void @k(ptr addrspace(1) %in, ptr addrspace(1) %out) "
      "{\n%lane = call i32 @llvm.nvvm.read.ptx.sreg.laneid()\n";
  unsigned count = na + nb + nc;
  text += "%at = mul i32 %lane, " + std::to_string(count) + "\n";
  for (unsigned i = 0; i < count; ++i) {
    std::string n = std::to_string(i);
    text += "%i" + n + " = add i32 %at, " + n + "\n%p" + n +
            " = getelementptr i32, ptr addrspace(1) %in, i32 %i" + n + "\n%v" +
            n + " = load i32, ptr addrspace(1) %p" + n + "\n";
  }
  std::string type = "{" + repeat("i32", nc) + "}";
  text += "%r = call " + type + " asm sideeffect \"" + test.opcode() + " {" +
          list("$", 0, nc) + "}, {" + list("$", nc, na) + "}, {" +
          list("$", nc + na, nb) + "}, {" + list("$", nc + na + nb, nc) +
          "};\", \"" + repeat("=r", nc, ",") + "," + repeat("r", count, ",") +
          "\"(" + list("i32 %v", 0, count) + ")\n";
  text += "%to = mul i32 %lane, " + std::to_string(nc) + "\n";
  for (unsigned i = 0; i < nc; ++i) {
    std::string n = std::to_string(i);
    text += "%x" + n + " = extractvalue " + type + " %r, " + n + "\n%j" + n +
            " = add i32 %to, " + n + "\n%q" + n +
            " = getelementptr i32, ptr addrspace(1) %out, i32 %j" + n +
            "\nstore i32 %x" + n + ", ptr addrspace(1) %q" + n + "\n";
  }
  return text + "ret void\n}\n";
}
} // namespace

TEST_P(Product, MatchesFloat64) {
  const Case &test = GetParam();
  bool halfC = test.d == "f16";
  ElementType dType = {test.d, halfC ? 16u : 32u, test.d == "s32"};
  Matrix a(16, test.k, 1, test.a), b(test.k, 8, 2, test.b), c(16, 8, 3, dType);
  unsigned per = 32 / test.a.bits, half = 4 * per;
  unsigned na = 2 * test.k / half, nb = test.k / half, nc = halfC ? 2 : 4;
  // As in the fragment figures of the PTX ISA: lane = 4 * group + thread in
  // group.
  std::vector<uint32_t> in, out(32 * nc);
  for (unsigned lane = 0; lane < 32; ++lane) {
    unsigned group = lane / 4, inGroup = lane % 4;
    auto pack = [&](auto element) {
      uint32_t word = 0;
      for (unsigned e = 0; e < per; ++e)
        word |= element(e) << (e * test.a.bits);
      in.push_back(word);
    };
    for (unsigned i = 0; i < na; ++i)
      pack([&](unsigned e) {
        return test.a.encode(
            a.at(group + 8 * (i & 1), inGroup * per + e + half * (i >> 1)));
      });
    for (unsigned i = 0; i < nb; ++i)
      pack([&](unsigned e) {
        return test.b.encode(b.at(inGroup * per + e + half * i, group));
      });
    for (unsigned i = 0; i < nc; ++i) {
      if (halfC)
        in.push_back(dType.encode(c.at(group + 8 * i, 2 * inGroup)) |
                     dType.encode(c.at(group + 8 * i, 2 * inGroup + 1)) << 16);
      else
        in.push_back(
            dType.encode(c.at(group + 8 * (i / 2), 2 * inGroup + i % 2)));
    }
  }
  auto program = compileText(kernel(test, na, nb, nc));
  ASSERT_TRUE(program);
  Device device;
  device.addInput(in.data(), in.size() * 4, "in");
  device.addOutput(out.data(), out.size() * 4, "out");
  Launch launch;
  launch.kernel = "k";
  launch.block = {32};
  launch.addPointer(in.data());
  launch.addPointer(out.data());
  Options options;
  options.seed = 3;
  auto report = program->run(device, launch, options);
  ASSERT_TRUE(bool(report));
  EXPECT_EQ(report->str(), "");
  EXPECT_EQ(report->instructions[test.opcode()], 1u);
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned column = 0; column < 8; ++column) {
      double sum = c.at(row, column);
      for (unsigned k = 0; k < test.k; ++k)
        sum += a.at(row, k) * b.at(k, column);
      unsigned lane = row % 8 * 4 + column / 2;
      uint32_t word =
          halfC ? out[lane * 2 + row / 8] >> (16 * (column % 2)) & 0xffff
                : out[lane * 4 + row / 8 * 2 + column % 2];
      ASSERT_EQ(word, dType.encode(sum)) << row << "," << column;
    }
}

static const ElementType bf16 = {"bf16", 16}, f16 = {"f16", 16},
                         tf32 = {"tf32", 32}, e4m3 = {"e4m3", 8},
                         e5m2 = {"e5m2", 8}, s8 = {"s8", 8, true},
                         u8 = {"u8", 8, true}, s4 = {"s4", 4, true};

INSTANTIATE_TEST_SUITE_P(
    All, Product,
    testing::Values(Case{bf16, bf16, 16, "f32"}, Case{bf16, bf16, 8, "f32"},
                    Case{f16, f16, 16, "f32"}, Case{f16, f16, 8, "f32"},
                    Case{f16, f16, 16, "f16"}, Case{tf32, tf32, 8, "f32"},
                    Case{tf32, tf32, 4, "f32"}, Case{e4m3, e4m3, 32, "f32"},
                    Case{e4m3, e5m2, 32, "f32"}, Case{s8, s8, 32, "s32"},
                    Case{s8, s8, 16, "s32"}, Case{u8, s8, 32, "s32"},
                    Case{s4, s4, 64, "s32"}),
    [](const auto &info) {
      return info.param.a.name + "_" + info.param.b.name + "_k" +
             std::to_string(info.param.k) + "_" + info.param.d;
    });
