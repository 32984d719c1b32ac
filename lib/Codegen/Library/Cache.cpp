//===- Cache.cpp - Compiled kernels by content ----------------------------===//

#include "Cache.h"
#include "prefill/Codegen/Link.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/SHA256.h"
#include <dlfcn.h>

using namespace prefill;
using llvm::StringRef;

static constexpr StringRef kMagic = "prefill kernel 1\n";

static std::string hexDigest(StringRef text) {
  llvm::SHA256 hash;
  hash.update(text);
  return llvm::toHex(hash.final(), /*LowerCase=*/true);
}

/// Changes whenever the code generator does: the binary that holds this
/// function, by size and time.
static std::string compilerIdentity() {
  std::string identity = LLVM_VERSION_STRING;
  Dl_info info;
  std::string file = "/proc/self/exe";
  if (dladdr(reinterpret_cast<void *>(&compilerIdentity), &info) &&
      info.dli_fname && llvm::sys::fs::exists(info.dli_fname))
    file = info.dli_fname;
  llvm::sys::fs::file_status status;
  if (!llvm::sys::fs::status(file, status))
    identity +=
        " " + std::to_string(status.getSize()) + " " +
        std::to_string(
            status.getLastModificationTime().time_since_epoch().count());
  return identity;
}

KernelCache KernelCache::open(const std::string &requested, bool enabled) {
  if (!enabled)
    return KernelCache("");
  std::string folder = requested;
  if (auto moved = llvm::sys::Process::GetEnv("PREFILL_CACHE");
      moved && folder.empty()) {
    if (*moved == "off" || *moved == "0")
      return KernelCache("");
    folder = *moved;
  }
  if (folder.empty()) {
    llvm::SmallString<128> home;
    if (auto base = llvm::sys::Process::GetEnv("XDG_CACHE_HOME");
        base && !base->empty()) {
      home = *base;
    } else {
      if (!llvm::sys::path::home_directory(home))
        return KernelCache("");
      llvm::sys::path::append(home, ".cache");
    }
    llvm::sys::path::append(home, "prefill-opt");
    folder = home.str().str();
  }
  if (llvm::sys::fs::create_directories(folder))
    return KernelCache("");
  return KernelCache(folder);
}

std::string KernelCache::makeKey(StringRef text) {
  static const std::string compiler = compilerIdentity();
  return hexDigest(compiler + "\n" + text.str());
}

std::string KernelCache::makeKey(StringRef tileText, const CpuTarget &target) {
  return makeKey(target.name() + " " + std::to_string(target.tileRows) + " " +
                 std::to_string(target.tileVectors) + "\n" + tileText.str());
}

std::string KernelCache::pathOf(StringRef key) const {
  llvm::SmallString<256> path(folder);
  llvm::sys::path::append(path, key + ".kernel");
  return path.str().str();
}

bool KernelCache::lookup(StringRef key, std::string &body) const {
  if (folder.empty())
    return false;
  auto file = llvm::MemoryBuffer::getFile(pathOf(key), /*IsText=*/false,
                                          /*RequiresNullTerminator=*/false);
  if (!file)
    return false;
  // magic, digest of the rest, body
  StringRef rest = (*file)->getBuffer();
  if (!rest.consume_front(kMagic))
    return false;
  auto [digest, content] = rest.split('\n');
  if (digest != hexDigest(content))
    return false;
  body = content.str();
  return true;
}

void KernelCache::insert(StringRef key, StringRef body) const {
  if (folder.empty())
    return;
  std::string ignored;
  (void)writeFileAtomically(
      pathOf(key), kMagic.str() + hexDigest(body) + "\n" + body.str(), ignored);
}

bool KernelCache::lookup(StringRef key, EmittedKernel &kernel) const {
  std::string body;
  if (!lookup(key, body))
    return false;
  auto [workspace, object] = StringRef(body).split('\n');
  if (workspace.getAsInteger(10, kernel.workspaceBytes))
    return false;
  kernel.object = object.str();
  return true;
}

void KernelCache::insert(StringRef key, const EmittedKernel &kernel) const {
  insert(key, std::to_string(kernel.workspaceBytes) + "\n" + kernel.object);
}
