// counters.hpp: counts what a program does, so that a test of its complexity does not depend on the speed of the
// machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace counters {

/// Steps so far: basic blocks of the code compiled with -fsanitize-coverage=trace-pc, and 16 bytes each that are copied,
/// compared, searched, set or read from a file.
uint64_t steps();

/// Bytes of memory in use, and the most since reset_peak().
size_t memory();
size_t peak();
void reset_peak();

}  // namespace counters
