# CMake toolchain for aarch64: g++ or clang++ (CMAKE_CXX_COMPILER), tests run by qemu. The environment variables QEMU_CPU
# and QEMU_LD_PREFIX set the CPU and the folder of its libraries.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
if(EXISTS /usr/src/googletest)  # libgtest-dev has the source; its library is for the host
  set(FETCHCONTENT_SOURCE_DIR_GOOGLETEST /usr/src/googletest)
endif()
