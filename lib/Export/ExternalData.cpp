//===- ExternalData.cpp - Files of external data --------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "ExternalData.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/Support/Errno.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/Signals.h"
#include <cerrno>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace prefill;
using llvm::StringRef;
using llvm::Twine;
namespace fs = llvm::sys::fs;

FileBatch::~FileBatch() {
  for (const Pending &file : pending) {
    (void)fs::remove(file.temporary);
    llvm::sys::DontRemoveFileOnSignal(file.temporary);
  }
  // Only folders that are still empty go.
  for (const std::string &folder : llvm::reverse(folders))
    ::rmdir(folder.c_str());
}

static bool failWrite(StringRef path, const Twine &why, std::string &error) {
  error = ("cannot write '" + path + "': " + why).str();
  return false;
}

bool FileBatch::makeFolder(StringRef folder, std::string &error) {
  if (folder.empty() || fs::is_directory(folder))
    return true;
  if (!makeFolder(llvm::sys::path::parent_path(folder), error))
    return false;
  if (std::error_code code =
          fs::create_directory(folder, /*IgnoreExisting=*/true))
    return failWrite(folder, code.message(), error);
  folders.push_back(folder.str());
  return true;
}

bool FileBatch::write(StringRef path,
                      llvm::function_ref<void(llvm::raw_ostream &)> write,
                      std::string &error) {
  if (fs::is_directory(path))
    return failWrite(path, "it is a folder", error);
  if (!makeFolder(llvm::sys::path::parent_path(path), error))
    return false;
  int fd;
  llvm::SmallString<256> temporary;
  if (std::error_code code =
          fs::createUniqueFile(path + ".%%%%%%.tmp", fd, temporary))
    return failWrite(path, code.message(), error);
  llvm::sys::RemoveFileOnSignal(temporary);
  pending.push_back({std::string(temporary), path.str(), {}});
  llvm::raw_fd_ostream os(fd, /*shouldClose=*/true);
  write(os);
  os.close();
  if (std::error_code code = os.error()) {
    os.clear_error();
    return failWrite(path, code.message(), error);
  }
  return true;
}

/// Copies bytes `begin` to `end` of a file; the error number, or 0.
static int copyRange(int from, int to, off_t begin, off_t end) {
  bool useKernel = true;
  std::string buffer;
  while (begin < end) {
    ssize_t done = 0;
    if (useKernel) {
      loff_t in = begin, out = begin;
      done = ::copy_file_range(from, &in, to, &out, end - begin, 0);
      if (done < 0 && errno == EINTR)
        continue;
      // Not between all file systems.
      if (done <= 0) {
        useKernel = false;
        continue;
      }
    } else {
      buffer.resize(1 << 20);
      size_t wanted = std::min<off_t>(buffer.size(), end - begin);
      done = llvm::sys::RetryAfterSignal(-1, ::pread, from, buffer.data(),
                                         wanted, begin);
      if (done == 0)
        return EIO;
      if (done > 0)
        done = llvm::sys::RetryAfterSignal(-1, ::pwrite, to, buffer.data(),
                                           static_cast<size_t>(done), begin);
      if (done < 0)
        return errno;
    }
    begin += done;
  }
  return 0;
}

/// Copies a file: by sharing its blocks if the file system can, otherwise what
/// is in it, leaving holes as holes. The error number, or 0.
static int copyFile(int from, int to) {
  struct stat status;
  if (::fstat(from, &status) != 0)
    return errno;
#ifdef FICLONE
  if (::ioctl(to, FICLONE, from) == 0)
    return 0;
#endif
  if (::ftruncate(to, status.st_size) != 0)
    return errno;
  for (off_t at = 0; at < status.st_size;) {
    off_t begin = ::lseek(from, at, SEEK_DATA);
    if (begin < 0 && errno == ENXIO)
      return 0; // Only a hole is left.
    off_t end = begin < 0 ? -1 : ::lseek(from, begin, SEEK_HOLE);
    if (begin < 0 || end < 0) {
      begin = at;
      end = status.st_size;
    }
    if (int code = copyRange(from, to, begin, end))
      return code;
    at = end;
  }
  return 0;
}

