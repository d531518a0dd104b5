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

// The page, with `nonce` in place of NONCE in its script and its style sheet. nonce: digits that nobody can guess, and
// that are new in each response.
inline std::string page(const std::string& nonce) {
  std::string html(pocket_page, size_t(pocket_page_end - pocket_page));
  const std::string before = "nonce=\"", place = before + "NONCE\"", own = before + nonce + "\"";
  for (size_t at = 0; (at = html.find(place, at)) != html.npos; at += own.size()) html.replace(at, place.size(), own);
  return html;
}

// Its Content-Security-Policy. A browser applies no script and no style but those with the nonce, makes no script from a
// text (Trusted Types), connects to no other host, and shows the page in no frame. It shows one itself: /explain.
inline std::string page_policy(const std::string& nonce) {
  const std::string source = "'nonce-" + nonce + "'";
  return "default-src 'none'; script-src " + source + "; style-src " + source +
         "; img-src data:; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
         "'none'; "
         "require-trusted-types-for 'script'; trusted-types 'none'";
}

// Of the page at /explain, whose own element has the rest: pages of this server may show it, and it can reach nothing of
// theirs.
inline constexpr const char* kInsidePolicy = "frame-ancestors 'self'; sandbox allow-scripts";

}  // namespace pocket::server
