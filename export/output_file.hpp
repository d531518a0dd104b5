// output_file.hpp: writes small files atomically, for code that returns errors.
#pragma once

#include <string>
#include <string_view>

#include "input_file.hpp"
#include "program.hpp"

namespace pocket {

/// Writes a file that appears under its name once it is complete; until then an existing file stays. On failure returns
/// false with `error` set and leaves no temporary file behind.
inline bool write_whole_file(const std::string& path, std::string_view bytes, std::string& error) try {
  NewFile file(path);
  file.write(bytes.data(), bytes.size());
  file.finish();
  return true;
} catch (const Failure& failure) {
  return fail(error, failure.what);
}

}  // namespace pocket
