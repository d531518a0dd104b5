# For find_package(pocketllama). Defines
#   pocketllama::pocketllama  C++: "run.cpp" and "tokenizer.hpp"
#   pocketllama::c            C: <pocketllama.h> and the shared library
#   pocketllama::c_static     C: the same with the static library; the program is linked as C++
include(CMakeFindDependencyMacro)
find_dependency(Threads)

get_filename_component(pocketllama_libdir ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
find_path(pocketllama_include pocketllama.h NO_DEFAULT_PATH
  PATHS ${pocketllama_libdir}/../include ${pocketllama_libdir}/../../include)
mark_as_advanced(pocketllama_include)

if(NOT TARGET pocketllama::pocketllama)
  add_library(pocketllama::pocketllama INTERFACE IMPORTED)
  set_target_properties(pocketllama::pocketllama PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${pocketllama_include}/pocketllama INTERFACE_COMPILE_FEATURES cxx_std_17
    INTERFACE_COMPILE_OPTIONS -ffp-contract=off INTERFACE_LINK_LIBRARIES Threads::Threads)

  add_library(pocketllama::c SHARED IMPORTED)
  set_target_properties(pocketllama::c PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${pocketllama_include}
    IMPORTED_LOCATION ${pocketllama_libdir}/libpocketllama${CMAKE_SHARED_LIBRARY_SUFFIX})

  add_library(pocketllama::c_static STATIC IMPORTED)
  set_target_properties(pocketllama::c_static PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${pocketllama_include}
    IMPORTED_LOCATION ${pocketllama_libdir}/libpocketllama.a IMPORTED_LINK_INTERFACE_LANGUAGES CXX
    INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()
