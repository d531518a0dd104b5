# CMake toolchain: tests for aarch64, cross-compiled by g++ or clang++ (CMAKE_CXX_COMPILER) and run by qemu. The variables
# QEMU_CPU and QEMU_LD_PREFIX choose the CPU and where its libraries are.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
if(EXISTS /usr/src/googletest)  # libgtest-dev ships the source; its library is for this machine
  set(FETCHCONTENT_SOURCE_DIR_GOOGLETEST /usr/src/googletest)
endif()
