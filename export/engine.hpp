// engine.hpp: the engine and the tokenizer, as the converter, the trainer and the programs include them.
#pragma once

#ifndef POCKET_NO_MAIN
#define POCKET_NO_MAIN
#endif
#include "../run.cpp"
#include "../tokenizer.hpp"
