// output_file.hpp: small files that appear when they are whole.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "input_file.hpp"

namespace pocket {

// Writes a file under another name in the same folder and renames it: what was there stays until the new one is
// complete. On failure returns false with `error` set and leaves nothing behind.
inline bool write_whole_file(const std::string& path, std::string_view bytes, std::string& error) {
  const std::string temporary = path + ".tmp." + std::to_string(getpid());
  FILE* file = std::fopen(temporary.c_str(), "wb");
  if (!file) return fail(error, path + ": " + std::strerror(errno));
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const int why = errno;
  const bool closed = std::fclose(file) == 0;
  if (written && closed && std::rename(temporary.c_str(), path.c_str()) == 0) return true;
  fail(error, path + ": " + std::strerror(written ? errno : why));
  std::remove(temporary.c_str());
  return false;
}

}  // namespace pocket
