#!/usr/bin/env bash
# Installs into an empty folder, moves it, and builds a program outside of the tree with g++ and pkg-config alone:
# against the shared and against the static library, with the same output.
# Usage: install_test.sh INSTALL HEADERS_TAR SHARED LICENSE EXAMPLE
set -euo pipefail

fail() { echo "FAILED: $*" >&2; exit 1; }

install=$1 headers=$2 libraries=$(dirname "$3") license=$4
example=$PWD/$5
work=$(mktemp -d "${TEST_TMPDIR:-/tmp}/install.XXXXXX")
unset PKG_CONFIG_PATH LD_LIBRARY_PATH

"$install" "$work/first" "$headers" "$libraries" "$license" >"$work/said"
grep -q "installed wavekv [0-9.]* in $work/first" "$work/said" || fail "said: $(cat "$work/said")"
mv "$work/first" "$work/moved"
root=$work/moved
export PKG_CONFIG_PATH=$root/lib/pkgconfig
cd "$work"

# A second time over the first, under DESTDIR.
(cd "$OLDPWD" && DESTDIR="$work/stage" "$install" /usr "$headers" "$libraries" "$license" &&
  DESTDIR="$work/stage" "$install" /usr "$headers" "$libraries" "$license") >/dev/null
[[ -e stage/usr/lib/libwavekv.so && -z $(find stage -name '*.partial') ]] || fail "DESTDIR"
[[ -s $root/share/doc/wavekv/LICENSE ]] || fail "no LICENSE"

# Every public header stands alone.
for header in "$root"/include/wavekv/*.h; do
  printf '#include "wavekv/%s"\nint main() {}\n' "${header##*/}" >alone.cc
  # shellcheck disable=SC2046
  g++ -std=c++20 -fsyntax-only -Wall -Wextra -Werror alone.cc $(pkg-config --cflags wavekv) || fail "$header alone"
done

# shellcheck disable=SC2046
g++ -std=c++20 -O1 "$example" -o shared $(pkg-config --cflags --libs wavekv) -Wl,-rpath,"$root/lib"
# shellcheck disable=SC2046
g++ -std=c++20 -O1 "$example" -o static $(pkg-config --cflags --libs wavekv-static)
./shared >shared.out || fail "the program with the shared library"
./static >static.out || fail "the program with the static library"
[[ -s shared.out ]] && cmp shared.out static.out || fail "shared and static library differ"
ldd static | grep -q wavekv && fail "the static program needs the shared library"

# Only what is marked public is visible, in either library.
public=$(nm -DC --defined-only "$root/lib/libwavekv.so" | cut -d' ' -f3-)
[[ $public == *"wavekv::Engine::Open("* ]] || fail "Engine::Open is not exported"
foreign=$(grep -vE '^(typeinfo (name )?for )?wavekv::[A-Z]' <<<"$public" || true)
[[ -z $foreign ]] || fail "exported although not public: $foreign"
grep -E 'wavekv::Engine::Impl|wavekv::Make.*Backend' <<<"$public" && fail "internals are exported"
in_archive=$(nm --defined-only --extern-only "$root/lib/libwavekv.a" | awk 'NF == 3 && $3 !~ /^wavekv_private_/ { print $3 }' |
  sort -u)
in_shared=$(nm -D --defined-only "$root/lib/libwavekv.so" | awk '{ print $3 }' | sort -u)
[[ $in_archive == "$in_shared" ]] || fail "the libraries show different symbols: $(diff <(echo "$in_archive") <(echo "$in_shared"))"

# One version everywhere.
cat >version.cc <<'CC'
#include <cstdio>
#include <cstring>
#include "wavekv/version.h"
int main() {
  char numbers[32];
  std::snprintf(numbers, sizeof numbers, "%d.%d.%d", WAVEKV_VERSION_MAJOR, WAVEKV_VERSION_MINOR, WAVEKV_VERSION_PATCH);
  std::puts(wavekv::Version());
  return std::strcmp(numbers, WAVEKV_VERSION) || std::strcmp(numbers, wavekv::Version());
}
CC
# shellcheck disable=SC2046
g++ -std=c++20 version.cc -o version $(pkg-config --cflags --libs wavekv) -Wl,-rpath,"$root/lib"
version=$(./version) || fail "the header's numbers and strings differ"
[[ $(pkg-config --modversion wavekv) == "$version" ]] || fail "pkg-config says another version than $version"
[[ $(pkg-config --modversion wavekv-static) == "$version" ]] || fail "wavekv-static says another version"
readelf -d "$root/lib/libwavekv.so" | grep -q "SONAME.*\[libwavekv.so.${version%.*}\]" || fail "soname"
[[ $(readlink -f "$root/lib/libwavekv.so") == "$root/lib/libwavekv.so.$version" ]] || fail "name of the library"
cat shared.out
