/* api_test.c: the C library as a C program uses it. Usage: api_test stories.bin CHAT_MODEL|- */
#include <pocketllama.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int failures = 0;
#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, pocket_error()); \
      failures++;                                                                 \
    }                                                                             \
  } while (0)
#define CHECK_ERROR(call_fails, part)              \
  do {                                             \
    CHECK(call_fails);                             \
    CHECK(strstr(pocket_error(), (part)) != NULL); \
  } while (0)

typedef struct text {
  char bytes[8192];
  size_t size;
  int calls, stop_after, broken;
} text;

/* Whether the text consists of whole UTF-8 characters, by their first bytes. */
static int is_whole(const char* s, size_t n) {
  size_t i = 0;
  while (i < n) {
    const unsigned char c = (unsigned char)s[i];
    i += c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : n + 1;
  }
  return i == n;
}

static int collect(const char* s, size_t n, int32_t id, void* user) {
  text* t = user;
  if (!is_whole(s, n)) t->broken = 1;
  if (t->size + n > sizeof t->bytes) return 1;
  memcpy(t->bytes + t->size, s, n);
  t->size += n;
  t->calls += id >= 0;
  return t->stop_after > 0 && t->calls == t->stop_after;
}

static int equal(const text* a, const text* b) {
  return a->size == b->size && a->size > 0 && memcmp(a->bytes, b->bytes, a->size) == 0;
}

static pocket_session* session_with_seed(pocket_model* model, uint64_t seed) {
  pocket_sampling sampling = POCKET_SAMPLING;
  pocket_session* session = pocket_session_new(model, NULL);
  sampling.seed = seed;
  CHECK(pocket_set_sampling(session, &sampling) == 0);
  return session;
}

static void reports_errors(pocket_model* model, const char* path) {
  const int32_t ids[] = {1, 2, 3}, wrong[] = {1, 1 << 30};
  pocket_sampling sampling = POCKET_SAMPLING;
  pocket_options options = {0, 0, 0};
  pocket_session* session = pocket_session_new(model, NULL);
  const char* damaged = "api_test_damaged.bin";
  FILE* file;
  CHECK_ERROR(!pocket_model_open("no/such/file.bin", 0), "no/such/file.bin: No such file");
  CHECK_ERROR(!pocket_session_new(NULL, NULL), "No such file"); /* the reason why the model is null */
  CHECK_ERROR(!pocket_model_open(NULL, 0), "path: expected a file name");
  CHECK_ERROR(!pocket_model_open(path, 8), "flags");
  file = fopen(damaged, "wb");
  CHECK(file && fwrite("PKTLLAMA and no more", 1, 20, file) == 20 && fclose(file) == 0);
  CHECK_ERROR(!pocket_model_open(damaged, 0), "size: expected at least 256 bytes of header, found 20");
  remove(damaged);
  CHECK_ERROR(!pocket_logits(session), "the session is empty");
  CHECK_ERROR(pocket_append(session, wrong, 2) < 0, "id: expected 0 to");
  CHECK_ERROR(pocket_rewind(session, 1) < 0, "position: expected 0 to 0, found 1");
  CHECK(pocket_position(session) == 0);
  sampling.temperature = -1;
  CHECK_ERROR(pocket_set_sampling(session, &sampling) < 0, "temperature: expected 0 to 100");
  options.threads = -1;
  CHECK_ERROR(!pocket_session_new(model, &options), "threads: expected 0 to 256, found -1");
  CHECK_ERROR(pocket_append_message(session, NULL, "hello") < 0, "no chat template");
  pocket_session_free(session);

  options.threads = 1;
  options.context = 4;
  session = pocket_session_new(model, &options);
  CHECK(pocket_append(session, ids, 3) == 3);
  CHECK_ERROR(pocket_append(session, ids, 2) < 0, "2 tokens, but the context has room for 1");
  CHECK(pocket_position(session) == 3);
  CHECK(pocket_generate(session, 0, NULL, NULL) <= 2); /* then the context is full */
  CHECK(pocket_logits(session) || strstr(pocket_error(), "context"));
  pocket_session_free(session);
  pocket_session_free(NULL);
  pocket_model_free(NULL);
  pocket_cancel(NULL);
}

static void encodes_and_decodes(pocket_model* model) {
  int32_t ids[64];
  char buffer[64];
  const char* sentence = "Tom saw a caf\xC3\xA9.";
  const int n = pocket_encode(model, sentence, 0, ids, 64), all = pocket_encode(model, sentence, 1, NULL, 0);
  CHECK(n > 0 && n < 64 && (all == n || all == n + 1));
  CHECK(pocket_decode(model, ids, n, buffer, sizeof buffer) == (int64_t)strlen(sentence));
  CHECK(memcmp(buffer, sentence, strlen(sentence)) == 0);
  CHECK(pocket_decode(model, ids, n, NULL, 0) == (int64_t)strlen(sentence));
  ids[0] = -5;
  CHECK_ERROR(pocket_decode(model, ids, n, NULL, 0) < 0, "found -5");
}

