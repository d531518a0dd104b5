// main.cpp: run-batch: replies to a file of requests in the format of OpenAI's Batch API.
#include "batch.hpp"

int main(int argc, char** argv) {
  using namespace pocket;
  return guarded(
      "run-batch",
      [&] {
        const batch::Arguments a = batch::parse(argc, argv);
        if (a.help) return batch::print_help();
        if (a.version) return void(std::printf("run-batch %s, model format %u\n", kVersion, kFormatVersion));
        batch::Batch(a).run();
      },
      on_interrupt, "; or use --no-mmap");
}
