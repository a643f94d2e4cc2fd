"""The installed libraries: wavekv's own code with what Debian has as archives, in one file each."""

def _libraries_impl(ctx):
    own = []
    archives = []
    flags = []
    for linker_input in ctx.attr.library[CcInfo].linking_context.linker_inputs.to_list():
        flags += linker_input.user_link_flags
        for library in linker_input.libraries:
            file = library.pic_static_library or library.static_library or library.dynamic_library
            # Bazel's own path of a shared library is a link in its output folder.
            file = library.resolved_symlink_dynamic_library or file
            if linker_input.owner.workspace_name in ["", "wavekv"]:
                own.append(file)
            else:
                archives.append(file)

    outputs = [ctx.outputs.shared, ctx.outputs.static, ctx.outputs.abseil]
    arguments = ctx.actions.args()
    arguments.add_all("--own", own)
    arguments.add_all("--archives", archives)
    arguments.add_all("--flags", flags)
    ctx.actions.run(
        executable = ctx.executable._link,
        arguments = [f.path for f in outputs + [ctx.file.version_header, ctx.file.exports]] + [arguments],
        inputs = own + archives + [ctx.file.version_header, ctx.file.exports],
        outputs = outputs,
        mnemonic = "LinkLibraries",
        progress_message = "Linking the libraries to install",
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset(outputs), runfiles = ctx.runfiles(files = outputs))]

libraries = rule(
    implementation = _libraries_impl,
    doc = "Links a cc_library with all its dependencies but Abseil into one shared and one static library.",
    attrs = {
        "library": attr.label(mandatory = True, providers = [CcInfo]),
        "version_header": attr.label(mandatory = True, allow_single_file = [".h"]),
        "exports": attr.label(mandatory = True, allow_single_file = [".lds"]),
        "_link": attr.label(
            default = "//tools/install:link_libraries.sh",
            allow_single_file = True,
            executable = True,
            cfg = "host",
        ),
    },
    outputs = {
        "shared": "%{name}/libwavekv.so",
        "static": "%{name}/libwavekv.a",
        "abseil": "%{name}/abseil_modules.txt",
    },
)
