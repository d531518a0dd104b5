// saved_session_test.cpp: a restored session gives the bits of an uninterrupted one; the saved bytes do not depend on
// kernels, threads and batches; damaged or foreign bytes are rejected.
#include "../../apps/cli/saved_session.hpp"

#include <gtest/gtest.h>

#include "../support/program.hpp"
#include "../support/tiny_model.hpp"

namespace saved_session_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::random_ids;
using tiny::same_bits;
using tiny::small_config;

std::string saved(const Session& session, std::string_view note = "") {
  std::string bytes, error;
  const WriteBytes write = [&](const void* data, size_t n) {
    bytes.append(static_cast<const char*>(data), n);
    return true;
  };
  EXPECT_TRUE(save_session(session, note, write, error)) << error;
  return bytes;
}

// Restores the session. Returns "", or the error.
std::string restored(Session& session, std::string_view bytes, std::string& note) {
  std::string error;
  const uint64_t size = bytes.size();
  const ReadBytes read = [&](void* data, size_t n) {
    if (n > bytes.size()) return false;
    std::memcpy(data, bytes.data(), n);
    bytes.remove_prefix(n);
    return true;
  };
  const bool good = restore_session(session, size, read, note, error);
  EXPECT_EQ(good, error.empty()) << error;
  EXPECT_TRUE(good || session.position() == 0);
  return error;
}

std::string restored(Session& session, std::string_view bytes) {
  std::string note;
  return restored(session, bytes, note);
}

// A copy with `value` at byte `at`, and a valid checksum of the header.
template <class T> std::string patched(std::string bytes, size_t at, T value) {
  std::memcpy(&bytes[at], &value, sizeof value);
  SavedSession h;
  std::memcpy(&h, bytes.data(), sizeof h);
  h.checksum = 0;
  h.checksum = hash_bytes(&h, sizeof h);
  std::memcpy(&bytes[0], &h, sizeof h);
  return bytes;
}

TEST(SavedSession, BelongsToTheModelAndItsAdapter) {
  const MemoryModel m(small_config(), Type::q8);
  Adapter one, two;
  one.checksum = 1;
  two.checksum = 2;
  const std::vector<int> ids = random_ids(5, 100);
  const Adapter* const all[] = {nullptr, &one, &two};
  for (const Adapter* from : all) {
    Session first(m.model, {0, 1, KvType::automatic, nullptr, from});
    ASSERT_TRUE(first.forward(ids.data(), ids.size()));
    const std::string bytes = saved(first);
    for (const Adapter* to : all) {
      Session second(m.model, {0, 1, KvType::automatic, nullptr, to});
      const std::string error = restored(second, bytes);
      EXPECT_EQ(error.empty(), from == to) << error;
      EXPECT_TRUE(from == to || error.find("needs the model it was saved with, and its adapters") != error.npos)
          << error;
    }
  }
}

TEST(SavedSession, RestoredSessionGivesTheSameBits) {
  const std::vector<int> ids = random_ids(300, 100);
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    const MemoryModel m(small_config(), type);
    for (const KvType kv : {KvType::q8, KvType::f32}) {
      Session whole(m.model, {0, 1, kv, "scalar"});
      const float* expected = whole.forward(ids.data(), ids.size());
      for (const int at : {1, 16, 127, 128, 129, 200}) {
        Session first(m.model, {0, 2, kv}), second(m.model, {400, 3, kv});
        ASSERT_TRUE(first.forward(ids.data(), size_t(at)));
        ASSERT_TRUE(second.forward(ids.data() + 100, 150)) << "tokens from before the restore have no effect";
        ASSERT_EQ(restored(second, saved(first)), "");
        ASSERT_EQ(second.position(), at);
        const float* found = second.forward(ids.data() + at, size_t(300 - at));
        ASSERT_TRUE(expected && found) << second.error;
        EXPECT_TRUE(same_bits(found, expected, 100)) << type_name(type) << ", saved at " << at;
      }
    }
  }
}

