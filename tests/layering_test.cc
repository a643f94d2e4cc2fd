// The layers, checked on every #include of the repository.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

namespace fs = std::filesystem;

// Which folders a folder may include, besides itself. Arrows point down only.
const std::map<std::string, std::set<std::string>>& AllowedEdges() {
  static const auto* const kEdges = new std::map<std::string, std::set<std::string>>{
      {"api", {"index", "buffer", "compute", "cpu", "cuda", "storage", "proto"}},
      {"index", {"compute", "storage"}},
      {"buffer", {"compute", "storage"}},
      {"cpu", {"compute", "storage"}},
      {"cuda", {"compute", "storage"}},
      {"compute", {"storage"}},
      {"storage", {"proto"}},
      {"proto", {}},
      // An example embeds wavekv as a user does: through "wavekv/..." alone. The tools it uses are
      // not wavekv's.
      {"examples", {"tools"}},
  };
  return *kEdges;
}

// These see everything, and no layer sees them.
bool IsAboveTheLayers(const std::string& folder) {
  return folder == "tests" || folder == "bench" || folder == "tools";
}

struct Repository {
  std::map<std::string, std::string> sources;         // path -> contents of the C++ and CUDA files
  std::map<std::string, std::string> public_headers;  // "wavekv/x.h" -> the path it stands for
};

std::string TopFolder(const std::string& path) { return path.substr(0, path.find('/')); }

std::vector<std::string> Includes(const std::string& contents) {
  static const auto* const kInclude =
      new std::regex(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])", std::regex::multiline);
  std::vector<std::string> includes;
  for (std::sregex_iterator it(contents.begin(), contents.end(), *kInclude), end; it != end; ++it) {
    includes.push_back((*it)[1]);
  }
  return includes;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

bool IsFaissHeader(const std::string& include) { return StartsWith(include, "faiss/"); }

bool IsCudaHeader(const std::string& include) {
  static const auto* const kCuda =
      new std::regex(R"((cuda|cub|cooperative_groups|thrust|nccl|cublas)[A-Za-z_]*(\.h|/.*))");
  // The toolkit's headers in a folder "cuda" have no extension; ours do.
  const bool is_ours = StartsWith(include, "cuda/") && include.ends_with(".h");
  return std::regex_match(include, *kCuda) && !is_ours;
}

bool IsProtobufHeader(const std::string& include) {
  return StartsWith(include, "google/protobuf/") || include.ends_with(".pb.h");
}

std::vector<std::string> EdgesThatPointUp(const Repository& repository) {
  std::vector<std::string> violations;
  for (const auto& [path, contents] : repository.sources) {
    const std::string from = TopFolder(path);
    if (IsAboveTheLayers(from)) continue;
    const auto allowed = AllowedEdges().find(from);
    if (allowed == AllowedEdges().end()) {
      violations.push_back(path + ": folder " + from + " is not in the table of layers");
      continue;
    }
    for (const std::string& include : Includes(contents)) {
      const bool is_public = StartsWith(include, "wavekv/");
      std::string target = include;
      if (is_public) {
        const auto header = repository.public_headers.find(include);
        if (header == repository.public_headers.end()) {
          violations.push_back(path + ": " + include + " is no public header");
          continue;
        }
        target = header->second;
      }
      const std::string to = TopFolder(target);
      const bool is_bazels = StartsWith(include, "tools/cpp/runfiles/");
      const bool is_ours = !is_bazels && (AllowedEdges().contains(to) || IsAboveTheLayers(to));
      if (!is_ours || to == from || allowed->second.contains(to)) continue;
      if (from == "examples" && is_public) continue;
      violations.push_back(path + ": " + from + " -> " + to + " (" + include + ")");
    }
  }
  return violations;
}

std::vector<std::string> PublicHeadersThatExposeOthers(const Repository& repository) {
  std::vector<std::string> violations;
  for (const auto& [name, path] : repository.public_headers) {
    const auto source = repository.sources.find(path);
    if (source == repository.sources.end()) {
      violations.push_back(name + ": there is no " + path);
      continue;
    }
    for (const std::string& include : Includes(source->second)) {
      const bool is_ours = AllowedEdges().contains(TopFolder(include));
      if (IsProtobufHeader(include) || IsFaissHeader(include) || IsCudaHeader(include) ||
          StartsWith(include, "hwy/") || is_ours) {
        violations.push_back(path + ": public, but includes " + include);
      }
    }
  }
  return violations;
}

// Files that include a header for which `matches` holds.
template <typename Predicate>
std::vector<std::string> FilesIncluding(const Repository& repository, Predicate matches) {
  std::vector<std::string> files;
  for (const auto& [path, contents] : repository.sources) {
    const std::vector<std::string> includes = Includes(contents);
    if (std::any_of(includes.begin(), includes.end(), matches)) files.push_back(path);
  }
  return files;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream contents;
  contents << file.rdbuf();
  return contents.str();
}

