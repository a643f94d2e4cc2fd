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
cat >app/BUILD <<EOF
cc_binary(
    name = "app",
    srcs = ["main.cc"],
    deps = ["@wavekv//api:engine"],
)
EOF

bazel() {
  HOME=$work command bazel --nohome_rc --output_user_root="$work/root" --batch "$1" --noshow_progress --color=no \
    --nosandbox_debug "${@:2}"
}
# Unoptimised and for one instruction set: this is about whether it builds.
# nvcc would take minutes for what the test of a GPU shows better.
bazel build --copt=-O0 --copt=-DHWY_COMPILE_ONLY_STATIC --repo_env=WITH_CUDA=0 //app 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
output=$(bazel-bin/app/app)
echo "$output"
[[ $output == "layer 0: "*" tokens read exactly"* ]]
chmod -R u+w "$work/root"
rm -rf "$work"