TEST(SavedSession, BytesDoNotDependOnKernelThreadsAndBatch) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(150, 100);
  std::string expected;
  for (const Kernels* k : tiny::kernel_sets())
    for (const size_t batch : {1u, 7u, 150u}) {
      Session session(m.model, {0, 1 + int(batch % 3), KvType::automatic, k->name});
      ASSERT_TRUE(session.forward(ids.data(), 40));  // rewound tokens leave no trace
      session.rewind(0);
      for (size_t i = 0; i < ids.size(); i += batch)
        ASSERT_TRUE(session.forward(&ids[i], std::min(batch, ids.size() - i)));
      const std::string bytes = saved(session, "note");
      if (expected.empty()) expected = bytes;
      EXPECT_TRUE(bytes == expected) << k->name << ", batch " << batch;
    }
  // 2 layers, 2 KV heads of 16: for each, two scales and two vectors of int8.
  EXPECT_EQ(expected.size(), 64 + 4 + 150u * 2 * 2 * (8 + 32)) << "only the filled part of the cache";
}

TEST(SavedSession, ReturnsTheNoteUnchanged) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model), other(m.model);
  for (const std::string& note : {std::string(), std::string("a\0b", 3), std::string(100000, 'x')})
    for (const int n : {0, 3}) {
      session.rewind(0);
      const std::vector<int> ids = random_ids(3, 100);
      ASSERT_TRUE(n == 0 || session.forward(ids.data(), size_t(n)));
      std::string found = "another";
      EXPECT_EQ(restored(other, saved(session, note), found), "");
      EXPECT_EQ(found, note);
      EXPECT_EQ(other.position(), n);
    }
}

TEST(SavedSession, RejectsTruncatedExtendedAndChangedBytes) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model), other(m.model);
  const std::vector<int> ids = random_ids(5, 100);
  ASSERT_TRUE(session.forward(ids.data(), 5));
  const std::string bytes = saved(session, "a note");
  for (size_t n = 0; n < bytes.size(); n++) EXPECT_NE(restored(other, bytes.substr(0, n)), "") << n << " bytes";
  EXPECT_NE(restored(other, bytes + "x").find("size: expected a note of 6 bytes"), std::string::npos);
  for (size_t i = 0; i < bytes.size(); i++) {
    std::string changed = bytes;
    changed[i] ^= 16;
    EXPECT_NE(restored(other, changed), "") << "byte " << i;
  }
  EXPECT_EQ(restored(other, bytes), "");
}

TEST(SavedSession, NamesTheInvalidField) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model), other(m.model);
  const std::vector<int> ids = random_ids(5, 100);
  ASSERT_TRUE(session.forward(ids.data(), 5));
  const std::string bytes = saved(session, "a note");
  const auto expect = [&](const std::string& changed, const std::string& words) {
    EXPECT_EQ(restored(other, changed).rfind(words, 0), 0u) << restored(other, changed) << "\nexpected " << words;
  };
  expect(patched(bytes, 0, 'X'), "magic: ");
  expect(patched(bytes, offsetof(SavedSession, version), 2u), "version: expected 1, found 2");
  expect(patched(bytes, offsetof(SavedSession, kv_f32), 7u), "kv_f32: expected 0 or 1, found 7");
  expect(patched(bytes, offsetof(SavedSession, kv_f32), 1u), "keys and values: expected f32");
  for (const uint32_t position : {0u, 4u, 6u, 512u})
    expect(patched(bytes, offsetof(SavedSession, position), position), "cache_bytes: expected ");
  expect(patched(bytes, offsetof(SavedSession, position), 513u), "position: expected at most the context of 512");
  expect(patched(bytes, offsetof(SavedSession, position), ~0u), "position: ");
  expect(patched(bytes, offsetof(SavedSession, context), 0u), "context: expected 1 to ");
  expect(patched(bytes, offsetof(SavedSession, context), ~0u), "context: expected 1 to ");
  for (const uint64_t wrong : {uint64_t(0), uint64_t(1) << 62, ~uint64_t(0)}) {
    expect(patched(bytes, offsetof(SavedSession, note_bytes), wrong),
           "size: expected a note of " + std::to_string(wrong));
    expect(patched(bytes, offsetof(SavedSession, cache_bytes), wrong), "cache_bytes: ");
  }
  expect(patched(bytes, offsetof(SavedSession, model), uint64_t(5)), "model: expected ");
  std::string changed = bytes;
  changed[offsetof(SavedSession, checksum)] ^= 1;
  expect(changed, "checksum of the header: expected ");
}

