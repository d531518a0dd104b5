// main.cpp: ./run, the full command line around run.cpp.
#include "cli.hpp"

int main(int argc, char** argv) { return pocket::cli::main(argc, argv); }
