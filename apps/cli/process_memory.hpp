// process_memory.hpp: the resident memory of this process, and the memory that it may use.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace pocket::cli {

// The number after `key` at the beginning of a line of a file; 0 if there is none.
inline size_t number_in_file(const std::string& path, const std::string& key) {
  size_t number = 0;
  if (std::FILE* file = std::fopen(path.c_str(), "r")) {
    for (char line[128]; !number && std::fgets(line, sizeof line, file);)
      if (key.compare(0, key.size(), line, std::min(key.size(), std::strlen(line))) == 0)
        number = std::strtoull(line + key.size(), nullptr, 10);
    std::fclose(file);
  }
  return number;
}

// Peak resident memory in bytes. Linux reports it in /proc; getrusage would include the memory of the process before
// exec.
inline size_t peak_memory() {
  if (const size_t kib = number_in_file("/proc/self/status", "VmHWM: ")) return kib * 1024;
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return size_t(usage.ru_maxrss);
#else
  return size_t(usage.ru_maxrss) * 1024;
#endif
}

// Resident memory in bytes at this moment; where it is unknown, the peak.
inline size_t resident_memory() {
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return pages > 0 ? size_t(pages) * size_t(sysconf(_SC_PAGESIZE)) : peak_memory();
}

// Memory in bytes that the control groups of this process still allow, apart from what they can take back from the page
// cache; SIZE_MAX without a limit. Both versions of Linux's control groups. root: of the file system, for tests.
inline size_t group_memory(const std::string& root = "") {
  struct Files {
    const char *folder, *limit, *used;
  };
  constexpr Files kVersion1 = {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "total_rss "};
  constexpr Files kVersion2 = {"/sys/fs/cgroup", "/memory.max", "anon "};
  size_t least = SIZE_MAX;
  std::FILE* groups =
      std::fopen((root + "/proc/self/cgroup").c_str(), "r");  // lines such as 4:memory:/user/session or 0::/user
  if (!groups) return least;
  for (char line[4096]; std::fgets(line, sizeof line, groups);) {
    std::string text = line, path = text.substr(std::min(text.size(), text.rfind(':') + 1));
    const bool one = text.find(":memory:") != std::string::npos || text.find(",memory:") != std::string::npos;
    if (!one && text.compare(0, 3, "0::") != 0) continue;
    const Files& files = one ? kVersion1 : kVersion2;
    while (!path.empty() && (path.back() == '\n' || path.back() == '/')) path.pop_back();
    for (;; path.resize(path.rfind('/'))) {  // the group, and those that it is in
      const std::string folder = root + files.folder + path;
      const size_t limit = number_in_file(folder + files.limit, "");
      const size_t used = number_in_file(folder + "/memory.stat", files.used);
      if (limit > 0) least = std::min(least, limit - std::min(limit, used));
      if (path.empty() || path.rfind('/') == std::string::npos) break;
    }
  }
  std::fclose(groups);
  return least;
}

// Memory in bytes that a new process could use; where it is unknown, half of the machine's memory.
inline size_t available_memory() {
  const size_t kib = number_in_file("/proc/meminfo", "MemAvailable: ");
  const size_t free = kib ? kib * 1024 : size_t(sysconf(_SC_PHYS_PAGES)) / 2 * size_t(sysconf(_SC_PAGESIZE));
  return std::min(free, group_memory());
}

}  // namespace pocket::cli
