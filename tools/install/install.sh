#!/usr/bin/env bash
# install.sh PREFIX HEADERS_TAR LIBRARIES LICENSE: copies what `bazel build //tools/install` made to PREFIX, which need
# not exist. LIBRARIES is the folder with libwavekv.so, libwavekv.a and abseil_modules.txt.
#
#   PREFIX/include/wavekv/*.h
#   PREFIX/lib/libwavekv.so -> libwavekv.so.0.7 -> libwavekv.so.0.7.0, PREFIX/lib/libwavekv.a
#   PREFIX/lib/pkgconfig/wavekv.pc, wavekv-static.pc   relocatable: PREFIX may be moved as a whole
#   PREFIX/share/doc/wavekv/LICENSE
#
# DESTDIR is put before PREFIX, as packagers expect.
set -euo pipefail

[[ $# -eq 4 ]] || { echo "usage: install.sh PREFIX HEADERS_TAR LIBRARIES LICENSE" >&2; exit 2; }
prefix=$1 libraries=$3 license=$4
root=${DESTDIR:-}$prefix
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/headers"
tar -xf "$2" -C "$work/headers"

header=$work/headers/version.h
number() { sed -n "s/^#define WAVEKV_VERSION_$1 \([0-9]*\)$/\1/p" "$header"; }
version=$(number MAJOR).$(number MINOR).$(number PATCH)
soname=libwavekv.so.$(number MAJOR).$(number MINOR)
modules=$(tr '\n' ' ' <"$libraries/abseil_modules.txt")

# Each file is written beside its name and then renamed: a program that runs keeps the library it has.
put() {
  local mode=$1 from=$2 to=$root/$3
  mkdir -p "${to%/*}"
  install -m "$mode" "$from" "$to.partial"
  mv -f "$to.partial" "$to"
}

for file in "$work"/headers/*.h; do
  put 644 "$file" "include/wavekv/${file##*/}"
done
put 755 "$libraries/libwavekv.so" "lib/libwavekv.so.$version"
ln -sfn "libwavekv.so.$version" "$root/lib/$soname"
ln -sfn "$soname" "$root/lib/libwavekv.so"
put 644 "$libraries/libwavekv.a" lib/libwavekv.a
put 644 "$license" share/doc/wavekv/LICENSE

# package FILE NAME LIBS: a pkg-config file.
package() {
  cat >"$work/$1" <<PC
prefix=\${pcfiledir}/../..
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: $2
Description: KV cache of transformers as a multi-tenant vector store, with attention from a small part of it
Version: $version
Requires: ${modules% }
Cflags: -I\${includedir}
Libs: -L\${libdir} $3
PC
  put 644 "$work/$1" "lib/pkgconfig/$1"
}
package wavekv.pc wavekv -lwavekv
package wavekv-static.pc "wavekv, static" "-l:libwavekv.a -lhwy -lm -ldl -lpthread"

printf 'installed wavekv %s in %s\n' "$version" "$root"
printf '  compile with: g++ -std=c++20 $(PKG_CONFIG_PATH=%s/lib/pkgconfig pkg-config --cflags --libs wavekv)\n' "$prefix"
