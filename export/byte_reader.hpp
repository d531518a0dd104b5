// byte_reader.hpp: reads numbers and ranges from bytes, front to back.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine.hpp"

namespace pocket {

/// Reads bytes from front to back. Once something does not fit, ok is false and every value 0.
struct ByteReader {
  std::string_view bytes;
  bool ok = true;

  std::string_view take(uint64_t n) {
    ok = ok && n <= bytes.size();
    if (!ok) return {};
    const std::string_view taken = bytes.substr(0, size_t(n));
    bytes.remove_prefix(size_t(n));
    return taken;
  }
  template <class T> T get() {
    const std::string_view raw = take(sizeof(T));
    return ok ? load<T>(raw.data()) : T();
  }
};

}  // namespace pocket
