//===- prefill-emu.cpp - Runs a GPU kernel on the CPU ---------------------===//

#include "prefill/Emulator/Emulator.h"
#include "llvm/ADT/APFloat.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/IRReader/IRReader.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/InitLLVM.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/WithColor.h"
#include <cmath>

using namespace llvm;
using namespace prefill;

static cl::OptionCategory category("prefill-emu options");
static cl::opt<std::string> input(cl::Positional,
                                  cl::desc("<kernel.ll or .bc>"), cl::init("-"),
                                  cl::cat(category));
static cl::opt<std::string> kernel("kernel", cl::cat(category),
                                   cl::desc("Name of the kernel"));
static cl::opt<std::string> grid("grid", cl::init("1"), cl::cat(category),
                                 cl::desc("Blocks: X[,Y[,Z]]"));
static cl::opt<std::string>
    blockSize("block", cl::init("32"), cl::cat(category),
              cl::desc("Threads of a block: X[,Y[,Z]]"));
static cl::opt<unsigned> shared("shared", cl::init(0), cl::cat(category),
                                cl::desc("Bytes of dynamic shared memory"));
static cl::list<std::string>
    params("param", cl::cat(category),
           cl::desc("A parameter, in order: TYPE:VALUE (i32:7, f32:0.5) or "
                    "buffer:NAME or map:NAME,box=64x8[,swizzle=128]"));
static cl::list<std::string> buffers(
    "buffer", cl::cat(category),
    cl::desc(
        "NAME:TYPExDIMxDIM..[:zero|iota|random|none|file=PATH][:ro]; types "
        "i8 u8 i32 i64 f16 bf16 f32; 'none' holds no values"));
static cl::list<std::string>
    prints("print", cl::cat(category),
           cl::desc("Print a buffer after the launch: NAME[:COUNT]"));
static cl::opt<bool>
    late("late", cl::cat(category),
         cl::desc("Asynchronous work happens as late as possible"));
static cl::opt<uint64_t> seed("seed", cl::init(0), cl::cat(category),
                              cl::desc("Order of threads; 0: ascending"));
static cl::opt<bool> noRaces("no-races", cl::cat(category),
                             cl::desc("Do not look for races"));
static cl::opt<bool>
    noUninitialised("no-uninitialised", cl::cat(category),
                    cl::desc("Do not look for reads of what nothing wrote"));
static cl::opt<unsigned> maxFindings("max-findings", cl::init(20),
                                     cl::cat(category),
                                     cl::desc("Findings to print"));
static cl::opt<unsigned> resident("resident", cl::init(1), cl::cat(category),
                                  cl::desc("Blocks that run interleaved"));
static cl::opt<unsigned> registers("registers", cl::init(0), cl::cat(category),
                                   cl::desc("Registers of a thread at launch"));
static cl::opt<uint64_t> iterations("max-iterations", cl::init(50'000'000),
                                    cl::cat(category),
                                    cl::desc("Loop rounds of a thread"));
static cl::opt<bool> statistics("counts", cl::cat(category),
                                cl::desc("Print executed instructions"));

namespace {
struct Buffer {
  std::string name, type;
  unsigned elementBytes = 0;
  std::vector<uint64_t> dims; ///< as written: outermost first
  std::vector<char> bytes;
  char *data = nullptr;
  uint64_t count() const {
    uint64_t product = 1;
    for (uint64_t dim : dims)
      product *= dim;
    return product;
  }
};
} // namespace

[[noreturn]] static void fail(const Twine &message) {
  WithColor::error(errs(), "prefill-emu") << message << "\n";
  exit(1);
}

static emu::Dim3 parseDim(StringRef text, StringRef option) {
  uint32_t values[3] = {1, 1, 1};
  SmallVector<StringRef, 3> parts;
  text.split(parts, ',');
  for (size_t i = 0; i < parts.size(); ++i)
    if (i > 2 || parts[i].getAsInteger(10, values[i]))
      fail("-" + option + "=" + text + ": up to three numbers are expected");
  return {values[0], values[1], values[2]};
}

static unsigned bytesOf(StringRef type) {
  if (type == "i8" || type == "u8")
    return 1;
  if (type == "f16" || type == "bf16")
    return 2;
  if (type == "i32" || type == "f32")
    return 4;
  return type == "i64" ? 8 : 0;
}

static uint16_t toHalf(float value, bool bfloat) {
  APFloat number(value);
  bool lossy;
  number.convert(bfloat ? APFloat::BFloat() : APFloat::IEEEhalf(),
                 APFloat::rmNearestTiesToEven, &lossy);
  return number.bitcastToAPInt().getZExtValue();
}