// Adds the headers of every library of a BUILD file that says include_prefix = "wavekv".
void AddPublicHeaders(const std::string& build, const std::string& folder, Repository& repository) {
  static const auto* const kHeader = new std::regex(R"re("([^"/:@]+\.h)")re");
  const std::string kRule = "cc_library(";
  for (size_t begin = build.find(kRule); begin != std::string::npos;) {
    const size_t end = build.find("\n)", begin);
    const std::string rule = build.substr(begin, end - begin);
    const size_t hdrs = rule.find("hdrs = [");
    if (rule.find("include_prefix = \"wavekv\"") != std::string::npos &&
        hdrs != std::string::npos) {
      const std::string list = rule.substr(hdrs, rule.find(']', hdrs) - hdrs);
      for (std::sregex_iterator it(list.begin(), list.end(), *kHeader), last; it != last; ++it) {
        const std::string header = (*it)[1];
        repository.public_headers["wavekv/" + header] = folder + "/" + header;
      }
    }
    begin = build.find(kRule, begin + kRule.size());
  }
}

// The working tree itself, found through a file of it: so no folder can be forgotten.
fs::path RepositoryRoot() {
  const char* const runfiles = std::getenv("TEST_SRCDIR");
  const char* const workspace = std::getenv("TEST_WORKSPACE");
  if (runfiles == nullptr || workspace == nullptr) return fs::current_path();
  return fs::canonical(fs::path(runfiles) / workspace / "WORKSPACE").parent_path();
}

Repository ReadRepository() {
  const std::set<std::string> kNotOurs = {"third_party", "out", ".git", ".ci"};
  const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh"};
  const fs::path root = RepositoryRoot();
  Repository repository;
  for (const fs::directory_entry& top : fs::directory_iterator(root)) {
    const std::string folder = top.path().filename();
    // A link leads out of the repository.
    if (top.is_symlink() || !top.is_directory() || kNotOurs.contains(folder)) continue;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(top)) {
      if (!entry.is_regular_file()) continue;
      const std::string path = fs::relative(entry.path(), root);
      if (kExtensions.contains(entry.path().extension())) {
        repository.sources[path] = ReadFile(entry.path());
      }
      if (entry.path().filename() == "BUILD") {
        AddPublicHeaders(ReadFile(entry.path()), fs::path(path).parent_path(), repository);
      }
    }
  }
  return repository;
}

TEST(Layering, ReadsTheWholeRepository) {
  const Repository repository = ReadRepository();
  EXPECT_TRUE(repository.sources.contains("tests/layering_test.cc"));
  EXPECT_TRUE(repository.sources.contains("compute/backend.h"));
  EXPECT_TRUE(repository.public_headers.contains("wavekv/types.h"));
}

TEST(Layering, EveryIncludePointsDown) {
  EXPECT_THAT(EdgesThatPointUp(ReadRepository()), testing::IsEmpty());
}

TEST(Layering, PublicHeadersIncludeOnlyPublicHeaders) {
  EXPECT_THAT(PublicHeadersThatExposeOthers(ReadRepository()), testing::IsEmpty());
}

TEST(Layering, OneFileOfTheLibraryIncludesFaiss) {
  std::vector<std::string> files;
  for (const std::string& path : FilesIncluding(ReadRepository(), IsFaissHeader)) {
    if (!IsAboveTheLayers(TopFolder(path))) files.push_back(path);
  }
  EXPECT_THAT(files, testing::SizeIs(testing::Le(1)));
}

TEST(Layering, OnlyCudaFoldersIncludeCudaHeaders) {
  for (const std::string& path : FilesIncluding(ReadRepository(), IsCudaHeader)) {
    EXPECT_TRUE(StartsWith(path, "cuda/") || StartsWith(path, "tests/cuda/") ||
                StartsWith(path, "bench/cuda/"))
        << path;
  }
}

TEST(LayeringChecks, NameTheForbiddenEdge) {
  Repository repository;
  repository.sources["index/a.cc"] = "#include <vector>\n  #  include \"buffer/b.h\"\n";
  repository.sources["storage/c.h"] = "#include \"wavekv/engine.h\"\n#include \"tests/d.h\"\n";
  repository.sources["engine2/e.cc"] = "";
  repository.sources["examples/f/f.cc"] = "#include \"wavekv/engine.h\"\n#include \"api/g.h\"\n";
  repository.public_headers["wavekv/engine.h"] = "api/engine.h";
  EXPECT_THAT(EdgesThatPointUp(repository),
              testing::ElementsAre("engine2/e.cc: folder engine2 is not in the table of layers",
                                   "examples/f/f.cc: examples -> api (api/g.h)",
                                   "index/a.cc: index -> buffer (buffer/b.h)",
                                   "storage/c.h: storage -> api (wavekv/engine.h)",
                                   "storage/c.h: storage -> tests (tests/d.h)"));
}

TEST(LayeringChecks, NameTheHeaderThatAPublicHeaderExposes) {
  Repository repository;
  repository.public_headers["wavekv/engine.h"] = "api/engine.h";
  repository.sources["api/engine.h"] =
      "#include \"absl/status/status.h\"\n#include \"wavekv/types.h\"\n"
      "#include \"proto/config.pb.h\"\n#include <cuda_runtime.h>\n#include <hwy/base.h>\n"
      "#include <faiss/Index.h>\n#include \"storage/arena.h\"\n";
  EXPECT_THAT(PublicHeadersThatExposeOthers(repository),
              testing::ElementsAre("api/engine.h: public, but includes proto/config.pb.h",
                                   "api/engine.h: public, but includes cuda_runtime.h",
                                   "api/engine.h: public, but includes hwy/base.h",
                                   "api/engine.h: public, but includes faiss/Index.h",
                                   "api/engine.h: public, but includes storage/arena.h"));
}

TEST(LayeringChecks, FindPublicHeadersInABuildFile) {
  Repository repository;
  AddPublicHeaders(
      "cc_library(\n    name = \"a\",\n    hdrs = [\"a.h\"],\n)\n"
      "cc_library(\n    name = \"b\",\n    srcs = [\"private.h\"],\n    hdrs = [\n        "
      "\"b.h\",\n        \"c.h\",\n    ],\n"
      "    include_prefix = \"wavekv\",\n)\n",
      "api", repository);
  EXPECT_THAT(repository.public_headers,
              testing::ElementsAre(testing::Pair("wavekv/b.h", "api/b.h"),
                                   testing::Pair("wavekv/c.h", "api/c.h")));
}

}  // namespace
}  // namespace wavekv
