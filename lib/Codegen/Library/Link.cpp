//===- Link.cpp - Shared libraries without a compiler ---------------------===//

#include "prefill/Codegen/Link.h"
#include "lld/Common/Driver.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/ADT/Twine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/raw_ostream.h"
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <link.h>
#include <mutex>
#include <unistd.h>
#include <vector>

LLD_HAS_DRIVER(elf)

using namespace prefill;
using llvm::StringRef;
using llvm::Twine;

static bool fail(std::string &error, const Twine &what) {
  error = what.str();
  return false;
}

/// The C library's files, as this very process has loaded them: machines
/// without development packages have no other, and versioned symbols need one.
static std::vector<std::string> findCLibraries() {
  std::vector<std::string> found;
  dl_iterate_phdr(
      [](dl_phdr_info *info, size_t, void *data) {
        StringRef file = info->dlpi_name ? info->dlpi_name : "";
        StringRef name = llvm::sys::path::filename(file);
        if (name.starts_with("libc.so.") || name.starts_with("libm.so."))
          static_cast<std::vector<std::string> *>(data)->push_back(file.str());
        return 0;
      },
      &found);
  return found;
}

/// The first line of a linker's complaints.
static std::string firstLine(StringRef text) {
  StringRef line = text.trim().split('\n').first;
  line.consume_front("ld.lld: ");
  line.consume_front("error: ");
  return line.empty() ? "no reason given" : line.str();
}

static bool runLinker(const std::vector<std::string> &arguments,
                      std::string &error) {
  static std::mutex mutex;
  static bool canRunAgain = true;
  // lld keeps its state in globals.
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<const char *> raw;
  for (const std::string &argument : arguments)
    raw.push_back(argument.c_str());
  if (canRunAgain) {
    std::string text;
    llvm::raw_string_ostream stream(text);
    const lld::DriverDef drivers[] = {{lld::Gnu, &lld::elf::link}};
    lld::Result result = lld::lldMain(raw, stream, stream, drivers);
    canRunAgain = result.canRunAgain;
    if (result.retCode == 0)
      return true;
    return fail(error, "linking failed: " + firstLine(text));
  }
  // After a crash inside the linker: a process of its own.
  auto program = llvm::sys::findProgramByName("ld.lld");
  if (!program)
    program = llvm::sys::findProgramByName("ld.lld", {"/usr/lib/llvm-22/bin"});
  if (!program)
    return fail(error, "linking failed: no linker (ld.lld) found");
  std::vector<StringRef> words(arguments.begin(), arguments.end());
  std::string reason;
  int code = llvm::sys::ExecuteAndWait(*program, words, std::nullopt, {}, 0, 0,
                                       &reason);
  if (code == 0)
    return true;
  return fail(error, "linking failed: " +
                         (reason.empty() ? "exit code " + Twine(code).str()
                                         : firstLine(reason)));
}

/// A name beside `path` that nothing else uses. Fails if the disk has no room
/// for a file of that many bytes.
static bool temporaryBeside(StringRef path, uint64_t bytes,
                            llvm::SmallString<256> &name, std::string &error) {
  int descriptor;
  std::error_code code =
      llvm::sys::fs::createUniqueFile(path + ".tmp-%%%%%%%%", descriptor, name);
  if (code)
    return fail(error, "cannot write '" + path + "': " + code.message());
  int reason = bytes ? posix_fallocate(descriptor, 0, off_t(bytes)) : 0;
  if (reason == 0 && ftruncate(descriptor, 0) != 0)
    reason = errno;
  close(descriptor);
  if (reason == 0)
    return true;
  (void)llvm::sys::fs::remove(name);
  return fail(error, "cannot write '" + path +
                         "': " + std::generic_category().message(reason));
}

static bool moveIntoPlace(StringRef from, StringRef to, std::string &error) {
  if (std::error_code code = llvm::sys::fs::rename(from, to)) {
    (void)llvm::sys::fs::remove(from);
    return fail(error, "cannot write '" + to + "': " + code.message());
  }
  return true;
}

bool prefill::writeFileAtomically(StringRef path, StringRef contents,
                                  std::string &error) {
  llvm::SmallString<256> temporary;
  if (!temporaryBeside(path, 0, temporary, error))
    return false;
  std::error_code code;
  {
    llvm::raw_fd_ostream stream(temporary, code);
    if (!code) {
      stream << contents;
      stream.close();
      code = stream.error();
      stream.clear_error();
    }
  }
  if (code) {
    (void)llvm::sys::fs::remove(temporary);
    return fail(error, "cannot write '" + path + "': " + code.message());
  }
  // createUniqueFile makes files private to the user.
  (void)llvm::sys::fs::setPermissions(
      temporary, llvm::sys::fs::perms(llvm::sys::fs::all_read |
                                      llvm::sys::fs::owner_write));
  return moveIntoPlace(temporary, path, error);
}

bool prefill::linkSharedLibrary(const LinkOptions &options,
                                std::string &error) {
  for (const std::string &file : options.archives)
    if (!llvm::sys::fs::exists(file))
      return fail(error, "runtime library '" + file + "' does not exist");
  // lld writes through a mapping, and a disk that fills up meanwhile means
  // SIGBUS there. A library is smaller than what goes into it.
  uint64_t bytes = 64 << 10, size = 0;
  for (llvm::ArrayRef<std::string> files : {options.objects, options.archives})
    for (const std::string &file : files)
      if (!llvm::sys::fs::file_size(file, size))
        bytes += size;
  llvm::SmallString<256> temporary;
  if (!temporaryBeside(options.output, bytes, temporary, error))
    return false;
  std::vector<std::string> arguments = {"ld.lld",
                                        "-shared",
                                        "-o",
                                        temporary.c_str(),
                                        "--build-id=none",
                                        "--hash-style=gnu",
                                        "--eh-frame-hdr",
                                        "-z",
                                        "now",
                                        "-z",
                                        "noexecstack",
                                        "--gc-sections",
                                        "--no-undefined",
                                        "--threads=1"};
  if (!options.soname.empty()) {
    arguments.push_back("-soname");
    arguments.push_back(options.soname);
  }
  arguments.insert(arguments.end(), options.objects.begin(),
                   options.objects.end());
  if (!options.archives.empty()) {
    arguments.push_back("--whole-archive");
    arguments.insert(arguments.end(), options.archives.begin(),
                     options.archives.end());
    arguments.push_back("--no-whole-archive");
  }
  arguments.push_back("--as-needed");
  for (std::string &library : findCLibraries())
    arguments.push_back(std::move(library));
  if (!runLinker(arguments, error)) {
    (void)llvm::sys::fs::remove(temporary);
    return false;
  }
  return moveIntoPlace(temporary, options.output, error);
}
