// main.cpp: serve: a server for programs that know OpenAI's API, and a page to chat.
#include "service.hpp"

int main(int argc, char** argv) {
  using namespace pocket;
  return guarded(
      "serve",
      [&] {
        const server::Arguments a = server::parse(argc, argv);
        if (a.help) return server::print_help();
        if (a.version) return void(std::printf("serve %s, model format %u\n", kVersion, kFormatVersion));
        server::Service(a).run();
      },
      on_interrupt, "; or use --no-mmap");
}
