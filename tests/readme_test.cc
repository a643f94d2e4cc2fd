// The README shows the embedding example as it is compiled and run.
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace wavekv {
namespace {

std::string ReadFile(const std::string& name) {
  const char* root = std::getenv("TEST_SRCDIR");
  const char* workspace = std::getenv("TEST_WORKSPACE");
  std::ifstream file(std::string(root) + "/" + workspace + "/" + name);
  EXPECT_TRUE(file) << name;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(ReadmeTest, ShowsTheEmbeddingExampleVerbatim) {
  const std::string readme = ReadFile("README.md");
  const std::string example = ReadFile("examples/embedding.cc");
  EXPECT_NE(readme.find("```cpp\n" + example + "```"), std::string::npos);
}

TEST(ReadmeTest, LeavesNoPlaceholder) {
  EXPECT_EQ(ReadFile("README.md")
                .find("@"
                      "@"),
            std::string::npos);
}

}  // namespace
}  // namespace wavekv