bool FileBatch::place(StringRef source, StringRef path, ExternalData how,
                      std::string &error) {
  // The same file already: in the model's own folder, or linked by an earlier
  // run. A copy is wanted to be a file of its own, but the first is it.
  bool same = false;
  if (!fs::equivalent(source, path, same) && same) {
    llvm::SmallString<256> a, b;
    bool samePath = !fs::real_path(source, a) && !fs::real_path(path, b) &&
                    a == b && !fs::is_symlink_file(path);
    if (how != ExternalData::Copy || samePath)
      return true;
  }
  if (fs::is_directory(path))
    return failWrite(path, "it is a folder", error);
  if (!makeFolder(llvm::sys::path::parent_path(path), error))
    return false;
  int from;
  if (std::error_code code = fs::openFileForRead(source, from)) {
    error =
        ("cannot read external data '" + source + "': " + code.message()).str();
    return false;
  }
  llvm::scope_exit closeSource([&] { ::close(from); });
  llvm::SmallString<256> temporary;
  if (how != ExternalData::Copy) {
    for (int attempt = 0; attempt < 16; ++attempt) {
      fs::createUniquePath(path + ".%%%%%%.tmp", temporary,
                           /*MakeAbsolute=*/false);
      // Of what a symbolic link points at: download caches link to blobs.
      if (::linkat(AT_FDCWD, source.str().c_str(), AT_FDCWD, temporary.c_str(),
                   AT_SYMLINK_FOLLOW) == 0) {
        llvm::sys::RemoveFileOnSignal(temporary);
        pending.push_back({std::string(temporary), path.str(), {}});
        return true;
      }
      if (errno != EEXIST)
        break;
    }
    if (how == ExternalData::Link)
      return failWrite(path,
                       "no hard link to '" + source + "' can be made (" +
                           llvm::sys::StrError() + "); use -external-data=copy",
                       error);
  }
  int to;
  if (std::error_code code =
          fs::createUniqueFile(path + ".%%%%%%.tmp", to, temporary))
    return failWrite(path, code.message(), error);
  llvm::sys::RemoveFileOnSignal(temporary);
  pending.push_back({std::string(temporary), path.str(), {}});
  int code = copyFile(from, to);
  if (::close(to) != 0 && code == 0)
    code = errno;
  return code == 0 || failWrite(path, llvm::sys::StrError(code), error);
}

bool FileBatch::move(StringRef source, StringRef path, std::string &error) {
  if (fs::is_directory(path))
    return failWrite(path, "it is a folder", error);
  pending.push_back({source.str(), path.str(), {}});
  return true;
}

/// Gives the file at `path`, if there is one, a second name beside it, or where
/// the file system cannot link another one.
static std::error_code keepAside(StringRef path, std::string &aside) {
  llvm::SmallString<256> name;
  for (int attempt = 0; attempt < 16; ++attempt) {
    fs::createUniquePath(path + ".%%%%%%.old", name, /*MakeAbsolute=*/false);
    // A symbolic link is linked itself, not what it points at.
    if (::link(path.str().c_str(), name.c_str()) == 0) {
      aside = std::string(name);
      return {};
    }
    if (errno == ENOENT)
      return {};
    if (errno != EEXIST)
      break;
  }
  std::error_code code = fs::rename(path, name);
  if (!code)
    aside = std::string(name);
  return code;
}

/// Undoes the work of keepAside.
static void putBack(StringRef aside, StringRef path) {
  if (aside.empty())
    return;
  (void)fs::rename(aside, path);
  // Two names of one file stay as they are.
  (void)fs::remove(aside);
}

bool FileBatch::commit(std::string &error) {
  for (auto [number, file] : llvm::enumerate(pending)) {
    std::error_code code = keepAside(file.path, file.old);
    if (!code)
      code = fs::rename(file.temporary, file.path);
    if (code) {
      putBack(file.old, file.path);
      for (const Pending &done :
           llvm::reverse(llvm::ArrayRef(pending).take_front(number))) {
        if (done.old.empty())
          (void)fs::remove(done.path);
        putBack(done.old, done.path);
      }
      return failWrite(file.path, code.message(), error);
    }
    llvm::sys::DontRemoveFileOnSignal(file.temporary);
  }
  for (const Pending &file : pending)
    if (!file.old.empty())
      (void)fs::remove(file.old);
  pending.clear();
  folders.clear();
  return true;
}