static void put(char *at, StringRef type, double value) {
  auto store = [&](auto typed) { std::memcpy(at, &typed, sizeof(typed)); };
  if (type == "f32")
    store(float(value));
  else if (type == "f16" || type == "bf16")
    store(toHalf(float(value), type == "bf16"));
  else if (type == "i64")
    store(int64_t(value));
  else if (type == "i32")
    store(int32_t(value));
  else
    store(int8_t(int64_t(value)));
}

static double get(const char *at, StringRef type) {
  auto load = [&](auto typed) {
    std::memcpy(&typed, at, sizeof(typed));
    return typed;
  };
  if (type == "f32")
    return load(float());
  if (type == "f16" || type == "bf16")
    return APFloat(type == "bf16" ? APFloat::BFloat() : APFloat::IEEEhalf(),
                   APInt(16, load(uint16_t())))
        .convertToDouble();
  if (type == "i64")
    return load(int64_t());
  if (type == "i32")
    return load(int32_t());
  return type == "u8" ? load(uint8_t()) : load(int8_t());
}

static void makeBuffer(StringRef text, Buffer &buffer, emu::Device &device) {
  SmallVector<StringRef, 4> parts;
  text.split(parts, ':');
  if (parts.size() < 2)
    fail("-buffer=" + text + ": NAME:TYPExDIM[xDIM..] is expected");
  buffer.name = parts[0].str();
  SmallVector<StringRef, 4> shape;
  parts[1].split(shape, 'x');
  buffer.type = shape[0].str();
  buffer.elementBytes = bytesOf(buffer.type);
  if (!buffer.elementBytes)
    fail("-buffer=" + text + ": unknown type '" + shape[0] + "'");
  for (StringRef dim : ArrayRef(shape).drop_front())
    if (dim.getAsInteger(10, buffer.dims.emplace_back()))
      fail("-buffer=" + text + ": '" + dim + "' is no dimension");
  size_t size = buffer.count() * buffer.elementBytes;
  buffer.bytes.assign(size + 256, 0);
  buffer.data = reinterpret_cast<char *>(
      (reinterpret_cast<uintptr_t>(buffer.bytes.data()) + 255) &
      ~uintptr_t(255));
  StringRef fill = parts.size() > 2 ? parts[2] : "zero";
  bool readOnly = parts.size() > 3 && parts[3] == "ro";
  uint64_t state = 88172645463325252u;
  if (fill.consume_front("file=")) {
    auto file = MemoryBuffer::getFile(fill);
    if (!file)
      fail("-buffer=" + text + ": cannot read '" + fill + "'");
    if ((*file)->getBufferSize() != size)
      fail("-buffer=" + text + ": '" + fill + "' has " +
           Twine((*file)->getBufferSize()) + " bytes, not " + Twine(size));
    std::memcpy(buffer.data, (*file)->getBufferStart(), size);
  } else if (fill == "iota" || fill == "random") {
    for (uint64_t i = 0; i < buffer.count(); ++i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      bool isFloat = buffer.type.find('f') != std::string::npos;
      double value = fill == "iota" ? double(i)
                     : isFloat      ? double(state >> 40) / (1 << 23) - 1
                                    : double(state >> 40 & 63) - 32;
      put(buffer.data + i * buffer.elementBytes, buffer.type, value);
    }
  } else if (fill == "none") {
    std::memset(buffer.data, 0xff, size);
  } else if (fill != "zero") {
    fail("-buffer=" + text + ": '" + fill +
         "' is none of zero, iota, random, none, file=PATH");
  }
  device.addBuffer(buffer.data, size, buffer.name, fill != "none", readOnly);
}

static Buffer &findBuffer(std::vector<Buffer> &all, StringRef name,
                          StringRef option) {
  for (Buffer &buffer : all)
    if (buffer.name == name)
      return buffer;
  fail(option + ": there is no buffer '" + name + "'");
}