/* The text of one call equals that of many, of a fork, of a rewound session, and of one that was stopped. */
static void gives_one_text(pocket_model* model) {
  text whole = {0}, parts = {0}, forked = {0}, again = {0}, stopped = {0};
  pocket_session *session = session_with_seed(model, 7), *other = session_with_seed(model, 7), *fork;
  int start, left, i;
  CHECK(pocket_append_text(session, "Once upon a time") > 0);
  start = pocket_append_text(other, "Once upon a time");
  CHECK(pocket_generate(session, 60, collect, &whole) == 60 && whole.calls == 60 && !whole.broken);
  CHECK(pocket_position(session) == start + 60);
  while ((left = pocket_process(other, 2)) > 0) continue;
  CHECK(left == 0);
  for (i = 0; i < 20; i++) CHECK(pocket_generate(other, 1, collect, &parts) == 1);
  memcpy(&forked, &parts, sizeof parts);
  fork = pocket_session_fork(other);
  CHECK(pocket_generate(other, 40, collect, &parts) == 40 && equal(&whole, &parts));
  pocket_session_free(other);
  CHECK(pocket_generate(fork, 40, collect, &forked) == 40 && equal(&whole, &forked));
  pocket_session_free(fork);

  CHECK(pocket_rewind(session, start) == start);
  {
    pocket_sampling sampling = POCKET_SAMPLING;
    sampling.seed = 7;
    CHECK(pocket_set_sampling(session, &sampling) == 0);
  }
  CHECK(pocket_generate(session, 60, collect, &again) == 60 && equal(&whole, &again));
  CHECK(pocket_rewind(session, 0) == 0 && pocket_append_text(session, "Once upon a time") == start);
  stopped.stop_after = 3;
  CHECK(pocket_generate(session, 60, collect, &stopped) == 3 && pocket_position(session) == start + 3);
  pocket_session_free(session);
}

static void logits_do_not_depend_on_the_batch(pocket_model* model) {
  pocket_info info;
  pocket_session* session = pocket_session_new(model, NULL);
  float* kept;
  const float* logits;
  int32_t ids[64];
  int i, n = pocket_encode(model, "Once upon a time there was", 1, ids, 64);
  CHECK(pocket_model_info(model, &info) == 0 && info.vocab_size > 0 && info.context > 0 && info.layers > 0);
  CHECK(strstr(info.provenance, "source") != NULL && pocket_append(session, ids, n) == n);
  kept = malloc(sizeof(float) * (size_t)info.vocab_size);
  logits = pocket_logits(session);
  CHECK(kept && logits);
  if (kept && logits) memcpy(kept, logits, sizeof(float) * (size_t)info.vocab_size);
  CHECK(pocket_rewind(session, 0) == 0);
  for (i = 0; i < n; i++) {
    CHECK(pocket_append(session, ids + i, 1) == i + 1);
    logits = pocket_logits(session);
  }
  CHECK(kept && logits && memcmp(kept, logits, sizeof(float) * (size_t)info.vocab_size) == 0);
  CHECK(pocket_logits(session) != NULL);
  free(kept);
  pocket_session_free(session);
}

/* tests/apps/c_adapters_test.cpp has what adapters do. */
static void refuses_what_is_no_adapter(pocket_model* model) {
  pocket_scaled_adapter none = {NULL, 1};
  pocket_session* session = pocket_session_new_with_adapters(model, NULL, NULL, 0);
  CHECK(pocket_append_text(session, "Once") > 0 && pocket_logits(session) != NULL);
  CHECK_ERROR(!pocket_adapter_open(model, "no/such/folder"), "no/such/folder: expected the folder of a LoRA adapter");
  CHECK_ERROR(!pocket_session_new_with_adapters(model, NULL, &none, 1), "no/such/folder");
  CHECK_ERROR(!pocket_adapter_open(model, NULL), "folder: expected the name of a folder, found NULL");
  pocket_adapter_free(none.adapter);
  pocket_session_free(session);
}

static void can_be_cancelled(pocket_model* model) {
  pocket_session* session = session_with_seed(model, 1);
  int n = pocket_append_text(session, "Once upon a time");
  pocket_cancel(session);
  CHECK_ERROR(pocket_generate(session, 5, NULL, NULL) < 0, "cancelled");
  CHECK(pocket_position(session) == n && pocket_generate(session, 5, NULL, NULL) == 5);
  pocket_session_free(session);
}

static void* cancel_soon(void* session) {
  const clock_t begin = clock(); /* CPU time of the process, which computes meanwhile */
  while (clock() - begin < CLOCKS_PER_SEC / 5) continue;
  pocket_cancel(session);
  return NULL;
}

