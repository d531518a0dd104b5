// allocation_limit.hpp: with the address sanitizer, no file may make a reader allocate more than 64 MB at once.
#pragma once

extern "C" __attribute__((used)) inline const char* __asan_default_options() { return "max_allocation_size_mb=64"; }