static void addMap(StringRef text, std::vector<Buffer> &all,
                   emu::Launch &launch) {
  SmallVector<StringRef, 4> parts;
  text.split(parts, ',');
  Buffer &buffer = findBuffer(all, parts[0], "-param=map:" + text.str());
  emu::TensorMap map;
  map.base = buffer.data;
  map.elementBytes = buffer.elementBytes;
  map.swizzleBytes = 0;
  uint64_t stride = buffer.elementBytes;
  for (uint64_t dim : reverse(buffer.dims)) {
    if (!map.dims.empty())
      map.strides.push_back(stride);
    map.dims.push_back(dim);
    stride *= dim;
  }
  for (StringRef part : ArrayRef(parts).drop_front()) {
    if (part.consume_front("box=")) {
      SmallVector<StringRef, 5> sizes;
      part.split(sizes, 'x');
      for (StringRef size : sizes)
        if (size.getAsInteger(10, map.box.emplace_back()))
          fail("-param=map:" + text + ": '" + size + "' is no box size");
    } else if (!part.consume_front("swizzle=") ||
               part.getAsInteger(10, map.swizzleBytes)) {
      fail("-param=map:" + text +
           ": box=AxB (innermost first) and swizzle=N "
           "are expected");
    }
  }
  auto encoded = emu::encodeTensorMap(map);
  if (!encoded)
    fail("-param=map:" + text + ": " + toString(encoded.takeError()));
  launch.addTensorMap(*encoded);
}

static void addParam(StringRef text, std::vector<Buffer> &all,
                     emu::Launch &launch) {
  auto [type, value] = text.split(':');
  if (type == "buffer")
    return launch.addPointer(
        findBuffer(all, value, "-param=" + text.str()).data);
  if (type == "map")
    return addMap(value, all, launch);
  unsigned bytes = bytesOf(type);
  double number;
  if (!bytes || value.getAsDouble(number))
    fail("-param=" + text +
         ": TYPE:VALUE, buffer:NAME or map:NAME,box=.. is "
         "expected");
  std::vector<uint8_t> data(bytes);
  put(reinterpret_cast<char *>(data.data()), type, number);
  launch.params.push_back(data);
}

static void print(StringRef text, std::vector<Buffer> &all) {
  auto [name, limit] = text.split(':');
  Buffer &buffer = findBuffer(all, name, "-print=" + text.str());
  uint64_t count = buffer.count();
  if (!limit.empty() && limit.getAsInteger(10, count))
    fail("-print=" + text + ": NAME[:COUNT] is expected");
  outs() << buffer.name << ":";
  for (uint64_t i = 0; i < std::min(count, buffer.count()); ++i)
    outs() << " "
           << format("%g",
                     get(buffer.data + i * buffer.elementBytes, buffer.type));
  outs() << "\n";
}

int main(int argc, char **argv) {
  InitLLVM init(argc, argv);
  cl::HideUnrelatedOptions(category);
  cl::ParseCommandLineOptions(
      argc, argv,
      "Runs a GPU kernel (LLVM IR for nvptx64) on the CPU and reports what is "
      "wrong with it.\nExit status: 0 clean, 1 cannot run, 2 findings.\n");
  LLVMContext context;
  SMDiagnostic diagnostic;
  std::unique_ptr<Module> module = parseIRFile(input, diagnostic, context);
  if (!module) {
    diagnostic.print("prefill-emu", errs());
    return 1;
  }
  emu::Device device;
  std::vector<Buffer> all(buffers.size());
  for (size_t i = 0; i < buffers.size(); ++i)
    makeBuffer(buffers[i], all[i], device);
  emu::Launch launch;
  launch.kernel = kernel;
  if (kernel.empty())
    for (Function &function : *module)
      if (function.getCallingConv() == CallingConv::PTX_Kernel)
        launch.kernel = function.getName().str();
  launch.grid = parseDim(grid, "grid");
  launch.block = parseDim(blockSize, "block");
  launch.dynamicSharedBytes = shared;
  for (StringRef text : params)
    addParam(text, all, launch);

  auto program = emu::Program::compile(*module);
  if (!program)
    fail(toString(program.takeError()));
  emu::Options options;
  options.late = late;
  options.seed = seed;
  options.checkRaces = !noRaces;
  options.checkUninitialised = !noUninitialised;
  options.maxFindings = maxFindings;
  options.residentBlocks = resident;
  options.registersPerThread = registers;
  options.maxIterations = iterations;
  auto report = (*program)->run(device, launch, options);
  if (!report)
    fail(toString(report.takeError()));
  outs() << report->str();
  for (StringRef text : prints)
    print(text, all);
  if (statistics) {
    outs() << "shared memory: " << report->sharedBytes << " bytes\n";
    for (auto &[name, count] : report->instructions)
      outs() << format("%12llu ", (unsigned long long)count) << name << "\n";
  }
  return report->clean() ? 0 : 2;
}
