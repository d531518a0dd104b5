// process_memory.hpp: the resident memory of this process, and the memory that is free.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>

namespace pocket::cli {

// Peak resident memory in bytes. Linux reports it in /proc; getrusage would include the memory of the process before
// exec.
inline size_t peak_memory() {
  size_t kib = 0;
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    for (char line[128]; !kib && std::fgets(line, sizeof line, file);) std::sscanf(line, "VmHWM: %zu", &kib);
    std::fclose(file);
  }
  if (kib) return kib * 1024;
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

// Memory in bytes that a new process could use; where it is unknown, half of the machine's memory.
inline size_t available_memory() {
  size_t kib = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    for (char line[128]; !kib && std::fgets(line, sizeof line, file);) std::sscanf(line, "MemAvailable: %zu", &kib);
    std::fclose(file);
  }
  if (kib) return kib * 1024;
  return size_t(sysconf(_SC_PHYS_PAGES)) / 2 * size_t(sysconf(_SC_PAGESIZE));
}

}  // namespace pocket::cli
