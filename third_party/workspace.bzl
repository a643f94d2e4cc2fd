"""What wavekv needs of a workspace. A user's WORKSPACE has:

    local_repository(name = "wavekv", path = "...")
    load("@wavekv//third_party:workspace.bzl", "wavekv_dependencies")
    wavekv_dependencies()

and the user's .bazelrc imports third_party/wavekv.bazelrc.
"""

load("//third_party/cuda:cuda_configure.bzl", "cuda_configure")

def _stand_in_impl(ctx):
    for entry in ctx.path(ctx.attr.workspace_file).dirname.readdir():
        ctx.symlink(entry, entry.basename)

_stand_in = repository_rule(
    implementation = _stand_in_impl,
    attrs = {"workspace_file": attr.label(mandatory = True)},
    local = True,
)

def wavekv_dependencies():
    """Declares @usr (Debian's libraries), @local_cuda, and what Bazel 4 would otherwise download."""

    # A workspace that has the real ones keeps them.
    for name in ["rules_cc", "rules_java", "remote_coverage_tools"]:
        if native.existing_rule(name) == None:
            _stand_in(
                name = name,
                workspace_file = "@wavekv//third_party:bazel/%s/WORKSPACE" % name,
            )
    if native.existing_rule("usr") == None:
        native.new_local_repository(
            name = "usr",
            build_file = "@wavekv//third_party:usr.BUILD",
            path = "/usr",
        )
    cuda_configure(name = "local_cuda")