/* Of a long text, a cancelled call keeps what is complete. */
static void cancelled_call_keeps_what_is_complete(pocket_model* model) {
  const pocket_options options = {8000, 1, 0};
  pocket_session* session = pocket_session_new(model, &options);
  int32_t ids[7000];
  int i, left;
  pthread_t canceller;
  for (i = 0; i < 7000; i++) ids[i] = 300 + i % 100;
  CHECK(pocket_append(session, ids, 7000) == 7000);
  CHECK(pthread_create(&canceller, NULL, cancel_soon, session) == 0);
  left = pocket_process(session, 0);
  CHECK(pthread_join(canceller, NULL) == 0);
  if (left != 0) { /* not on a very fast computer */
    CHECK_ERROR(left < 0, "cancelled");
    left = pocket_process(session, 1);
    CHECK(left >= 0 && left < 6999);
  }
  pocket_session_free(session);
}

static pocket_model* shared;

static void* tell(void* user) {
  pocket_session* session = session_with_seed(shared, 3);
  text* t = user;
  CHECK(pocket_append_text(session, "The dog") > 0 && pocket_generate(session, 80, collect, t) > 0);
  CHECK(!pocket_model_open("missing.bin", 0) && strstr(pocket_error(), "missing.bin"));
  pocket_session_free(session);
  return NULL;
}

/* Threads share a model, and each has its own error. */
static void threads_share_a_model(void) {
  enum { kThreads = 4 };
  static text texts[kThreads];
  pthread_t threads[kThreads];
  char before[1024];
  int i;
  CHECK(!pocket_model_open("of this thread.bin", 0));
  strcpy(before, pocket_error());
  for (i = 0; i < kThreads; i++) CHECK(pthread_create(&threads[i], NULL, tell, &texts[i]) == 0);
  for (i = 0; i < kThreads; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 1; i < kThreads; i++) CHECK(equal(&texts[0], &texts[i]));
  CHECK(strcmp(before, pocket_error()) == 0);
}

static void chats(const char* path) {
  text reply = {0}, second = {0};
  pocket_model* model = pocket_model_open(path, POCKET_COPY);
  pocket_session* session = pocket_session_new(model, NULL);
  pocket_sampling sampling = POCKET_SAMPLING;
  sampling.temperature = 0;
  CHECK(pocket_set_sampling(session, &sampling) == 0);
  CHECK(pocket_append_message(session, NULL, "What is the capital of France?") > 0);
  CHECK(pocket_generate(session, 40, collect, &reply) > 0);
  CHECK(reply.size > 0 && strstr(reply.bytes, "Paris") != NULL);
  CHECK(pocket_append_message(session, NULL, "And of Italy?") > 0);
  CHECK(pocket_generate(session, 40, collect, &second) > 0 && strstr(second.bytes, "Rome") != NULL);
  pocket_session_free(session);
  pocket_model_free(model);
}

/* The file at `path`, in memory on a 64-byte boundary, is the same model. */
static void opens_memory(const char* path) {
  FILE* file = fopen(path, "rb");
  char* bytes = malloc((2 << 20) + 64);
  char* at = bytes + (64 - (size_t)bytes % 64);
  const size_t n = fread(at, 1, 2 << 20, file);
  pocket_model* model = pocket_model_open_memory(at, n);
  pocket_info info;
  CHECK(pocket_model_info(model, &info) == 0 && info.file_bytes == n);
  CHECK(pocket_self_test(model, NULL) > 0 && pocket_self_test(model, "scalar") == 1);
  CHECK(pocket_self_test(model, "abacus") == 0 && pocket_self_test(NULL, NULL) == -1);
  pocket_model_free(model);
  CHECK_ERROR(!pocket_model_open_memory(at, n - 1), "truncated");
  CHECK_ERROR(!pocket_model_open_memory(at + 1, n), "64-byte boundary");
  CHECK_ERROR(!pocket_model_open_memory(NULL, n), "NULL");
  fclose(file);
  free(bytes);
}

int main(int argc, char** argv) {
  pocket_session* session;
  pocket_model* model;
  if (argc != 3) return 2;
  CHECK(pocket_api_version() == POCKET_API_VERSION);
  CHECK(strcmp(pocket_error(), "") == 0);
  model = shared = pocket_model_open(argv[1], 0);
  reports_errors(model, argv[1]);
  encodes_and_decodes(model);
  gives_one_text(model);
  logits_do_not_depend_on_the_batch(model);
  refuses_what_is_no_adapter(model);
  can_be_cancelled(model);
  cancelled_call_keeps_what_is_complete(model);
  threads_share_a_model();
  opens_memory(argv[1]);
  if (strcmp(argv[2], "-") != 0) chats(argv[2]);

  session = pocket_session_new(model, NULL);
  pocket_model_free(model); /* the session keeps it open */
  CHECK(strcmp(pocket_kernel(session), "") != 0);
  CHECK(pocket_append_text(session, "The end") > 0 && pocket_logits(session) != NULL);
  pocket_session_free(session);
  printf("%d failures\n", failures);
  return failures != 0;
}
