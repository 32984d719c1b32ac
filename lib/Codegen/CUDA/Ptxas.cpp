//===- Ptxas.cpp - NVIDIA's assembler as a process ------------------------===//

#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/Interrupt.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/raw_ostream.h"

using namespace prefill;
using namespace llvm;

std::string prefill::findPtxas(StringRef given) {
  if (!given.empty())
    return given.str();
  if (std::optional<std::string> home = sys::Process::GetEnv("CUDA_HOME")) {
    SmallString<128> path(*home);
    sys::path::append(path, "bin", "ptxas");
    if (sys::fs::can_execute(path))
      return std::string(path);
  }
  ErrorOr<std::string> found = sys::findProgramByName("ptxas");
  return found ? *found : std::string();
}

/// The number before `words` in a line such as "  0 bytes stack frame, ...".
static int numberBefore(StringRef line, StringRef words) {
  size_t at = line.find(words);
  if (at == StringRef::npos)
    return 0;
  StringRef before = line.take_front(at).rtrim();
  int number = 0;
  before.take_back(before.size() - before.find_last_not_of("0123456789") - 1)
      .getAsInteger(10, number);
  return number;
}

PtxasReport prefill::parsePtxasLog(StringRef log) {
  PtxasReport report;
  SmallVector<StringRef> lines;
  log.split(lines, '\n');
  for (StringRef line : lines) {
    line = line.trim();
    if (line.contains("bytes stack frame")) {
      report.stackBytes += numberBefore(line, " bytes stack frame");
      report.spillStores += numberBefore(line, " bytes spill stores");
      report.spillLoads += numberBefore(line, " bytes spill loads");
    } else if (line.contains("Used ") && line.contains(" registers")) {
      report.registers =
          std::max(report.registers, numberBefore(line, " registers"));
    }
    // "(C7510) Potential Performance Loss: ..." come as info lines.
    if (line.contains("(C75") || line.contains("warning") ||
        line.contains("error") || line.contains("fatal"))
      report.messages.push_back(line.str());
  }
  return report;
}

bool prefill::runPtxas(StringRef ptxas, StringRef ptx, int arch,
                       StringRef kernel, bool allowSpills, std::string &cubin,
                       PtxasReport &report, std::string &error,
                       bool archSpecific) {
  auto fail = [&](const Twine &what) {
    error = ("kernel '" + kernel + "': " + what).str();
    return false;
  };
  SmallString<128> folder;
  if (sys::fs::createUniqueDirectory("prefill-ptxas", folder))
    return fail("no temporary folder for ptxas");
  FolderWatch watch;
  watch.watch(folder);
  auto cleanUp = make_scope_exit([&] { sys::fs::remove_directories(folder); });
  auto path = [&](StringRef name) {
    SmallString<128> file(folder);
    sys::path::append(file, name);
    return std::string(file);
  };
  const std::string input = path("kernel.ptx"), output = path("kernel.cubin"),
                    log = path("log");
  {
    std::error_code code;
    raw_fd_ostream stream(input, code);
    if (!code)
      stream << ptx;
    stream.close();
    if (code || stream.has_error()) {
      stream.clear_error();
      return fail("cannot write " + input);
    }
  }
  const std::string target = "-arch=" + getChip(arch, archSpecific);
  std::optional<StringRef> redirects[] = {StringRef(""), StringRef(log),
                                          StringRef(log)};
  std::string message;
  int code = sys::ExecuteAndWait(
      ptxas, {ptxas, "-v", "-O3", target, input, "-o", output}, std::nullopt,
      redirects, /*SecondsToWait=*/120, /*MemoryLimit=*/0, &message);
  std::string text;
  if (auto buffer = MemoryBuffer::getFile(log))
    text = (*buffer)->getBuffer().str();
  report = parsePtxasLog(text);
  if (code != 0) {
    if (!report.messages.empty())
      message = report.messages.front();
    if (message.empty())
      message = StringRef(text).trim().split('\n').first.str();
    return fail(
        "ptxas (" + ptxas + ") failed: " +
        (message.empty() ? "exit code " + std::to_string(code) : message));
  }
  if (!allowSpills) {
    const StringRef remedy = " (-allow-spills accepts it)";
    if (report.spillStores || report.spillLoads || report.stackBytes)
      return fail("ptxas spills registers: " + Twine(report.spillStores) +
                  " bytes stored, " + Twine(report.spillLoads) +
                  " loaded, stack of " + Twine(report.stackBytes) + " bytes" +
                  remedy);
    if (!report.messages.empty())
      return fail("ptxas says: " + report.messages.front() + remedy);
  }
  auto buffer = MemoryBuffer::getFile(output, /*IsText=*/false,
                                      /*RequiresNullTerminator=*/false);
  if (!buffer)
    return fail("ptxas wrote no cubin");
  cubin = (*buffer)->getBuffer().str();
  return true;
}
