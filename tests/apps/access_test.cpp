// access_test.cpp: who may use the server.
#include "../../apps/server/access.hpp"

#include <gtest/gtest.h>

#include "../support/files.hpp"
#include "../support/program.hpp"

namespace access_test {

using namespace pocket;
using namespace pocket::server;

TEST(ServerAccess, ComparesKeys) {
  EXPECT_TRUE(equal_in_constant_time("secret", "secret"));
  EXPECT_TRUE(equal_in_constant_time("", ""));
  for (const char* other : {"", "s", "secre", "secreT", "Secret", "secretsecret", "secret "})
    EXPECT_FALSE(equal_in_constant_time(other, "secret")) << other;
  EXPECT_FALSE(equal_in_constant_time("secret", ""));
}

TEST(ServerAccess, ComparesWithoutCase) {
  EXPECT_TRUE(equal_without_case("", ""));
  EXPECT_TRUE(equal_without_case("Application/JSON", "application/json"));
  for (const char* other : {"", "chunke", "chunkedd", "chunked ", "gzip"})
    EXPECT_FALSE(equal_without_case(other, "chunked")) << other;
  EXPECT_FALSE(equal_without_case("@[", "`{"));
}

TEST(ServerAccess, ComparesNamesOfHosts) {
  const Origins origins({"LLM.example", "other.example"}, {"https://chat.example"});
  for (const char* host : {"127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "[fe80::1]",
                           "10.1.2.3:80", "llm.example", "Llm.Example:443"})
    EXPECT_TRUE(origins.accept_host(host)) << host;
  for (const char* host :
       {"", "evil.example", "localhost.evil.example", "llm.example.evil.example", "127.0.0.1.evil.example",
        "127.0.0.1@evil.example", "localhost:80:80", "localhost:x", "[::1", "[evil]", "127.1"})
    EXPECT_FALSE(origins.accept_host(host)) << host;
}

TEST(ServerAccess, ComparesOrigins) {
  const Origins origins({}, {"https://chat.example"});
  EXPECT_TRUE(origins.accept_origin("", "127.0.0.1:8080")) << "no page";
  EXPECT_TRUE(origins.accept_origin("http://127.0.0.1:8080", "127.0.0.1:8080")) << "its own page";
  EXPECT_TRUE(origins.accept_origin("https://chat.example", "127.0.0.1:8080"));
  EXPECT_TRUE(origins.is_foreign_but_allowed("https://chat.example"));
  EXPECT_FALSE(origins.is_foreign_but_allowed(""));
  EXPECT_FALSE(origins.is_foreign_but_allowed("http://127.0.0.1:8080"));
  for (const char* origin : {"null", "http://evil.example", "http://127.0.0.1:8081", "http://127.0.0.1",
                             "127.0.0.1:8080", "http://chat.example", "https://chat.example.evil.example"})
    EXPECT_FALSE(origins.accept_origin(origin, "127.0.0.1:8080")) << origin;
}

TEST(ServerAccess, KnowsListsOfHeaderNames) {
  for (const char* text : {"authorization", "authorization,content-type", "x-stainless-os, x-stainless-lang", "A_1!"})
    EXPECT_TRUE(is_list_of_names(text)) << text;
  for (const char* text : {"", "a\r\nb", "a:b", "a;b", "a\tb", "\"a\"", "\xC3\xA4"})
    EXPECT_FALSE(is_list_of_names(text)) << text;
}

TEST(ServerAccess, RefusesInvalidLists) {
  EXPECT_THROW(Origins({"http://x"}, {}), Failure);
  EXPECT_THROW(Origins({"a b"}, {}), Failure);
  EXPECT_THROW(Origins({}, {"chat.example"}), Failure);
  EXPECT_THROW(Origins({}, {"https://chat.example/"}), Failure);
}

TEST(ServerAccess, KnowsLoopbackAddresses) {
  for (const char* name : {"127.0.0.1", "127.8.8.8", "localhost", "[::1]"}) EXPECT_TRUE(is_loopback(name)) << name;
  for (const char* name : {"0.0.0.0", "[::]", "10.0.0.1", "127.evil.example", ""})
    EXPECT_FALSE(is_loopback(name)) << name;
}

class KeysFile : public testing::Test {
 protected:
  std::string write(const std::string& text) { return folder_.write("keys.txt", text); }
  std::string failure(const std::string& text) {
    try {
      ApiKeys::read(write(text));
    } catch (const Failure& f) {
      return f.what;
    }
    return "";
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(KeysFile, AcceptsItsKeysOnly) {
  const ApiKeys keys = ApiKeys::read(write("# of Ada\nAAAAAAAAAAAAAAAA\r\n\n  \nBBBBBBBBBBBBBBBBBBBB"));
  EXPECT_FALSE(keys.empty());
  EXPECT_TRUE(keys.accept("Bearer AAAAAAAAAAAAAAAA"));
  EXPECT_TRUE(keys.accept("bearer BBBBBBBBBBBBBBBBBBBB"));
  for (const char* header : {"", "Bearer", "Bearer ", "AAAAAAAAAAAAAAAA", "Basic AAAAAAAAAAAAAAAA", "Bearer # of Ada",
                             "Bearer AAAAAAAAAAAAAAA", "Bearer AAAAAAAAAAAAAAAAA"})
    EXPECT_FALSE(keys.accept(header)) << header;
  EXPECT_TRUE(ApiKeys().accept("")) << "without keys everybody is let in";
}

TEST_F(KeysFile, RefusesInvalidFilesWithoutQuotingThem) {
  EXPECT_NE(failure("").find("expected a key per line, found none"), std::string::npos);
  EXPECT_NE(failure("# only a comment\n").find("found none"), std::string::npos);
  const std::string too_short = failure("AAAAAAAAAAAAAAAA\nsecret\n");
  EXPECT_NE(too_short.find("line 2: expected a key of at least 16 characters, found 6"), std::string::npos);
  EXPECT_EQ(too_short.find("secret"), std::string::npos);
  EXPECT_NE(failure("two words in a line\n").find("line 1: expected a key of visible ASCII"), std::string::npos);
  EXPECT_THROW(ApiKeys::read("/nonexistent/keys"), Failure);
}

}  // namespace access_test
