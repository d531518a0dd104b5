// library_wide.cpp: a third source file of the test, compiled for AVX-512 (tests/CMakeLists.txt). Nothing in it is
// executed but what returns these names.
#define POCKET_NO_MAIN
#include <typeinfo>

#include "../../run.cpp"
#include "../../tokenizer.hpp"

std::string type_of_wide_file() { return typeid(pocket::Model).name(); }
std::string tokenizer_type_of_wide_file() { return typeid(pocket::Tokenizer).name(); }
