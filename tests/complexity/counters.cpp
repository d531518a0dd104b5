// counters.cpp: the functions that the compiler calls for each basic block, and replacements of the C library's for
// memory and files, which count and do the same. Compiled without -fsanitize-coverage and without the recognition of
// loops that are such a function.
#include "counters.hpp"

#include <malloc.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace {

uint64_t n_steps = 0;
size_t in_use = 0, most = 0;

void count_bytes(size_t n) { n_steps += n / 16; }

}  // namespace

uint64_t counters::steps() { return n_steps; }
size_t counters::memory() { return in_use; }
size_t counters::peak() { return most; }
void counters::reset_peak() { most = in_use; }

extern "C" {

void __sanitizer_cov_trace_pc() { n_steps++; }

void* memcpy(void* to, const void* from, size_t n) {
  count_bytes(n);
  for (size_t i = 0; i < n; i++) static_cast<char*>(to)[i] = static_cast<const char*>(from)[i];
  return to;
}

void* memmove(void* to, const void* from, size_t n) {
  if (to <= from) return memcpy(to, from, n);
  count_bytes(n);
  for (size_t i = n; i > 0; i--) static_cast<char*>(to)[i - 1] = static_cast<const char*>(from)[i - 1];
  return to;
}

void* memset(void* to, int value, size_t n) {
  count_bytes(n);
  for (size_t i = 0; i < n; i++) static_cast<char*>(to)[i] = char(value);
  return to;
}

int memcmp(const void* a, const void* b, size_t n) {
  const auto *x = static_cast<const unsigned char*>(a), *y = static_cast<const unsigned char*>(b);
  size_t i = 0;
  while (i < n && x[i] == y[i]) i++;
  count_bytes(i);
  return i == n ? 0 : x[i] - y[i];
}

void* memchr(const void* in, int value, size_t n) {
  const auto* bytes = static_cast<const unsigned char*>(in);
  size_t i = 0;
  while (i < n && bytes[i] != static_cast<unsigned char>(value)) i++;
  count_bytes(i);
  return i == n ? nullptr : const_cast<unsigned char*>(bytes + i);
}

ssize_t pread(int file, void* to, size_t n, off_t offset) {
  count_bytes(n);
  return syscall(SYS_pread64, file, to, n, offset);
}

}  // extern "C"

void* operator new(size_t n) {
  void* memory = std::malloc(std::max<size_t>(n, 1));
  if (!memory) throw std::bad_alloc();
  in_use += malloc_usable_size(memory);
  most = std::max(most, in_use);
  return memory;
}

void operator delete(void* memory) noexcept {
  in_use -= memory ? malloc_usable_size(memory) : 0;
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
