// engine.cpp: the installed engine in C++. Prints the tokens of a text.
#define POCKET_NO_MAIN
#include "run.cpp"
#include "tokenizer.hpp"

int main(int, char** argv) {
  pocket::Model model;
  pocket::Tokenizer tokenizer;
  if (!model.open(argv[1]) || !tokenizer.load(model.tokenizer_bytes())) return 1;
  for (const int id : tokenizer.encode("Once upon a time")) std::printf("%d\n", id);
}
