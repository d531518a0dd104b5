/* example.c: tells a story, then shows which tokens may come next.
 *
 *     make lib && gcc -std=c99 -Iapps/c apps/c/example.c -o example -Lapps/c -lpocketllama -Wl,-rpath,$PWD/apps/c
 *     ./example models/stories.bin "Once upon a time" 5
 *     ./example models/stories.bin "Once upon a time" 5 robot 0.5    with a LoRA adapter, as ./run --lora robot:0.5
 */
#include <pocketllama.h>

#include <stdio.h>
#include <stdlib.h>

/* Prints the text of a token. `user`: the number of bytes so far. */
static int print(const char* text, size_t bytes, int32_t id, void* user) {
  size_t* total = user;
  (void)id;
  *total += bytes;
  return fwrite(text, 1, bytes, stdout) == bytes ? 0 : 1;
}

/* Returns the index of the largest of n logits. */
static int32_t most_likely(const float* logits, int32_t n) {
  int32_t best = 0, i;
  for (i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

int main(int argc, char** argv) {
  pocket_sampling sampling = POCKET_SAMPLING;
  pocket_info info = {0};
  size_t bytes = 0;
  int status = 1;
  pocket_model* model;
  pocket_scaled_adapter adapter = {NULL, 0};
  pocket_session* session;
  const float* logits;
  int32_t next;
  char piece[256];
  int64_t size;
  if (argc != 4 && argc != 6) {
    fprintf(stderr, "usage: example MODEL PROMPT SEED [ADAPTER SCALE]\n");
    return 2;
  }
  sampling.seed = strtoull(argv[3], NULL, 10);
  model = pocket_model_open(argv[1], 0);
  if (argc == 6) {
    adapter.adapter = pocket_adapter_open(model, argv[4]);
    adapter.scale = strtod(argv[5], NULL);
  }
  session = pocket_session_new_with_adapters(model, NULL, &adapter, argc == 6);
  if (pocket_model_info(model, &info) < 0 || pocket_set_sampling(session, &sampling) < 0 ||
      pocket_append_text(session, argv[2]) < 0)
    goto end;
  printf("%s", argv[2]);
  if (pocket_generate(session, 256, print, &bytes) < 0) goto end;

  if (pocket_position(session) > info.context) {
    fprintf(stderr, "%d tokens, %lu bytes; the context is full\n", pocket_position(session), (unsigned long)bytes);
    status = 0;
    goto end;
  }
  logits = pocket_logits(session);
  if (!logits) goto end;
  next = most_likely(logits, info.vocab_size);
  size = pocket_decode(model, &next, 1, piece, sizeof piece);
  fprintf(stderr, "%d tokens, %lu bytes; most likely next: %d '%.*s'\n", pocket_position(session), (unsigned long)bytes,
          (int)next, size < 0 ? 0 : (int)size, piece);
  status = 0;
end:
  if (status) fprintf(stderr, "example: %s\n", pocket_error());
  pocket_session_free(session);
  pocket_adapter_free(adapter.adapter);
  pocket_model_free(model);
  return status;
}
