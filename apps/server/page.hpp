// page.hpp: the page at /, which the assembler copies into the program. POCKET_PAGE: the path of page.html.
#pragma once

#include <string>

extern "C" const char pocket_page[], pocket_page_end[];

__asm__(
    ".pushsection .rodata\n"
    ".global pocket_page, pocket_page_end\n"
    "pocket_page: .incbin \"" POCKET_PAGE
    "\"\n"
    "pocket_page_end:\n"
    ".popsection\n");

namespace pocket::server {

inline std::string page() { return {pocket_page, size_t(pocket_page_end - pocket_page)}; }

}  // namespace pocket::server