// The caller states the size: the note would have the rest of it.
TEST(SavedSession, ASizeBeyondMemoryIsAnError) {
  if (kSanitized) GTEST_SKIP() << "ASan ends a program that asks for so much";
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model), other(m.model);
  const int id = 1;
  ASSERT_TRUE(session.forward(&id, 1));
  const std::string bytes = saved(session);
  for (const uint64_t size : {~uint64_t(0), uint64_t(1) << 63, uint64_t(1) << 50}) {
    const std::string head = patched(bytes, offsetof(SavedSession, note_bytes), size - bytes.size());
    const ReadBytes read = [&](void* data, size_t n) {
      std::memcpy(data, head.data(), std::min(n, head.size()));
      return true;
    };
    std::string note, error;
    EXPECT_FALSE(restore_session(other, size, read, note, error));
    EXPECT_EQ(error, "out of memory");
    EXPECT_EQ(other.position(), 0);
  }
}

TEST(SavedSession, RejectsAnotherModelKvTypeAndASmallContext) {
  const MemoryModel m(small_config(), Type::q8), q4(small_config(), Type::q4);
  Session session(m.model);
  const std::vector<int> ids = random_ids(50, 100);
  ASSERT_TRUE(session.forward(ids.data(), 50));
  const std::string bytes = saved(session);
  Session other(q4.model), f32(m.model, {0, 1, KvType::f32}), small(m.model, {49}), enough(m.model, {50});
  EXPECT_EQ(restored(other, bytes).rfind("model: expected " + std::to_string(q4.model.checksum()), 0), 0u);
  EXPECT_EQ(restored(f32, bytes), "keys and values: expected q8 as in the saved session, found f32");
  EXPECT_EQ(restored(small, bytes), "context: expected room for the saved session's 50 tokens, found 49");
  EXPECT_EQ(restored(enough, bytes), "");
}

TEST(SavedSession, ReportsFailedWritesAndReads) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model), other(m.model);
  const std::vector<int> ids = random_ids(4, 100);
  ASSERT_TRUE(session.forward(ids.data(), 4));
  const std::string bytes = saved(session, "note");
  for (int good = 0; good < 6; good++) {  // header, note, four positions
    std::string error, note;
    int calls = 0;
    EXPECT_FALSE(save_session(
        session, "note", [&](const void*, size_t) { return calls++ < good; }, error));
    EXPECT_EQ(error, "saved session: cannot be written");
    size_t at = 0;
    calls = 0;
    const ReadBytes read = [&](void* data, size_t n) {
      std::memcpy(data, &bytes[at], n);
      at += n;
      return calls++ < good;
    };
    EXPECT_FALSE(restore_session(other, bytes.size(), read, note, error));
    EXPECT_EQ(error, "saved session: cannot be read");
    EXPECT_EQ(other.position(), 0);
  }
  const Model closed;
  Session none(closed);
  std::string error;
  EXPECT_FALSE(save_session(
      none, "", [](const void*, size_t) { return true; }, error));
  EXPECT_EQ(error, "session: the model is not open");
}

}  // namespace saved_session_test
