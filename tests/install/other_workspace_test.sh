#!/usr/bin/env bash
# Another Bazel workspace depends on wavekv: the lines below are all that it needs.
# Usage: other_workspace_test.sh WORKSPACE EXAMPLE   (of this repository; the first says where it is)
set -euo pipefail
wavekv=$(dirname "$(readlink -f "$1")")
example=$(readlink -f "$2")
work=$(mktemp -d "${TEST_TMPDIR:-/tmp}/other.XXXXXX")
mkdir "$work/consumer"
cd "$work/consumer"

cat >WORKSPACE <<EOF
workspace(name = "consumer")

local_repository(
    name = "wavekv",
    path = "$wavekv",
)

load("@wavekv//third_party:workspace.bzl", "wavekv_dependencies")

wavekv_dependencies()
EOF
cat >.bazelrc <<EOF
import $wavekv/third_party/wavekv.bazelrc
EOF
mkdir app
cp "$example" app/main.cc
cat >app/config.cc <<'EOF'
#include <cstdio>

#include "wavekv/options.h"

int main() {
  const auto options = wavekv::ParseEngineOptions("arena_bytes: 1");
  std::puts(options.status().ToString().c_str());
}
EOF
cat >app/BUILD <<'EOF'
cc_binary(
    name = "app",
    srcs = ["main.cc"],
    deps = ["@wavekv//api:engine"],
)

cc_binary(
    name = "config",
    srcs = ["config.cc"],
    deps = ["@wavekv//api:options"],
)
EOF

# Unoptimised and for one instruction set: this is about whether it builds.
# nvcc would take minutes for what the test of a GPU shows better.
build() {
  HOME=$work bazel --nohome_rc --output_user_root="$work/root" --max_idle_secs=20 build --noshow_progress --color=no \
    --nosandbox_debug --copt=-O0 --copt=-DHWY_COMPILE_ONLY_STATIC --repo_env=WITH_CUDA=0 "$@" \
    2>"$work/log" || { cat "$work/log" >&2; exit 1; }
}
# Every file of the engine would take minutes. All rules are looked at, the application's own file is compiled, and of
# wavekv what stands on each kind of thing that this workspace brings: generated sources, Abseil and fmt, linked and
# run, Highway, and Faiss.
build --nobuild //app
build --output_groups=compilation_outputs //app
build //app:config @wavekv//cpu:exact_kernels @wavekv//index:seed_centroids
output=$(bazel-bin/app/config)
echo "$output"
[[ $output == "INVALID_ARGUMENT: "*"model"* ]]
HOME=$work bazel --nohome_rc --output_user_root="$work/root" shutdown 2>"$work/log"
chmod -R u+w "$work/root"
rm -rf "$work"
