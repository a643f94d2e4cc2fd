#!/usr/bin/env bash
# link_libraries.sh SHARED STATIC MODULES VERSION_HEADER EXPORTS --own A... --archives A... --flags F...
#
# Links wavekv's own archives with the third-party ones they need into one shared library and one relocatable object
# in an archive. Both show the same symbols: those that are marked WAVEKV_EXPORT. Abseil stays outside, as its types
# are part of the API and a process needs one copy of it; MODULES gets the names of its pkg-config modules.
set -euo pipefail

shared=$1 static=$2 modules=$3 version_header=$4 exports=$5
shift 5
own=() archives=() flags=() abseil=()
for word in "$@"; do
  case $word in
    --own | --archives | --flags) list=${word#--} ;;
    *)
      name=${word##*/}
      if [[ $name == libabsl_*.a ]]; then
        name=${name#lib}
        abseil+=("-l${name%.a}")
      else
        declare -n target=$list
        target+=("$word")
      fi
      ;;
  esac
done

# Debian's archives of these keep thread-local variables where only an executable may have them.
shared_archives=() shared_flags=()
for file in "${archives[@]}"; do
  case $file in
    */libprotobuf.a) shared_flags+=(-lprotobuf) ;;
    *) shared_archives+=("$file") ;;
  esac
done
for flag in "${flags[@]}"; do
  [[ $flag != -l:libgomp.a ]] || flag=-lgomp
  shared_flags+=("$flag")
done

number() { sed -n "s/^#define WAVEKV_VERSION_$1 \([0-9]*\)$/\1/p" "$version_header"; }
soname=libwavekv.so.$(number MAJOR).$(number MINOR)

g++ -shared -o "$shared" -Wl,-soname,"$soname" -Wl,--version-script="$exports" -Wl,--no-undefined -Wl,--gc-sections \
  -Wl,-O1 -Wl,-z,relro -Wl,-z,now -Wl,--whole-archive "${own[@]}" -Wl,--no-whole-archive -Wl,--start-group \
  "${shared_archives[@]}" -Wl,--end-group -Wl,--as-needed "${abseil[@]}" "${shared_flags[@]}" -s

# What the shared library needs of Abseil is what users of either library need.
readelf -d "$shared" | sed -n 's/.*NEEDED.*\[lib\(absl_[a-z0-9_]*\)\.so.*/\1/p' | sort >"$modules"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
relocatable_archives=()
for file in "${archives[@]}"; do
  [[ $file == *.so* ]] || relocatable_archives+=("$file")
done
relocatable_flags=()
for flag in "${flags[@]}"; do
  case $flag in
    -l:*.a) relocatable_flags+=("$(g++ -print-file-name="${flag#-l:}")") ;;
  esac
done
# Groups of sections are dissolved: their symbols become local below, so no other object can stand in for them.
ld -r --force-group-allocation -o "$work/all.o" --whole-archive "${own[@]}" --no-whole-archive --start-group \
  "${relocatable_archives[@]}" "${relocatable_flags[@]}" --end-group
nm -D --defined-only "$shared" | awk '{ print $3 }' | sed 's/@.*//' | sort -u >"$work/public"
# Statics of inline functions are "unique": objcopy cannot make them local, so they get names that nobody else has.
nm "$work/all.o" | awk '$2 == "u" { print $3, "wavekv_private_" $3 }' >"$work/unique"
objcopy --strip-debug --keep-global-symbols="$work/public" --redefine-syms="$work/unique" "$work/all.o" "$work/wavekv.o"
rm -f "$static"
ar rcsD "$static" "$work/wavekv.o"
