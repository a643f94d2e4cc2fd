"""gpu_test: NAME.cc, a test of an operation against the CPU's; all_gpu_tests: every one of them in one binary."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")
load("//third_party:copts.bzl", "WAVEKV_COPTS")

_CASES = "_cases"

def gpu_test(name, deps = [], tags = [], **kwargs):
    cc_library(
        name = name + _CASES,
        testonly = True,
        srcs = [name + ".cc"],
        copts = WAVEKV_COPTS,
        deps = [
            ":gpu_fixture",
            "//cpu:cpu_backend",
            "//tests/testing:random",
            "@usr//:absl",
            "@usr//:gtest",
        ] + deps,
        alwayslink = True,
    )

    # The first tag is what tools/gpu_check.sh looks for; the second has them run under sanitizers.
    cc_test(
        name = name,
        tags = tags + ["gpu"],
        deps = [
            ":" + name + _CASES,
            "@usr//:gtest_main",
        ],
        **kwargs
    )

def all_gpu_tests(name, exclude = []):
    """The cases of all gpu_tests of the folder, in one binary to carry to a machine with a GPU.

    exclude: sources of other tests.
    """
    cc_binary(
        name = name,
        testonly = True,
        deps = ["@usr//:gtest_main"] + [
            ":" + source[:-len(".cc")] + _CASES
            for source in native.glob(["*_test.cc"], exclude = exclude)
        ],
    )
