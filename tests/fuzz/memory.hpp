// memory.hpp: runs a target, and checks the memory that it takes. Only sanitizers can count it; without one nothing is
// checked.
#pragma once

#include <atomic>
#include <cstddef>

#include "target.hpp"

// sanitizer/allocator_interface.h
extern "C" {
__attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                                    void (*)(const volatile void*));
__attribute__((weak)) size_t __sanitizer_get_allocated_size(const volatile void*);
}

namespace fuzz {

// Readers promise to take at most 100 times the size of their input. A small input may take this much: buffers, and the
// list of tensors of the deepest model.
inline constexpr size_t kMostTimes = 100, kAllowance = 4 << 20;

// Bytes since the hooks were installed; negative after memory from before was freed, which another thread may do.
inline std::atomic<ptrdiff_t> allocated{0}, most_allocated{0};

inline void on_malloc(const volatile void*, size_t bytes) {
  const ptrdiff_t sum = allocated += ptrdiff_t(bytes);
  if (sum > most_allocated) most_allocated = sum;
}
inline void on_free(const volatile void* p) {
  if (p) allocated -= ptrdiff_t(__sanitizer_get_allocated_size(p));
}

inline void run(const Target& target, std::string_view input) {
  static const bool counts =
      __sanitizer_install_malloc_and_free_hooks && __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) > 0;
  const ptrdiff_t before = allocated;
  most_allocated = before;
  target.run(input);
  require(!counts || most_allocated - before <= ptrdiff_t(kMostTimes * input.size() + kAllowance),
          "memory: at most 100 times the input's size");
}

}  // namespace fuzz
