//===- LaunchTest.cpp - The library's interface ---------------------------===//

#include "Kernels.h"

using namespace prefill::emu;

static const char *const kCopy = R"(
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
define ptx_kernel void @copy(ptr addrspace(1) %i, ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = getelementptr i32, ptr addrspace(1) %i, i32 %tid
  %v = load i32, ptr addrspace(1) %p
  %q = getelementptr i32, ptr addrspace(1) %o, i32 %tid
  store i32 %v, ptr addrspace(1) %q
  ret void
}
)";

TEST(Launch, RemembersWhatWasWritten) {
  auto program = compileText(kCopy);
  ASSERT_TRUE(program);
  std::vector<int32_t> in(40, 7), out(40), again(40);
  Device device;
  device.addInput(in.data(), 160, "in");
  device.addOutput(out.data(), 160, "out");
  device.addOutput(again.data(), 160, "again");
  EXPECT_EQ(device.countUninitialised(out.data()), 160u);
  Launch launch;
  launch.kernel = "copy";
  launch.block = {32};
  launch.addPointer(in.data());
  launch.addPointer(out.data());
  auto report = program->run(device, launch);
  ASSERT_TRUE(bool(report));
  EXPECT_EQ(report->str(), "");
  EXPECT_EQ(device.countUninitialised(out.data()), 32u);
  // The second launch reads the first one's output, and 8 words beyond it.
  launch.block = {40};
  launch.params.clear();
  launch.addPointer(out.data());
  launch.addPointer(again.data());
  report = program->run(device, launch);
  ASSERT_TRUE(bool(report));
  EXPECT_TRUE(report->has(FindingKind::Uninitialised));
  EXPECT_EQ(report->numFindings, 8u);
  EXPECT_EQ(again[31], 7);
}

TEST(Launch, IsTheSameForASeed) {
  auto program = compileText(R"(
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
define ptx_kernel void @order(ptr addrspace(1) %counter, ptr addrspace(1) %o) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %ticket = atomicrmw add ptr addrspace(1) %counter, i32 1 monotonic
  %q = getelementptr i32, ptr addrspace(1) %o, i32 %ticket
  store i32 %tid, ptr addrspace(1) %q
  ret void
}
)");
  ASSERT_TRUE(program);
  auto run = [&](uint64_t seed) {
    std::vector<int32_t> out(128);
    int32_t counter = 0;
    Device device;
    device.addBuffer(&counter, 4, "counter");
    device.addOutput(out.data(), 512, "out");
    Launch launch;
    launch.kernel = "order";
    launch.block = {128};
    launch.addPointer(&counter);
    launch.addPointer(out.data());
    Options options;
    options.seed = seed;
    auto report = program->run(device, launch, options);
    EXPECT_TRUE(report && report->clean());
    return out;
  };
  EXPECT_EQ(run(0)[5], 5);
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
  EXPECT_NE(run(1), run(0));
}

TEST(Launch, BlocksWaitForEachOtherOnlyIfResident) {
  // Block 0 spins until block 1 has set the flag.
  auto program = compileText(R"(
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
define ptx_kernel void @spin(ptr addrspace(1) %flag) {
  %cta = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %second = icmp eq i32 %cta, 1
  br i1 %second, label %set, label %wait
set:
  store volatile i32 1, ptr addrspace(1) %flag
  ret void
wait:
  %v = load volatile i32, ptr addrspace(1) %flag
  %done = icmp ne i32 %v, 0
  br i1 %done, label %out, label %wait
out:
  ret void
}
)");
  ASSERT_TRUE(program);
  for (unsigned resident : {1, 2}) {
    int32_t flag = 0;
    Device device;
    device.addBuffer(&flag, 4, "flag");
    Launch launch;
    launch.kernel = "spin";
    launch.grid = {2};
    launch.block = {32};
    launch.addPointer(&flag);
    Options options;
    options.residentBlocks = resident;
    auto report = program->run(device, launch, options);
    ASSERT_TRUE(bool(report));
    EXPECT_EQ(report->has(FindingKind::Deadlock), resident == 1)
        << report->str();
  }
}

TEST(TensorMap, RefusesWhatTheDriverRefuses) {
  alignas(128) static uint16_t data[64 * 64];
  TensorMap good;
  good.base = data;
  good.dims = {64, 64};
  good.strides = {128};
  good.box = {64, 8};
  auto check = [](const TensorMap &map, const char *what) {
    auto encoded = encodeTensorMap(map);
    std::string message = encoded ? "" : llvm::toString(encoded.takeError());
    EXPECT_EQ(message.empty(), *what == 0) << message;
    EXPECT_NE(message.find(what), std::string::npos) << message;
  };
  check(good, "");
  TensorMap map = good;
  map.base = data + 1;
  check(map, "base address");
  map = good;
  map.strides = {120};
  check(map, "stride 1 is 120");
  map = good;
  map.box = {64, 257};
  check(map, "box size 1 is 257");
  map = good;
  map.box = {4, 8};
  check(map, "8 bytes wide");
  map = good;
  map.swizzleBytes = 64;
  check(map, "more than the 64 bytes");
  map = good;
  map.dims = {64};
  check(map, "one stride fewer");
}
