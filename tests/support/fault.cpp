// fault.cpp: a library for LD_PRELOAD that makes one call of a program fail, or raises a signal there.
//
//     POCKET_FAULT=KIND:N          the N-th call of this kind fails, N = 1, 2, ...
//     POCKET_FAULT=KIND:N+         and all later ones
//     POCKET_FAULT=KIND:N:SIGNAL   at the N-th call this signal is raised, by its number; the call succeeds
//     POCKET_FAULT_COUNT=FILE      appends the number of calls of this kind at the end of the program
//
// Kinds: memory (malloc and what is built on it), write, sync, rename, map.
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

extern "C" {
void* __libc_malloc(size_t n);
void* __libc_calloc(size_t n, size_t size);
void* __libc_realloc(void* p, size_t n);
void* __libc_memalign(size_t alignment, size_t n);
}

namespace {

// POCKET_FAULT. Read at the first call, which may be before main().
struct Plan {
  const char* kind = "";  // ends at ':'
  long n = 0;
  bool later = false;
  int signal = 0;

  Plan() {
    const char* text = getenv("POCKET_FAULT");
    const char* colon = text ? strchr(text, ':') : nullptr;
    if (!colon) return;
    kind = text;
    char* end = nullptr;
    n = strtol(colon + 1, &end, 10);
    later = *end == '+';
    if (*end == ':') signal = int(strtol(end + 1, nullptr, 10));
  }
  bool is(const char* name) const { return strncmp(kind, name, strlen(name)) == 0; }
};

const Plan& plan() {
  static const Plan p;
  return p;
}

std::atomic<long> calls{0};  // of the kind

// Whether this call of a kind fails.
bool fails(const char* kind) {
  const Plan& p = plan();
  if (!p.is(kind)) return false;
  const long n = ++calls;
  if (n == p.n && p.signal) raise(p.signal);
  return !p.signal && p.n > 0 && (n == p.n || (p.later && n > p.n));
}

bool fails(const char* kind, int why) {
  if (!fails(kind)) return false;
  errno = why;
  return true;
}

__attribute__((destructor)) void report() {
  const char* path = getenv("POCKET_FAULT_COUNT");
  if (!path) return;
  char text[32];
  const int n = snprintf(text, sizeof text, "%ld\n", calls.load());
  const int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
  syscall(SYS_write, file, text, size_t(n));
  close(file);
}

}  // namespace

extern "C" {

void* malloc(size_t n) { return fails("memory", ENOMEM) ? nullptr : __libc_malloc(n); }
void* calloc(size_t n, size_t size) { return fails("memory", ENOMEM) ? nullptr : __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { return fails("memory", ENOMEM) ? nullptr : __libc_realloc(p, n); }
void* aligned_alloc(size_t alignment, size_t n) {
  return fails("memory", ENOMEM) ? nullptr : __libc_memalign(alignment, n);
}

ssize_t write(int file, const void* data, size_t n) {
  return fails("write", ENOSPC) ? -1 : syscall(SYS_write, file, data, n);
}
ssize_t pwrite(int file, const void* data, size_t n, off_t at) {
  return fails("write", ENOSPC) ? -1 : syscall(SYS_pwrite64, file, data, n, at);
}
int fsync(int file) { return fails("sync", EIO) ? -1 : int(syscall(SYS_fsync, file)); }
int rename(const char* from, const char* to) {
  return fails("rename", EACCES) ? -1 : int(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
void* mmap(void* at, size_t n, int protection, int flags, int file, off_t offset) {
  if (fails("map", ENOMEM)) return MAP_FAILED;
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, n, protection, flags, file, offset));
}
}
