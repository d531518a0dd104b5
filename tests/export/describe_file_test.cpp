// describe_file_test.cpp: the kind of a file that is not a model.
#include "../../export/describe_file.hpp"

#include <gtest/gtest.h>

namespace describe_file_test {

std::string description(const std::string& bytes) {
  return pocket::describe_file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

TEST(DescribeFile, NamesTheFormat) {
  const std::string zeros(100, '\0');
  const std::pair<std::string, const char*> foreign[] = {
      {"GGUF\x03" + zeros, "a GGUF file; convert it"},
      {"PK\x03\x04" + zeros, "a zip archive"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n", "a Git LFS pointer"},
      {"<!DOCTYPE html><html>" + zeros, "a web page"},
      {"<html><body>404</body></html>", "a web page"},
      {"<HTML>" + zeros, "a web page"},
      {"\x80\x02}q" + zeros, "a Python pickle"},
      {std::string("\x10\0\0\0\0\0\0\0{\"a\":{}}", 16) + zeros, "a safetensors file; convert its folder"},
      {std::string("\x20\1\0\0\0\3\0\0\6\0\0\0\6\0\0\0\6\0\0\0\0\x7d\0\0\0\1\0\0", 28),
       "perhaps a llama2.c checkpoint"},
      {"IQ== 0\nIg== 1\n", "a vocabulary of tiktoken"},
      {"aGVsbG8gd29ybGQh 100255\r\n", "a vocabulary of tiktoken"},
      {"IQ== x\n", "a text file"},
      {"hello 12\n", "a text file"},
      {"12 34\n", "a text file"},
      {"\x1f\x8b\x08" + zeros, "a compressed archive"},
      {"\x28\xB5\x2F\xFD" + zeros, "a compressed archive"},
      {"hello, world" + zeros, "an unknown format"},
      {"hello, world", "a text file"},
      {"", "an empty file"},
  };
  for (const auto& [bytes, format] : foreign) {
    EXPECT_EQ(description(bytes).find(format), 0u) << description(bytes);
    for (size_t n = 0; n < bytes.size(); n++) EXPECT_NE(description(bytes.substr(0, n)), "");
  }
}

}  // namespace describe_file_test
