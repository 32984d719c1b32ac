//===- Interrupt.cpp - Nothing is left behind by Ctrl-C -------------------===//
//
// A signal handler may neither allocate nor lock, so folders are listed by the
// system call itself and their names lie in an array.
//
//===----------------------------------------------------------------------===//

#include "prefill/Codegen/Interrupt.h"

#include "llvm/Support/Signals.h"

#include <atomic>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <iterator>
#include <sys/syscall.h>
#include <unistd.h>

using namespace prefill;

namespace {
enum class State { Free, Taken, Watched };

struct Slot {
  std::atomic<State> state{State::Free};
  bool ifEmpty = false;
  char path[PATH_MAX];
};

/// What getdents64 writes.
struct DirectoryEntry {
  uint64_t inode;
  int64_t offset;
  uint16_t length;
  uint8_t type;
  char name[];
};
} // namespace

static Slot slots[16];

/// Removes what is in the folder that `parent` and `name` tell; no links are
/// followed.
// NOLINTNEXTLINE(misc-no-recursion)
static void removeContents(int parent, const char *name, unsigned depth) {
  int folder =
      openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0)
    return;
  alignas(DirectoryEntry) char buffer[2048];
  for (bool removed = true; removed;) {
    // From the start again: what is removed moves what follows.
    removed = false;
    (void)lseek(folder, 0, SEEK_SET);
    for (long bytes;
         (bytes = syscall(SYS_getdents64, folder, buffer, sizeof(buffer))) > 0;)
      for (long at = 0; at < bytes;) {
        auto *entry = reinterpret_cast<DirectoryEntry *>(buffer + at);
        at += entry->length;
        if (!std::strcmp(entry->name, ".") || !std::strcmp(entry->name, ".."))
          continue;
        if (unlinkat(folder, entry->name, 0) == 0) {
          removed = true;
          continue;
        }
        if (depth < 8)
          removeContents(folder, entry->name, depth + 1);
        removed |= unlinkat(folder, entry->name, AT_REMOVEDIR) == 0;
      }
  }
  close(folder);
}

static void onInterrupt() {
  // What was watched last lies in what was watched before.
  for (int i = std::size(slots) - 1; i >= 0; --i) {
    if (slots[i].state != State::Watched)
      continue;
    if (!slots[i].ifEmpty)
      removeContents(AT_FDCWD, slots[i].path, 0);
    (void)rmdir(slots[i].path);
  }
  // LLVM has put the former handlers back: this one ends the process.
  (void)raise(SIGINT);
  _exit(130);
}

void FolderWatch::watch(llvm::StringRef path, bool ifEmpty) {
  if (slot >= 0 || path.size() >= PATH_MAX)
    return;
  for (size_t i = 0; i < std::size(slots); ++i) {
    State expected = State::Free;
    if (!slots[i].state.compare_exchange_strong(expected, State::Taken))
      continue;
    slot = int(i);
    slots[i].ifEmpty = ifEmpty;
    std::memcpy(slots[i].path, path.data(), path.size());
    slots[i].path[path.size()] = '\0';
    llvm::sys::SetInterruptFunction(onInterrupt);
    slots[i].state = State::Watched;
    return;
  }
}

FolderWatch::~FolderWatch() {
  if (slot >= 0)
    slots[slot].state = State::Free;
}
