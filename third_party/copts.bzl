"""Warning flags of wavekv's own C++ code. Every cc_library, cc_binary and cc_test sets copts = WAVEKV_COPTS."""

# Headers under /usr/include are system headers, so their warnings never reach -Werror.
WAVEKV_COPTS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Werror",
    # The shared library shows what is marked WAVEKV_EXPORT and nothing else.
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    # Designated initialisers leave the other fields at their defaults on purpose.
    "-Wno-missing-field-initializers",
    # g++ 12 reports std::string concatenation at -O2 (GCC PR 105651).
    "-Wno-restrict",
]
